"""Taking a playground away, whatever state it is in: also one whose supervisor was killed, or that never came up."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from playground.layout import Layout
from playground.processes import ours, read_register
from playground.shell import run

PATIENCE = 8.0  # seconds for processes to end before they are killed


async def clean(layout: Layout, spare: int | None = None) -> None:
    """Removes processes, cgroups, namespaces, pins and files of the playground. `spare` is a pid to leave alone."""
    _end_processes(layout, spare)
    _kill_cgroup(layout.cgroup)
    await _delete_namespaces(layout)
    for directory in (layout.bpffs, layout.run):
        shutil.rmtree(directory, ignore_errors=True)


def _end_processes(layout: Layout, spare: int | None) -> None:
    register = read_register(layout.state)
    entries = register.get("processes", {})
    known = [entry for entry in entries.values() if entry["pid"] != spare] if isinstance(entries, dict) else []
    # The supervisor first, or it would start the others again.
    known.sort(key=lambda entry: entry["pid"] != register.get("supervisor"))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for entry in known:
            if ours(entry):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(entry["pid"], number)
        deadline = time.monotonic() + PATIENCE
        while any(ours(entry) for entry in known) and time.monotonic() < deadline:
            time.sleep(0.02)


def _kill_cgroup(root: Path) -> None:
    if not root.exists():
        return
    killer = root / "cgroup.kill"
    if killer.exists():
        killer.write_text("1")
    deadline = time.monotonic() + PATIENCE
    while "populated 1" in (root / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    for directory, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()


async def _delete_namespaces(layout: Layout) -> None:
    directory = Path("/run/netns")
    if not directory.exists():
        return
    names = [entry.name for entry in directory.iterdir() if layout.owns(entry.name)]
    if names:
        lines = "".join(f"netns delete {name}\n" for name in names)
        await run("ip", "-force", "-batch", "-", text=lines, ok=(0, 1))
