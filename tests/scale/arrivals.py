"""When a change has come to the maps of an agent's kernel: whoever looks there sees what a packet would.

One entry tells of each change, and it alone is looked up, each millisecond while the change is due. So the agent is not
asked anything, and a delay is too long by a millisecond at most; looking takes about 0.05 of a core.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from tests.scale.cluster import subjects
from tests.scale.delays import POD, POLICY, Change, Delays
from tests.scale.population import Population

from node_agent.entries import Entries
from node_agent.loader import read_manifest
from node_agent.maps import Map, Maps
from tidegate.records import Identity, Keyspace, Service, decode
from tidegate.store import Store

LOOK = 0.001  # seconds

Place = tuple[Map, bytes]  # where an entry is: map and key


async def places(
    population: Population, node: int, keys: Keyspace, store: Store, maps: Maps, entries: Entries
) -> dict[Change, Place]:
    """By which entry each change of tests.scale.cluster is known on the node of that number: one of a pod by how many
    backends its workload's Service has; one of a policy by the rules to which the identity of its pods leads."""
    found: dict[Change, Place] = {}
    numbers: dict[tuple[str, str], int] = {}
    for key, value in (await store.snapshot(keys.prefix)).values.items():
        parsed = keys.parse(key)
        if parsed is None:
            continue
        if parsed.kind is Service:
            (port,) = decode(Service, value).ports
            found[POD, parsed.name[0], parsed.name[1]] = maps["services"], entries.service_key(port.id)
        elif parsed.kind is Identity:
            identity = decode(Identity, value)
            numbers[identity.namespace, identity.labels["app"]] = int(parsed.name[0])
    for workload in subjects(population, node):
        subject = entries.subject_key(numbers[workload.namespace.name, workload.name])
        for policy in population.policies_of(workload):
            found[POLICY, policy.namespace, policy.name] = maps["subjects"], subject
    return found


def opened(state: Path) -> tuple[Maps, Entries]:
    """The maps of the agent whose state lies there."""
    manifest = read_manifest(state)
    assert manifest is not None
    return Maps(manifest.maps), Entries(manifest.maps)


def watching(where: dict[Change, Place]) -> Callable[[Delays], Coroutine[None, None, None]]:
    """What is there now is known from here on; what is returned notes what comes, and never returns."""
    last = {(opened.name, key): opened.lookup(key) for opened, key in where.values()}

    async def watch(delays: Delays) -> None:
        while True:
            for change in [*delays.due]:
                opened, key = where[change]
                value = opened.lookup(key)
                if value != last[opened.name, key]:
                    last[opened.name, key] = value
                    delays.arrived(change, time.monotonic())
            await asyncio.sleep(LOOK)

    return watch
