"""An agent's cold start: a real one, in a network namespace of its own, with real maps that are empty.

Its programs have been compiled before (the loader's cache), as they are on a node whose image holds them; they are
loaded anew. `python -m tests.scale.coldstart ENDPOINT CLUSTER` measures one against an etcd that is filled already.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from tests.leftovers import BPF, cgroup2, sweep
from tests.node_agent.netns import PREFIX, Namespace, name_of
from tests.scale.population import Population

from node_agent.loader import CACHE

NODE = 1  # of the population: whose agent it is
PATIENCE = 120.0  # seconds until it must have started
LOOK = 0.005  # seconds between questions whether it is ready


class StartError(Exception):
    """The agent did not start; the text is what it said last."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where agents are started, one after the other."""

    namespace: Namespace
    bpffs: Path
    cgroup: Path
    state: Path
    cache: Path


class Event(msgspec.Struct, frozen=True):
    """A line of the agent's log."""

    message: str
    time: str


@dataclass(frozen=True, slots=True)
class Start:
    """`seconds` from the process's start until all was in the maps; `resident` and `peak` in bytes, at that time."""

    seconds: float
    resident: int
    peak: int
    status: dict[str, Any]
    log: tuple[tuple[float, str], ...]  # seconds from the start, what

    @property
    def entries(self) -> dict[str, int]:
        return {name: found["entries"] for name, found in self.status["maps"].items() if not found.get("evicts")}


@contextmanager
def place(population: Population, cache: Path = CACHE) -> Iterator[Place]:
    """The network of one node of the population, with a device for one of its pods, and no programs yet."""
    sweep(PREFIX)
    node = population.node(NODE)
    pod = next(pod for pod in population.pods() if pod.node == node)
    bpffs, cgroup = BPF / name_of("cold"), cgroup2() / name_of("cold")
    namespaces = [Namespace("cold"), Namespace("cold-out"), Namespace("cold-pod")]
    inside, outside, pods = namespaces
    with tempfile.TemporaryDirectory(prefix="tgt-cold-") as state:
        try:
            bpffs.mkdir()
            cgroup.mkdir()
            inside.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside.name)
            inside.ip("link", "add", "vethpod", "type", "veth", "peer", "name", "eth0", "netns", pods.name)
            inside.ip("addr", "add", f"{node.address}/12", "dev", "eth0")
            for namespace, device in ((inside, "eth0"), (inside, "vethpod"), (outside, "eth0"), (pods, "eth0")):
                namespace.ip("link", "set", device, "up")
            inside.ip("route", "add", pod.address, "dev", "vethpod")
            yield Place(inside, bpffs, cgroup, Path(state), cache)
        finally:
            for namespace in namespaces:
                namespace.remove()
            shutil.rmtree(bpffs, ignore_errors=True)
            cgroup.rmdir()


def forget(where: Place) -> None:
    """What earlier agents left: after this the next start is a cold one."""
    for path in where.bpffs.iterdir():
        shutil.rmtree(path)


@asynccontextmanager
async def started(where: Place, endpoint: str, cluster: str, *wrapper: str) -> AsyncIterator[tuple[Start, int]]:
    """An agent with all that it wants in its maps, and its process id. `wrapper`: what runs it. Raises StartError."""
    command = [
        *(sys.executable, *wrapper, "-m", "node_agent", f"--etcd={endpoint}", f"--cluster={cluster}"),
        *(f"--node={Population().node(NODE).name}", f"--bpffs={where.bpffs}", f"--state={where.state}"),
        *(f"--cache={where.cache}", f"--cgroup={where.cgroup}", f"--policy-log={where.state / 'policy.log'}"),
        *("--uplink=eth0", "--listen=", "--log-format=json"),
    ]
    log = where.state / "log"
    with where.namespace.entered(), log.open("wb") as output:
        begun, wall = time.monotonic(), time.time()
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: ASYNC220  # a spawn takes milliseconds
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(where.state / "agent.sock"))) as session:
            await _ready(session, process, log)
            seconds = time.monotonic() - begun
            memory = _memory(process.pid)
            async with session.get("http://agent/status") as answer:
                status = await answer.json()
        yield Start(seconds, memory["VmRSS"], memory["VmHWM"], status, tuple(_events(log, wall))), process.pid
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


def _events(log: Path, begun: float) -> Iterator[tuple[float, str]]:
    for line in log.read_text().splitlines():
        found = msgspec.json.decode(line, type=Event)
        yield datetime.fromisoformat(found.time).timestamp() - begun, found.message


def main() -> None:
    endpoint, cluster, *wrapper = sys.argv[1:]
    if not os.path.ismount(BPF):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPF)], check=True)

    async def measure(where: Place) -> None:
        async with started(where, endpoint, cluster, *wrapper) as (found, _):
            figures = {
                "seconds": round(found.seconds, 2),
                "resident_mb": round(found.resident / 1e6),
                "peak_mb": round(found.peak / 1e6),
                "entries": found.entries,
                "log": found.log,
                "problems": len(found.status["problems"]),
            }
            sys.stdout.write(json.dumps(figures) + "\n")

    with place(Population()) as where:
        asyncio.run(measure(where))


if __name__ == "__main__":
    main()
