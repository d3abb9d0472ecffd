"""An agent's cold start in the largest cluster (tests.scale): how long until all is in its maps, and what it takes."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.model import Limit, Measurement, Result, Size, Tick
from tests.scale.agents import Place, Start, started
from tests.scale.coldstart import forget, place
from tests.scale.loading import fill
from tests.scale.population import Population
from tests.scale.records import records, services_alone

from node_agent.loader import CACHE
from tidegate.records import Keyspace
from tidegate.runtime.settings import CommonSettings
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

MEGABYTE = 1e6
ALL, SERVICES = "all", "services"  # clusters in one etcd

SECONDS, BUSY = "until the last entry is in the maps", "of it the agent on a CPU"
RESIDENT, PEAK = "resident then", "most until then"
# Lines of the agent's log → what has been done by then.
PHASES = {
    "programs attached": "until the programs are loaded and attached",
    "snapshot read": "until etcd has been read",
}


@dataclass(frozen=True, slots=True)
class Filled:
    """An etcd that holds the population, and a node."""

    etcd: EtcdProcess
    where: Place


@contextmanager
def filled(size: Size, cache: Path = CACHE) -> Iterator[Filled]:
    """Raises StoreError."""
    population = Population(size.scale)
    with tempfile.TemporaryDirectory(prefix="tgt-bench-") as directory, place(population, cache) as where:
        etcd = EtcdProcess(Path(directory) / "etcd")
        try:
            asyncio.run(_fill(etcd, population))
            yield Filled(etcd, where)
        finally:
            etcd.kill()


async def _fill(etcd: EtcdProcess, population: Population) -> None:
    await etcd.start()
    store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
    try:
        await fill(store, records(population, Keyspace(ALL)))
        await fill(store, services_alone(population, Keyspace(SERVICES)))
    finally:
        await store.close()


async def start(built: Filled, cluster: str) -> Start:
    """A cold one, to its end. Raises StartError."""
    forget(built.where)
    async with started(built.where, built.etcd.unix, cluster) as (found, _):
        return found


def _measurement(name: str, what: str, cluster: str, megabytes: float) -> Measurement[Filled]:
    def run(built: Filled, size: Size, tick: Tick) -> Result:
        samples: dict[str, list[float]] = {}
        asyncio.run(start(built, cluster))  # what is to be compiled has been, after this
        for _ in range(size.runs):
            found = asyncio.run(start(built, cluster))
            passed = {what: next(at for at, line in found.log if line == event) for event, what in PHASES.items()}
            passed |= {SECONDS: found.seconds, BUSY: found.busy}
            passed |= {RESIDENT: found.resident / MEGABYTE, PEAK: found.peak / MEGABYTE}
            for series, sample in passed.items():
                samples.setdefault(series, []).append(sample)
            tick()
        limits = (
            *(Limit(phase) for phase in PHASES.values()),
            Limit(SECONDS, at_most=3.0),
            Limit(BUSY),
            Limit(RESIDENT, at_most=megabytes, unit="MB"),
            Limit(PEAK, unit="MB"),
        )
        return Result(name, what, "s", {n: tuple(s) for n, s in samples.items()}, limits=limits)

    return Measurement(name, what, lambda size: size.runs, run)


MEASUREMENTS = (
    _measurement("cold-start-services", "agent's start, Services alone", SERVICES, 150),
    _measurement("cold-start-all", "agent's start, the whole cluster", ALL, 300),
)
