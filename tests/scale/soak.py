"""Pods, Services and policies come, change and go for as long as is wanted; what becomes of memory, of the agent's maps
and of etcd's database.

    python -m tests.scale.soak [--minutes 30] [--scale 0.1] [--pods 20] [--policies 2] [--lives 5] [--checks 3]

Real etcd, both services, an agent with real maps. Now and then changes pause, and an agent that starts on such a node
with empty maps programs them from the same etcd: both must hold the same. Maps that programs write are left out, and so
are slots: which one a backend has depends on what came before it, so it is its Service's backends that are compared,
and what its ring and its slots lead to. A line of JSON each quarter of a minute, and one of what was found at the end.
Ends with 1 where maps differ or a process has ended. As root.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from statistics import linear_regression
from typing import NamedTuple

import aiohttp
import click
import msgspec
from tests.leftovers import BPF
from tests.scale import coldstart
from tests.scale.agents import Place, started
from tests.scale.arrivals import opened
from tests.scale.delays import tell
from tests.scale.population import Population
from tests.scale.steady import AGENT, services
from tests.scale.syncstart import KEYS, cluster

from node_agent.entries import Entries
from node_agent.loader import CACHE
from node_agent.table import ORDER
from tidegate.store.local import EtcdProcess

EVERY = 15.0  # seconds between looks
SETTLED = 10.0  # seconds after the last change until maps are compared
AGAIN = 3  # looks, where something may still be under way
# As compose/kubernetes/overlays/own-etcd has them, but for the retention.
ETCD_OPTIONS = (
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=5m",
    "--quota-backend-bytes=4294967296",
    "--snapshot-count=10000",
)
SIZE, IN_USE = "etcd_mvcc_db_total_size_in_bytes", "etcd_mvcc_db_total_size_in_use_in_bytes"

Held = dict[str, dict[bytes, bytes]]  # map → entries


class Rates(NamedTuple):
    """Changes a second."""

    pods: float
    policies: float
    lives: float


class Look(NamedTuple):
    at: float  # seconds from the beginning
    resident: dict[str, float]  # process → MB
    database: float  # MB
    in_use: float  # MB of it


def dump(state: Path) -> Held:
    """What the agent whose state lies there has programmed: comparable with another's."""
    maps, entries = opened(state)
    try:
        held = {name: maps[name].items() for name in ORDER}
    finally:
        maps.close()
    return without_slots(held, entries)


def without_slots(held: Held, entries: Entries) -> Held:
    """Backends under their Service and place in the order of their bytes; what leads to a slot leads to the backend."""
    at = {entries.backend_slot(key): value for key, value in held["backends"].items()}
    of: dict[int, list[bytes]] = defaultdict(list)
    for (service, _), value in at.items():
        of[service].append(value)
    ordered = {
        entries.backend_key(service, place): value
        for service, values in of.items()
        for place, value in enumerate(sorted(values))
    }

    def led(name: str) -> dict[bytes, bytes]:
        found = {}
        for key, value in held[name].items():
            (service,) = entries.selections(name, key, value)
            found[key] = at.get((service, int.from_bytes(value, sys.byteorder)), b"")
        return found

    return {**held, "backends": ordered, "slots": led("slots"), "ring": led("ring")}


def differences(one: Held, other: Held) -> dict[str, int]:
    """Map → keys under which they do not hold the same."""
    found = {name: len(set(entries.items()) ^ set(other[name].items())) for name, entries in one.items()}
    return {name: count for name, count in found.items() if count}


