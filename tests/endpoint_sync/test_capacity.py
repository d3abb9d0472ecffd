"""What does not fit is held back, Service by Service, and told: in the store, and by an Event."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.endpoint_sync.world import KEYS, Object, World, endpoint_slice, service

from endpoint_sync.capacity import Ledger
from endpoint_sync.services import AVAILABLE, EXCEEDED
from tidegate.kube.events import Events, Notice
from tidegate.kube.fake import FakeApi
from tidegate.records import BackendShard, Capacity, Problem, Service
from tidegate.records.addresses import unpack_address
from tidegate.records.capacity import NOTHING, Amount

EVENTS = "/api/v1/namespaces/shop/events"


def ips(first: int, count: int) -> list[str]:
    return [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(first, first + count)]


def some(name: str, *addresses: str, ip: str = "", **spec: Any) -> tuple[Object, Object]:
    """A Service with one port, and its backends."""
    number = sum(map(ord, name)) % 250
    made = service(f"shop/{name}", ip or f"10.96.0.{number}", 80, **spec)
    made["metadata"]["uid"] = f"uid-{name}"
    return made, endpoint_slice(f"shop/{name}-1", name, *addresses)


@pytest.fixture
def world() -> World:
    made = World()
    made.capacity = Amount(backends=10, frontends=4, source_ranges=4)
    return made


@pytest.fixture
async def running(world: World) -> AsyncIterator[World]:
    async with world.running(policy=False):
        yield world


def backends(world: World, name: str) -> list[str]:
    shards = [record for key, record in world.records(BackendShard).items() if key[:2] == ("shop", name)]
    return sorted(unpack_address(backend.address) for shard in shards for backend in shard.backends)


def services(world: World) -> set[str]:
    return {name for _, name in world.records(Service)}


def events(world: World) -> list[tuple[str, str, int]]:
    """Service, reason, count."""
    found = world.api.objects(EVENTS)
    return [(item["involvedObject"]["name"], item["reason"], item["count"]) for item in found]


async def test_a_service_beyond_the_capacity_is_not_published_at_all(running: World) -> None:
    world = running
    assert world.records(Capacity) == {("capacity",): Capacity(backends=10, frontends=4, source_ranges=4)}
    await world.written(*some("a", *ips(0, 8)))
    keys = await world.written(*some("b", *ips(8, 3)))
    assert keys == {"meta/problems/endpoint-sync/Service/shop/b"}
    (problem,) = world.records(Problem).values()
    assert problem.held_back
    assert services(world) == {"a"}
    assert "3 backends where it has 0, and all Services may have 10" in problem.reason


async def test_others_go_on(running: World) -> None:
    world = running
    await world.written(*some("a", *ips(0, 8)), *some("b", *ips(8, 3)))
    await world.written(*some("c", *ips(20, 2)))
    assert services(world) == {"a", "c"}
    await world.written(some("a", *ips(1, 8))[1])
    assert backends(world, "a") == sorted(ips(1, 8)), "another one of the same size"


async def test_one_that_grows_keeps_its_last_state_whole_and_gets_its_new_one_when_there_is_room(
    running: World,
) -> None:
    world = running
    await world.written(*some("a", *ips(0, 5)), *some("b", *ips(20, 5)))
    before = world.values()
    await world.written(*some("a", *ips(0, 6), ip="10.96.0.7"))
    assert {k: v for k, v in world.values().items() if "problems" not in k} == before
    await world.written(some("a", *ips(2, 7))[1])
    assert {k: v for k, v in world.values().items() if "problems" not in k} == before
    await world.written(some("b", *ips(20, 3))[1])
    assert backends(world, "a") == sorted(ips(2, 7))
    assert [unpack_address(a) for a in world.records(Service)["shop", "a"].cluster_ips] == ["10.96.0.7"]
    assert world.problems() == {}


async def test_shards_that_changed_meanwhile_are_all_there_in_the_end(running: World) -> None:
    world = running
    world.endpoint_sync._services._ledger.limit = Amount(300, 9, 9)
    await world.written(*some("a", *ips(0, 100)), *some("b", *ips(500, 200)))
    await world.written(some("a", *ips(0, 290))[1])
    await world.written(some("a", *ips(40, 101))[1])
    assert backends(world, "a") == sorted(ips(0, 100))
    world.delete("Service", "shop", "b")
    await world.settle()
    assert backends(world, "a") == sorted(ips(40, 101))


async def test_one_that_shrinks_gives_room_in_the_same_breath(running: World) -> None:
    world = running
    await world.written(*some("a", *ips(0, 1)), *some("b", *ips(20, 9)))
    world.put(some("a", *ips(0, 9))[1], some("b", *ips(20, 1))[1])
    await world.settle()
    assert (len(backends(world, "a")), len(backends(world, "b"))) == (9, 1)
    assert events(world) == []


@pytest.mark.parametrize("order", [1, -1])
async def test_of_those_that_come_together_the_names_decide(world: World, order: int) -> None:
    for pair in [some(name, *ips(number * 20, 4)) for number, name in enumerate("abc")][::order]:
        world.put(*pair)
    async with world.running(policy=False):
        assert services(world) == {"a", "b"}


async def test_frontends_and_source_ranges_count(running: World) -> None:
    world = running
    ports = [{"name": str(n), "port": n} for n in (1, 2, 3, 4, 5)]
    five = service("shop/five", "10.96.0.5", *ports)
    world.put(five)
    await world.settle()
    assert "5 frontends where it has 0" in world.problems()["Service shop/five"]
    ranged = service("shop/ranged", "10.96.0.6", 80, loadBalancerSourceRanges=[f"10.{n}.0.0/16" for n in range(5)])
    ranged["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    world.put(ranged)
    await world.settle()
    assert "5 source ranges where it has 0" in world.problems()["Service shop/ranged"]
    assert services(world) == set()


async def test_a_restart_changes_nothing(world: World) -> None:
    """What was published keeps its place, also from one whose name comes before."""
    async with world.running(policy=False):
        await world.written(*some("z", *ips(20, 8)))
        await world.written(*some("b", *ips(0, 2)))
        await world.written(some("b", *ips(0, 5))[1])
        await world.written(*some("a", *ips(40, 5)))
        before = world.values()
        assert services(world) == {"b", "z"}
    async with world.running(policy=False):
        assert world.values() == before
        await world.written(some("z", *ips(20, 1))[1])
        assert backends(world, "a") == sorted(ips(40, 5)), "room for one of them: the names decide"
        assert len(backends(world, "b")) == 2
        await world.written(some("a", *ips(40, 1))[1])
        assert len(backends(world, "b")) == 5
        assert world.problems() == {}


async def test_another_replica_goes_on_where_the_first_ended(world: World) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        await first.enter_async_context(world.running("one", policy=False))
        await world.written(*some("a", *ips(0, 4)), *some("b", *ips(20, 5)))
        await stack.enter_async_context(world.running("two", policy=False))
        await world.written(some("a", *ips(0, 5))[1])
        await world.written(some("a", *ips(0, 6))[1])
        before = world.values()
        await first.aclose()
        await world.until(lambda: world.store.values(KEYS.leader("endpoint-sync")) != {})
        await world.written(*some("c", *ips(40, 1)))
        assert {k: v for k, v in world.values().items() if not k.endswith("/c")} == before
        world.delete("Service", "shop", "b")
        await world.settle()
        assert len(backends(world, "a")) == 6


async def test_less_room_than_before_costs_nobody_what_is_published(world: World) -> None:
    async with world.running(policy=False):
        await world.written(*some("a", *ips(0, 5)), *some("b", *ips(20, 5)))
    before = world.values()
    world.capacity = Amount(backends=4, frontends=1, source_ranges=1)
    async with world.running(policy=False):
        assert {k: v for k, v in world.values().items() if k != "meta/capacity"} == {
            k: v for k, v in before.items() if k != "meta/capacity"
        }
        await world.written(some("a", *ips(10, 5))[1])
        assert backends(world, "a") == sorted(ips(10, 5)), "it does not grow"


async def test_one_event_however_often_it_is_looked_at(running: World) -> None:
    world = running
    await world.written(*some("a", *ips(0, 8)), *some("b", *ips(20, 3)))
    assert events(world) == [("b", EXCEEDED, 1)]
    (item,) = world.api.objects(EVENTS)
    assert item["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": "shop",
        "name": "b",
        "uid": "uid-b",
    }
    assert item["type"] == "Warning"
    assert "3 backends where it has 0, and all Services may have 10" in item["message"]
    for count in (4, 5, 6):
        await world.written(some("a", *ips(count, 8))[1], some("b", *ips(20, count))[1])
    assert events(world) == [("b", EXCEEDED, 1)]
    assert "6 backends" in world.problems()["Service shop/b"]
    await world.written(some("b", *ips(20, 1))[1])
    assert events(world) == [("b", EXCEEDED, 1), ("b", AVAILABLE, 1)]
    await world.written(some("b", *ips(20, 9))[1])
    assert events(world) == [("b", EXCEEDED, 2), ("b", AVAILABLE, 1)]


async def test_a_writer_needs_no_right_to_write_events(running: World) -> None:
    world = running
    world.api.forbids = True
    await world.written(*some("a", *ips(0, 8)), *some("b", *ips(20, 3)))
    assert [method for method, _ in world.api.requests] == []
    assert world.problems().keys() == {"Service shop/b"}
    await world.written(*some("c", *ips(40, 1)))
    assert services(world) == {"a", "c"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # what is waited for lies in the API server
            await asyncio.sleep(0.005)


@pytest.fixture
def notices() -> tuple[FakeApi, Events]:
    api = FakeApi()
    return api, Events(api, "tidegate-endpoint-sync", lambda: True, repeat=0.01)


async def test_what_lasts_is_told_again_in_the_same_event(notices: tuple[FakeApi, Events]) -> None:
    api, made = notices
    task = asyncio.create_task(made.run())
    made.tell(Notice("shop", "a", "1", EXCEEDED, "no room"))
    await until(lambda: bool(api.objects(EVENTS)) and api.objects(EVENTS)[0]["count"] >= 3)
    assert len(api.objects(EVENTS)) == 1
    made.forget("shop", "a")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_events_wait_for_the_api_server(notices: tuple[FakeApi, Events]) -> None:
    api, made = notices
    api.available = False
    task = asyncio.create_task(made.run())
    made.tell(Notice("shop", "a", "1", EXCEEDED, "no room"))
    await asyncio.sleep(0.01)
    api.available = True
    await until(lambda: bool(api.objects(EVENTS)))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_ledger() -> None:
    ledger = Ledger(Amount(10, 10, 10))
    a, b = ("n", "a"), ("n", "b")
    ledger.reset({a: Amount(8, 1, 0), b: Amount(7, 1, 0)})  # more than there is room for
    assert ledger.used == Amount(15, 2, 0)
    assert ledger.lacking(a, Amount(8, 5, 3)) == ""
    assert "9 backends where it has 8" in ledger.lacking(a, Amount(9, 5, 3))
    ledger.take(a, Amount(2, 1, 0))
    assert ledger.freed
    assert ledger.lacking(b, Amount(8, 1, 0)) == ""
    assert ledger.lacking(b, Amount(9, 11, 0)).count("where it has") == 2
    ledger.take(a, NOTHING)
    ledger.take(b, NOTHING)
    assert ledger.used == NOTHING
