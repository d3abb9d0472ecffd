"""What the sync services do at 1/20 of the largest size, in operations: for all of it, for a restart, and for a change.

Function calls, Python's and C's, are counted at two sizes: a cost that is of the whole, where it should be of the
change, is five times as large in one as in the other.
"""

import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from types import FrameType
from typing import NamedTuple

from tests.endpoint_sync.world import KEYS, World
from tests.scale import objects
from tests.scale.apiserver import LoadedApi
from tests.scale.cluster import Cluster
from tests.scale.population import Population

from tidegate.kube.watch import ENDPOINT_SLICES, SERVICES
from tidegate.store import MAX_OPERATIONS

LARGE, SMALL = 0.05, 0.01
SLACK = 1.3  # how much more calls there may be, for an object or a change, at the larger size
WRITERS = ("endpoint-sync", "policy-sync")


class Calls:
    """Function calls since it was made, until `stop`."""

    def __init__(self) -> None:
        self.count = 0
        sys.setprofile(self._note)

    def _note(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.count += event in ("call", "c_call")

    def stop(self) -> int:
        sys.setprofile(None)
        return self.count


class Cost(NamedTuple):
    calls: int
    transactions: int
    operations: int  # in them
    keys: set[str]
    size: int  # bytes of their values


async def complete(world: World) -> None:
    """Both services have written all there is."""
    await world.until(lambda: all(KEYS.synced(writer) in world.store.values() for writer in WRITERS))
    await world.settle()


async def nothing() -> None:
    pass


async def cost(world: World, change: Callable[[], Awaitable[object]]) -> Cost:
    """Of the change, without what the waiting for its end takes."""
    found, waiting = await _cost(world, change), await _cost(world, nothing)
    return found._replace(calls=found.calls - waiting.calls)


async def _cost(world: World, change: Callable[[], Awaitable[object]]) -> Cost:
    before, transactions, operations = world.values(), world.store.transactions, world.store.operations
    calls = Calls()
    try:
        await change()
        await world.settle()
    finally:
        count = calls.stop()
    after = world.values()
    keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    size = sum(len(after.get(key, b"")) for key in keys)
    return Cost(count, world.store.transactions - transactions, world.store.operations - operations, keys, size)


class Stand:
    """Both services at a cluster of some size."""

    def __init__(self, scale: float) -> None:
        self.cluster = Cluster(Population(scale))
        self.world = World(self.cluster.api)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Cost]:
        """What their start costs."""
        before = Calls()
        try:
            async with self.world.running():
                await complete(self.world)
                calls = before.stop()
                store, values = self.world.store, self.world.values()
                yield Cost(calls, store.transactions, store.operations, set(values), sum(map(len, values.values())))
        finally:
            before.stop()


async def starts(scale: float) -> tuple[int, Cost]:
    """Objects, and what it costs to start with them."""
    stand = Stand(scale)
    async with stand.running() as found:
        return stand.cluster.api.size, found


async def test_a_start_costs_in_proportion_to_the_objects() -> None:
    many, large = await starts(LARGE)
    few, small = await starts(SMALL)
    assert large.calls / many < SLACK * small.calls / few
    # Each key once, and few more: what is asked for and answered between the services, and marks.
    assert large.operations < len(large.keys) + 20
    assert large.transactions < 1.1 * len(large.keys) / MAX_OPERATIONS + 20


async def test_a_start_lists_each_kind_once_and_a_restart_writes_nothing() -> None:
    stand = Stand(LARGE)
    async with stand.running():
        kinds = stand.cluster.api.lists
        assert kinds == 7  # those of endpoint-sync, and namespaces and policies
        written = stand.world.values()
        revision = stand.world.store.revision
    operations = stand.world.store.operations
    async with stand.world.running():
        await complete(stand.world)
        assert stand.world.values() == written
        assert stand.world.store.operations - operations < 12  # beginnings of chains, and marks
        assert stand.cluster.api.lists == 2 * kinds
    assert revision < stand.world.store.revision


async def test_what_stays_is_not_searched_for_cycles() -> None:
    """A look at all of it would hold the services up for a second at full size."""
    stand = Stand(LARGE)
    gc.freeze()
    try:
        async with stand.running():
            assert len(gc.get_objects()) < stand.cluster.api.size / 2
    finally:
        gc.unfreeze()


async def changes(scale: float) -> dict[str, Cost]:
    """What one change of each sort costs."""
    stand = Stand(scale)
    cluster = stand.cluster

    async def pod() -> None:
        cluster.change_pod()

    async def policy() -> None:
        cluster.change_policy()

    async with stand.running():
        await cost(stand.world, pod)  # what is done once only has been done
        await cost(stand.world, policy)
        return {"pod": await cost(stand.world, pod), "policy": await cost(stand.world, policy)}


async def test_a_change_costs_the_same_whatever_the_size() -> None:
    large, small = await changes(LARGE), await changes(SMALL)
    for kind, found in large.items():
        assert found.calls < SLACK * small[kind].calls, kind
    # A pod that is not ready any more changes a shard of each of its two Services.
    assert {key.split("/")[0] for key in large["pod"].keys} == {"backends"}
    assert len(large["pod"].keys) == 2
    assert large["pod"].transactions <= 2
    assert len(large["policy"].keys) <= 8
    assert large["policy"].transactions <= 3


class Big:
    """One Service with so many backends."""

    def __init__(self, count: int) -> None:
        population = Population(LARGE)
        self.api = LoadedApi()
        self.world = World(self.api)
        workload = next(population.workloads())
        (self._service, *_) = population.services_of(workload)
        self._where = workload.namespace.name
        self._slices = dict(objects.slices(self._service, islice(population.pods(), count)))
        self.api.fill([(SERVICES.path, (self._where, self._service.name), objects.service(self._service, 2))])
        for name in self._slices:
            self.put(name)

    def put(self, name: str, less: int = 0) -> None:
        """The slice as it is in full, less so many endpoints."""
        chunk = self._slices[name][less:]
        item = objects.endpoint_slice(self._service, name, chunk, self.api.next_version)
        self.api.put(ENDPOINT_SLICES.path, (self._where, name), item)

    async def changes(self) -> list[Cost]:
        """One backend goes, and comes."""
        name = next(reversed(self._slices))

        async def change(less: int) -> None:
            self.put(name, less)

        async with self.world.running(policy=False):
            await self.world.until(lambda: KEYS.synced("endpoint-sync") in self.world.store.values())
            await self.world.settle()
            for less in (1, 0):  # what is done once only has been done
                await cost(self.world, partial(change, less))
            return [await cost(self.world, partial(change, less)) for less in (1, 0)]


async def test_one_backend_of_ten_thousand_costs_what_one_of_a_thousand_does() -> None:
    large, small = await Big(10_000).changes(), await Big(1_000).changes()
    for found, other in zip(large, small, strict=True):
        assert found.calls < SLACK * other.calls
        assert len(found.keys) == 1
        assert found.size < 3000
        assert found.transactions == 1


def test_a_change_costs_its_maker_the_same_however_many_there_were() -> None:
    """Or a backlog grows that is none of the services'."""
    cluster = Cluster(Population(0.02))

    def cost_of(changes: int) -> int:
        calls = Calls()
        try:
            for _ in range(changes):
                cluster.change_pod()
        finally:
            count = calls.stop()
        return count

    first = cost_of(50)
    for _ in range(1500):
        cluster.change_pod()
    assert cost_of(50) < SLACK * first
