"""All links that an earlier version left, or the same one with other maps, get the programs of the manifest.

Until the last one has been moved, programs with different maps stand side by side, which do not see each other's new
connections. That is over within milliseconds, also where the agent is killed meanwhile: a process of its own moves them
(`python -m node_agent.relink BPFFS STATE`), and only where there is something to move.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from node_agent import links
from node_agent.loader import Manifest, catch_up, read_manifest
from node_agent.loader.carry import begin, retained


def start(bpffs: Path, state: Path, manifest: Manifest) -> subprocess.Popen[str] | None:
    """The process, to be waited for by `finish`; None where there is nothing to move. Raises OSError."""
    with ExitStack() as stack:
        if not any(_outdated(stack, bpffs, manifest)) and not retained(bpffs):
            return None
    command = [sys.executable, "-m", "node_agent.relink", str(bpffs), str(state)]
    # In a session of its own: what ends the agent's process group does not end it.
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Raises OSError with what it said."""
    _, trouble = process.communicate()
    if process.returncode:
        raise OSError(errno.EIO, f"links could not be moved: {trouble.strip()}")


def move(bpffs: Path, state: Path, manifest: Manifest) -> None:
    """Raises OSError, ValueError."""
    # What programs wrote to maps in whose place there are others now: twice, as the first time may take a while.
    catch_up(bpffs, state)
    catch_up(bpffs, state)
    begin(bpffs)
    with ExitStack() as stack:
        outdated = list(_outdated(stack, bpffs, manifest))
        # Those for IPv6 first: an earlier version's IPv4 program may be what refuses all IPv6.
        for name, program, link in sorted(outdated, key=lambda item: not item[0].endswith("6")):
            try:
                links.update(link, program)
            except OSError as error:
                if error.errno != errno.ENOLINK:  # its device or cgroup is gone: it is removed with the next look
                    raise OSError(error.errno, f"{name}: {error.strerror}") from error
    catch_up(bpffs, state)


def _outdated(stack: ExitStack, bpffs: Path, manifest: Manifest) -> Iterator[tuple[str, int, int]]:
    """Name of a program, its descriptor, and that of a link which has another one. They are closed with the stack."""
    programs: dict[str, tuple[int, int]] = {}
    for path in (bpffs / "links").glob("*"):
        kind, _, rest = path.name.partition("_")
        name = rest if kind == "cgroup" else rest.partition("_")[2]
        if name not in manifest.programs:
            continue
        if name not in programs:
            fd = links.open_pin(Path(manifest.programs[name].path))
            stack.callback(os.close, fd)
            programs[name] = fd, links.program_id(fd)
        link = links.open_pin(path)
        stack.callback(os.close, link)
        if links.program_of(link) != programs[name][1]:
            yield name, programs[name][0], link


def main() -> None:
    bpffs, state = map(Path, sys.argv[1:])
    manifest = read_manifest(state)
    if manifest is None:
        sys.exit(f"no manifest in {state}")
    try:
        move(bpffs, state, manifest)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
