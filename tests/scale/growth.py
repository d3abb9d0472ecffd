"""What an agent's start takes as the cluster grows: time, memory, and the kernel's memory for its maps.

    python -m tests.scale.growth [--services-alone] [SIZE …]

A size is a part of the largest cluster (0.1), or `million`: that cluster with 1,040,000 backends, of 40,000 Services,
and maps made for 1,100,000; or `beyond`: the same where the map of backends has 1,000,000 entries. A line of JSON each.
As root.
"""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import msgspec
from tests.leftovers import BPF
from tests.scale import coldstart
from tests.scale.agents import Place, started
from tests.scale.arrivals import opened
from tests.scale.loading import fill
from tests.scale.map_memory import MIB, memlock
from tests.scale.population import Population, Service, Workload
from tests.scale.records import records, services_alone

from node_agent.loader import CACHE
from tidegate.records import Keyspace
from tidegate.runtime.settings import CommonSettings
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

KEYS = Keyspace("growth")
MILLION, BEYOND = "million", "beyond"
EACH = 8  # Services of a workload that serves
OPTIONS = {
    MILLION: ("--backends=1100000", "--frontends=45000"),
    BEYOND: ("--frontends=45000", "--map-size=backends=1000000"),
}


class Dense(Population):
    """With four times as many Services, of as many backends each; the additional ones have a ClusterIP alone."""

    def services_of(self, workload: Workload) -> list[Service]:
        found = super().services_of(workload)
        for number in range(len(found), EACH if found else 0):
            like = found[number % 2]
            index = number // 2 * self.service_count + like.index
            high, low = divmod(index, 256)
            found.append(
                replace(
                    like,
                    index=index,
                    name=f"{workload.name}-{number}",
                    uid=f"{number:08}{like.uid[8:]}",
                    cluster_ip=f"10.{96 + (high >> 8)}.{high & 255}.{low}",
                    load_balancer_ip="",
                    node_port=0,
                )
            )
        return found


def population_of(size: str) -> Population:
    return Dense() if size in OPTIONS else Population(float(size))


@contextmanager
def mounted(population: Population, size: str, cache: Path) -> Iterator[Place]:
    if not os.path.ismount(BPF):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPF)], check=True)
    with coldstart.place(population, cache, "growth") as where:
        yield replace(where, options=OPTIONS.get(size, ()))


async def measure(size: str, alone: bool, directory: Path, cache: Path = CACHE) -> dict[str, object]:
    """Megabytes, but of the maps: MiB."""
    population = population_of(size)
    made = services_alone if alone else records
    etcd = EtcdProcess(directory / "etcd", options=["--quota-backend-bytes=8000000000"])
    with mounted(population, size, cache) as where:
        try:
            await etcd.start()
            store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
            try:
                keys = await fill(store, made(population, KEYS))
            finally:
                await store.close()
            async with started(where, etcd.unix, KEYS.cluster):
                pass  # what is to be compiled has been, after this
            coldstart.forget(where)
            async with started(where, etcd.unix, KEYS.cluster) as (found, _):
                maps, _ = opened(where.state)
                memory = {name: memlock(one.fd) for name, one in maps.items()}
                maps.close()
                refused = found.status["refused"]
        finally:
            etcd.stop()
    return {
        "size": size,
        "services_alone": alone,
        "keys": keys,
        "seconds": round(found.seconds, 2),
        "busy": round(found.busy, 2),
        "resident": round(found.resident / 1e6),
        "peak": round(found.peak / 1e6),
        "maps_mib": round(sum(memory.values()) / MIB, 1),
        "of_the_agent_mib": {n: round(memory[n] / MIB, 1) for n, entries in found.entries.items() if entries > 1000},
        "entries": {name: entries for name, entries in found.entries.items() if entries},
        "refused": len(refused),
        "why": next(iter(refused.items()), None),
    }


@click.command()
@click.option("--services-alone", "alone", is_flag=True, help="Services and their backends, no pods and policies.")
@click.argument("sizes", nargs=-1)
def main(alone: bool, sizes: tuple[str, ...]) -> None:
    """Measures."""
    for size in sizes or ("0.1", "0.333", "1", MILLION, BEYOND):
        with tempfile.TemporaryDirectory(prefix="growth-") as directory:
            found = asyncio.run(measure(size, alone, Path(directory)))
        click.echo(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