class Soak:
    def __init__(self, scale: float, rates: Rates, directory: Path, cache: Path = CACHE) -> None:
        self._population = Population(scale)
        self._scale = scale
        self._rates = rates
        self._directory = directory
        self._cache = cache
        self._began = time.monotonic()
        self._etcd = EtcdProcess(directory / "etcd", options=ETCD_OPTIONS)
        self._watched: dict[str, int] = {}
        self.looks: list[Look] = []
        self.checks: list[dict[str, int]] = []  # of each, what differed

    async def run(self, minutes: float, checks: int) -> None:
        """Raises ProcessError, StartError and whatever else ends too early."""
        async with AsyncExitStack() as stack:
            where = stack.enter_context(coldstart.place(self._population, self._cache))
            stack.callback(self._etcd.stop)
            await self._etcd.start()
            near = f"--near={coldstart.NODE}"
            kubeconfig, making = await stack.enter_async_context(cluster(self._scale, self._directory, near))
            self._watched = await stack.enter_async_context(services(kubeconfig, self._etcd, self._directory))
            _, self._watched[AGENT] = await stack.enter_async_context(started(where, self._etcd.unix, KEYS.cluster))
            self._watched["etcd"] = self._etcd.pid
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(tell(making))
                for _ in range(checks):
                    self._order(making, self._rates)
                    await self._look_for(minutes * 60 / checks)
                    self._order(making, Rates(0, 0, 0))
                    await self._check(where)
                telling.cancel()

    @staticmethod
    def _order(making: asyncio.subprocess.Process, rates: Rates) -> None:
        assert making.stdin is not None
        making.stdin.write(f"churn {rates.pods} {rates.policies} {rates.lives}\n".encode())

    async def _look_for(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (rest := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(EVERY, rest))
            resident = {name: _resident(pid) for name, pid in self._watched.items()}
            database, in_use = await self._database()
            self.looks.append(Look(round(time.monotonic() - self._began, 1), resident, database, in_use))
            click.echo(msgspec.json.encode(self.looks[-1]._asdict()))

    async def _database(self) -> tuple[float, float]:
        """MB of it, and MB of that in use."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self._etcd.endpoint}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found = dict(line.split() for line in lines if line.startswith((SIZE, IN_USE)))
        return round(float(found[SIZE]) / 1e6, 1), round(float(found[IN_USE]) / 1e6, 1)

    async def _check(self, where: Place) -> None:
        """Compares with what a fresh agent programs."""
        differing: dict[str, int] = {}
        for _ in range(AGAIN):
            await asyncio.sleep(SETTLED)
            with ExitStack() as stack:
                other = stack.enter_context(coldstart.place(self._population, self._cache, "soak"))
                async with started(other, self._etcd.unix, KEYS.cluster):
                    differing = differences(dump(where.state), dump(other.state))
            if not differing:
                break
        self.checks.append(differing)
        click.echo(msgspec.json.encode({"check": len(self.checks), "differing": differing}))

    def found(self) -> dict[str, object]:
        """Of the second half: by how much resident memory rises in an hour, and its extremes; in MB."""
        half = self.looks[len(self.looks) // 2 :]
        memory = {}
        for name in self._watched:
            values = [look.resident[name] for look in half]
            rise = linear_regression([look.at / 3600 for look in half], values).slope
            memory[name] = {"an_hour": round(rise, 1), "least": min(values), "most": max(values)}
        database = {"most": max(look.database for look in self.looks), "in_use": half[-1].in_use}
        return {"seconds": self.looks[-1].at, "memory": memory, "database": database, "differing": self.checks}


def _resident(pid: int) -> float:
    """MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6, 1)


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--scale", default=0.1, show_default=True)
@click.option("--pods", default=20.0, show_default=True, help="Changes a second.")
@click.option("--policies", default=2.0, show_default=True, help="Changes a second.")
@click.option("--lives", default=5.0, show_default=True, help="Pods, Services and policies that come or go, a second.")
@click.option("--checks", default=3, show_default=True, help="How often maps are compared, the last time at the end.")
def main(minutes: float, scale: float, pods: float, policies: float, lives: float, checks: int) -> None:
    """Measures."""
    if not os.path.ismount(BPF):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPF)], check=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        soak = Soak(scale, Rates(pods, policies, lives), Path(directory))
        asyncio.run(soak.run(minutes, checks))
    click.echo(msgspec.json.encode(soak.found()))
    sys.exit(1 if any(soak.checks) else 0)


if __name__ == "__main__":
    main()
