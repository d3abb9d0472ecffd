"""The `tidegate` command: looks at etcd and at the agents of this machine, and changes nothing."""

import sys

INTERRUPTED = 128 + 2  # as a shell tells of SIGINT


def main() -> None:
    try:
        # Takes half a second, in which somebody may change their mind.
        from tidegate.cli.root import tidegate

        tidegate(prog_name="tidegate")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
