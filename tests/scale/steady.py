"""How long a change at the API server takes to be in etcd, and in the maps of an agent's kernel, while many come; and
what the processes take for it.

    python -m tests.scale.steady [--scale 1] [--pods 100] [--policies 10] [--seconds 60]

A pod that is ready no more, or again, is in etcd when a shard of its Service's backends is; a policy that allows
another port, when rules made of it are. When they are in the maps says tests.scale.arrivals. The policies are those of
pods of the agent's node: of the others it has nothing to write. A line of JSON for each place and sort of change, one
for each minute, and one for the processes. As root.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from tests.leftovers import BPF
from tests.scale import coldstart
from tests.scale.agents import started
from tests.scale.arrivals import opened, places, watching
from tests.scale.delays import KINDS, POD, POLICY, Change, Delay, Delays, tell
from tests.scale.fanout import percentile
from tests.scale.population import Population
from tests.scale.syncstart import KEYS, SERVICES, cluster, marked, process, service_command, usage

from node_agent.loader import CACHE
from tidegate.records import Rules, decode
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Batch, Put
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

WARM = 5.0  # seconds of changes before those that count
LATE = 5.0  # seconds that the last ones have
MINUTE = 60.0

ETCD, MAPS = PLACES = "etcd", "maps"
AGENT = "node-agent"


class Steady(NamedTuple):
    delays: dict[str, dict[str, list[Delay]]]  # place → kind of change → what changes took to be there
    lost: dict[str, int]  # place → changes that have not come
    cpu: dict[str, float]  # process → cores
    peak: dict[str, float]  # MB

    def took(self, place: str, kind: str) -> list[float]:
        """Milliseconds."""
        return [delay.took for delay in self.delays[place][kind]]


async def written(store: EtcdStore, delays: Delays) -> None:
    """Notes what etcd tells. Never returns."""
    async with aclosing(store.follow(KEYS.prefix)) as changes:
        async for change in changes:
            now = time.monotonic()
            for operation in change.operations if isinstance(change, Batch) else ():
                if isinstance(operation, Put):
                    for each in causes(operation):
                        delays.arrived(each, now)


def causes(operation: Put) -> list[Change]:
    """What may have made the services write this."""
    parsed = KEYS.parse(operation.key)
    if parsed is not None and parsed.kind is Rules:
        return [(POLICY, *name.split("/")) for name in decode(Rules, operation.value).policies]  # type: ignore[misc]
    if parsed is not None and parsed.kind.kind == "backends":
        return [(POD, parsed.name[0], parsed.name[1])]
    return []


@asynccontextmanager
async def services(kubeconfig: Path, etcd: EtcdProcess, directory: Path) -> AsyncIterator[dict[str, int]]:
    """Both, once all is in etcd: name → pid."""
    store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        pids = {}
        for service in SERVICES:
            command = service_command(service, kubeconfig, etcd.endpoint)
            waiting = asyncio.create_task(marked(store, service))
            running = await stack.enter_async_context(process(command, directory / f"{service}.log"))
            await waiting
            pids[service] = running.pid
        yield pids


async def measure(
    scale: float, rates: tuple[float, float], seconds: float, directory: Path, cache: Path = CACHE
) -> Steady:
    """`rates`: of pods and policies, changes a second. `cache`: the agents' compiled programs."""
    population = Population(scale)
    async with AsyncExitStack() as stack:
        where = stack.enter_context(coldstart.place(population, cache, "steady"))
        etcd = EtcdProcess(directory / "etcd", options=["--quota-backend-bytes=8000000000"])
        stack.callback(etcd.stop)
        await etcd.start()
        near = f"--near={coldstart.NODE}"
        kubeconfig, making = await stack.enter_async_context(cluster(scale, directory, near))
        pids = await stack.enter_async_context(services(kubeconfig, etcd, directory))
        _, pids[AGENT] = await stack.enter_async_context(started(where, etcd.unix, KEYS.cluster))
        store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
        stack.push_async_callback(store.close)
        maps, entries = opened(where.state)
        stack.callback(maps.close)
        watch = watching(await places(population, coldstart.NODE, KEYS, store, maps, entries))
        delays = {place: Delays() for place in PLACES}
        watched = {**pids, "etcd": etcd.pid}
        async with asyncio.TaskGroup() as group:
            reading = [
                group.create_task(tell(making, *delays.values())),
                group.create_task(written(store, delays[ETCD])),
                group.create_task(watch(delays[MAPS])),
            ]
            await asyncio.sleep(1)
            cpu = await _change(making, rates, seconds, watched, [*delays.values()])
            counted = {place: {kind: [*found] for kind, found in of.found.items()} for place, of in delays.items()}
            _order(making, 0, 0)
            await asyncio.sleep(LATE)
            for task in reading:
                task.cancel()
        lost = {place: len(of.due) for place, of in delays.items()}
        return Steady(counted, lost, cpu, {name: usage(pid)[1] for name, pid in watched.items()})


async def _change(
    making: asyncio.subprocess.Process,
    rates: tuple[float, float],
    seconds: float,
    watched: Mapping[str, int],
    delays: Sequence[Delays],
) -> dict[str, float]:
    """Process → cores, while so much changes, which goes on."""
    _order(making, *rates)
    await asyncio.sleep(WARM)
    for each in delays:
        each.clear()
    before, began = {name: usage(pid)[0] for name, pid in watched.items()}, time.monotonic()
    await asyncio.sleep(seconds)
    for each in delays:
        await each.any_of_each.wait()
    passed = time.monotonic() - began
    return {name: round((usage(pid)[0] - before[name]) / passed, 4) for name, pid in watched.items()}


def _order(making: asyncio.subprocess.Process, pods: float, policies: float) -> None:
    assert making.stdin is not None
    making.stdin.write(f"churn {pods} {policies}\n".encode())


def minutes(delays: Sequence[Delay]) -> list[list[float]]:
    """What the changes of each minute took: a backlog that grows shows in the later ones."""
    first = delays[0].since
    found: dict[int, list[float]] = {}
    for delay in delays:
        found.setdefault(int((delay.since - first) / MINUTE), []).append(delay.took)
    return [took for _, took in sorted(found.items())]


def _shares(took: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": round(percentile(took, share / 100), 2) for share in (50, 99, 100)}


@click.command()
@click.option("--scale", default=1.0, show_default=True)
@click.option("--pods", default=100.0, show_default=True, help="Changes a second.")
@click.option("--policies", default=10.0, show_default=True, help="Changes a second.")
@click.option("--seconds", default=60.0, show_default=True)
def main(scale: float, pods: float, policies: float, seconds: float) -> None:
    """Measures."""
    if not os.path.ismount(BPF):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPF)], check=True)
    with tempfile.TemporaryDirectory(prefix="steady-") as directory:
        found = asyncio.run(measure(scale, (pods, policies), seconds, Path(directory)))
    lines: list[dict[str, object]] = []
    for place in PLACES:
        for kind in KINDS:
            what, took = {"place": place, "change": kind}, found.took(place, kind)
            lines.append({**what, "scale": scale, "count": len(took), **_shares(took)})
            for number, of_minute in enumerate(minutes(found.delays[place][kind])):
                lines.append({**what, "minute": number, "count": len(of_minute), **_shares(of_minute)})
    for line in (*lines, {"lost": found.lost, "cpu": found.cpu, "peak": found.peak}):
        click.echo(msgspec.json.encode(line))


if __name__ == "__main__":
    main()
