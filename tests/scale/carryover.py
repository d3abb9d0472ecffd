"""What it takes an agent to take over where every struct in the maps has another layout, and back.

    python -m tests.scale.carryover [--scale 1] [--connections 100000]

The cluster is in the maps, and so many connections. Agents of this version and of one that differs in all that
tests.node_agent.test_upgrade changes follow each other; both have been compiled before. A line of JSON for each:
seconds from its start until its programs are in place, with what its log says of the way there. As root.
"""

import asyncio
import os
import tempfile
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import click
import msgspec
from tests.node_agent.test_upgrade import write_next_version
from tests.scale.agents import Place, Start, started
from tests.scale.arrivals import opened
from tests.scale.growth import KEYS, mounted
from tests.scale.loading import fill
from tests.scale.population import Population
from tests.scale.records import records

from node_agent.loader import CACHE
from tidegate.runtime.settings import CommonSettings
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

STARTS = 5


def fill_connections(where: Place, count: int) -> None:
    """As if so many more connections were under way."""
    maps, _ = opened(where.state)
    try:
        connections = maps["connections"]
        size = connections.value.size
        connections.update_all({os.urandom(connections.key.size): bytes(size) for _ in range(count)})
    finally:
        maps.close()


def figures(version: str, found: Start, connections: int) -> dict[str, object]:
    return {
        "version": version,
        "seconds": round(found.seconds, 2),
        "busy": round(found.busy, 2),
        "peak_mb": round(found.peak / 1e6),
        "entries": sum(found.entries.values()),
        "connections": connections,
        "log": [(round(at, 2), what) for at, what in found.log],
    }


async def measure(scale: float, connections: int, directory: Path, cache: Path = CACHE) -> None:
    population = Population(scale)
    write_next_version(directory / "next")
    etcd = EtcdProcess(directory / "etcd", options=["--quota-backend-bytes=8000000000"])
    with mounted(population, str(scale), cache) as where:
        try:
            await etcd.start()
            store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
            try:
                await fill(store, records(population, KEYS))
            finally:
                await store.close()
            another = replace(where, before=("env", f"TIDEGATE_SOURCE={directory / 'next'}"))  # the loader's
            for version, place in islice(cycle({"this": where, "next": another}.items()), STARTS):
                async with started(place, etcd.unix, KEYS.cluster) as (found, _):
                    maps, _ = opened(where.state)
                    carried = maps["connections"].count()
                    maps.close()
                click.echo(msgspec.json.encode(figures(version, found, carried)))
                fill_connections(where, connections - carried)
        finally:
            etcd.stop()


@click.command()
@click.option("--scale", default=1.0, show_default=True)
@click.option("--connections", default=100_000, show_default=True)
def main(scale: float, connections: int) -> None:
    """Measures. The first two starts compile and fill; the others count."""
    with tempfile.TemporaryDirectory(prefix="carryover-") as directory:
        asyncio.run(measure(scale, connections, Path(directory)))


if __name__ == "__main__":
    main()
