"""Running programs: what the playground does to the machine goes through here."""

import asyncio
from collections.abc import Sequence
from pathlib import Path


class CommandError(Exception):
    """A program failed; the text has its command line and what it said."""


async def run(*command: str, text: str | None = None, ok: Sequence[int] = (0,)) -> str:
    """Runs a program to its end, with `text` as its input; returns its output. Raises CommandError."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if text is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, trouble = await process.communicate(text.encode() if text is not None else None)
    if process.returncode not in ok:
        raise CommandError(f"{' '.join(command)}: {trouble.decode(errors='replace').strip()}\n{text or ''}")
    return output.decode()


async def ip(lines: Sequence[str], namespace: str | None = None) -> None:
    """Carries out `ip` commands, one a line without the word `ip`, in a network namespace. Stops at the first error."""
    where = ("-n", namespace) if namespace else ()
    await run("ip", *where, "-batch", "-", text="\n".join(lines) + "\n")


def inside(namespace: str, cgroup: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in a network namespace and a cgroup.

    Not by `ip netns exec`: that mounts /sys anew and hides cgroups and bpffs.
    """
    enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    return ["nsenter", f"--net=/run/netns/{namespace}", "sh", "-c", enter, str(cgroup), *command]
