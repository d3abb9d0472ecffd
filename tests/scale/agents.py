"""Agents as processes of their own, in network namespaces of their own, with real maps."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec

PATIENCE = 300.0  # seconds until it must have started
LOOK = 0.005  # seconds between questions whether it is ready


class Inside(Protocol):
    """A network namespace."""

    def entered(self) -> AbstractContextManager[None]: ...


class StartError(Exception):
    """The agent did not start; the text is what it said last."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where agents are started, one after the other."""

    node: str
    namespace: Inside
    bpffs: Path
    cgroup: Path
    state: Path
    cache: Path
    before: tuple[str, ...] = ()  # the command that runs it
    options: tuple[str, ...] = ()  # of the agent


class Event(msgspec.Struct, frozen=True):
    """A line of the agent's log."""

    message: str
    time: str


@dataclass(frozen=True, slots=True)
class Start:
    """`seconds` from the process's start until all was in the maps, `busy` of them on a CPU; `resident` and `peak` in
    bytes, at that time."""

    seconds: float
    busy: float
    resident: int
    peak: int
    status: dict[str, Any]
    log: tuple[tuple[float, str], ...]  # seconds from the start, what

    @property
    def entries(self) -> dict[str, int]:
        return {name: found["entries"] for name, found in self.status["maps"].items() if not found.get("evicts")}


@asynccontextmanager
async def started(where: Place, endpoint: str, cluster: str, *wrapper: str) -> AsyncIterator[tuple[Start, int]]:
    """An agent with all that it wants in its maps, and its process id. `wrapper`: what runs it. Raises StartError."""
    command = [
        *(*where.before, sys.executable, *wrapper, "-m", "node_agent", f"--etcd={endpoint}", f"--cluster={cluster}"),
        *(f"--node={where.node}", f"--bpffs={where.bpffs}", f"--state={where.state}"),
        *(f"--cache={where.cache}", f"--cgroup={where.cgroup}", f"--policy-log={where.state / 'policy.log'}"),
        *("--uplink=eth0", "--listen=", "--log-format=json", *where.options),
    ]
    log = where.state / "log"
    with where.namespace.entered(), log.open("wb") as output:
        begun, wall = time.monotonic(), time.time()
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: ASYNC220  # a spawn takes milliseconds
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(where.state / "agent.sock"))) as session:
            await _ready(session, process, log)
            seconds = time.monotonic() - begun
            memory, busy = _memory(process.pid), cpu(process.pid)
            async with session.get("http://agent/status") as answer:
                status = await answer.json()
        yield Start(seconds, busy, memory["VmRSS"], memory["VmHWM"], status, tuple(_events(log, wall))), process.pid
    finally:
        process.terminate()
        process.wait()


async def _ready(session: aiohttp.ClientSession, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ends = time.monotonic() + PATIENCE
    said = ""
    while time.monotonic() < ends:
        if process.poll() is not None:
            break
        try:
            async with session.get("http://agent/readyz") as answer:
                if answer.status == 200:
                    return
                said = await answer.text()
        except aiohttp.ClientError:
            pass  # it does not listen yet
        await asyncio.sleep(LOOK)
    raise StartError(f"the agent did not get ready: {said} {log.read_text()[-2000:]}")


def _memory(pid: int) -> dict[str, int]:
    """Bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name.rstrip(":"): int(rest[0]) << 10 for name, *rest in lines if name in ("VmRSS:", "VmHWM:")}


def cpu(pid: int) -> float:
    """Seconds that all threads of the process have run so far."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def _events(log: Path, begun: float) -> Iterator[tuple[float, str]]:
    for line in log.read_text().splitlines():
        found = msgspec.json.decode(line, type=Event)
        yield datetime.fromisoformat(found.time).timestamp() - begun, found.message
