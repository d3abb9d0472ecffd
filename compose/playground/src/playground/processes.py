"""Processes of the playground: started, started again when they die, known by pid and start time."""

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import Backoff

log = get_logger()

STABLE = 10.0  # seconds after which a restart is no longer one of a series


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid, its name for ever. None: there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


class Register:
    """Which processes are ours, in a file, for whoever cleans up after a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, object] = {"processes": {}}

    def note(self, **values: object) -> None:
        self._known.update(values)
        self._write()

    def process(self, name: str, pid: int) -> None:
        processes = self._known["processes"]
        assert isinstance(processes, dict)  # noqa: S101  # for the type checker
        processes[name] = {"pid": pid, "start": start_time(pid)}
        self._write()

    def _write(self) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(self._known, indent=1) + "\n")
        beside.replace(self._path)


def read_register(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def ways_in(register: dict[str, Any]) -> str:
    """How to speak to the playground."""
    lines = [f"kubeconfig: {register.get('kubeconfig')}", f"etcd: {register.get('etcd')}"]
    return "\n".join([*lines, *([" ".join(etcdctl(register))] if register.get("etcd_files") else [])])


def etcdctl(register: dict[str, Any]) -> list[str]:
    """The beginning of its command line, with all rights."""
    flags = {"etcd_ca": "--cacert", "etcd_cert": "--cert", "etcd_key": "--key"}
    files = [f"{flags[setting]}={path}" for setting, path in register.get("etcd_files", {}).items()]
    return ["etcdctl", f"--endpoints={register['etcd']}", *files]


def ours(entry: dict[str, int]) -> bool:
    """Whether the process of a register's entry still runs, and is not another one with its pid."""
    return start_time(entry["pid"]) == entry["start"] is not None


async def keep(name: str, command: Sequence[str], output: Path, register: Register) -> None:
    """Runs a process for ever: one that ends is started again, later and later while it ends at once."""
    backoff = Backoff(initial=0.1, cap=5.0)
    loop = asyncio.get_running_loop()
    while True:
        with output.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        register.process(name, process.pid)
        began = loop.time()
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await end(process)
            raise
        log.warning("process ended; starting it again", process=name, code=code, log=str(output))
        if loop.time() - began > STABLE:
            backoff.reset()
        await backoff.wait()


async def end(process: asyncio.subprocess.Process, patience: float = 5.0) -> None:
    """SIGTERM, then SIGKILL to whoever is deaf."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await process.wait()
                return
