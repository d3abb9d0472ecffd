"""The service as a whole: what a change costs, what bad objects cost, what a restart and another replica do."""

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.endpoint_sync.world import KEYS, Object, World, endpoint_slice, node, pod, service

from tidegate.records import Backend, BackendShard, Endpoint, Identity, Service
from tidegate.records.addresses import pack_address, unpack_address
from tidegate.store import Delete, Put


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.put(node("n1", "172.16.0.1", cidr="10.0.0.0/24"), pod("shop/web", "10.0.0.1", {"app": "web"}))
    made.put(service("shop/web", "10.96.0.1", 80), endpoint_slice("shop/web-1", "web", "10.0.0.1"))
    async with made.running(policy=False):
        yield made


def addresses(world: World, pod_name: str) -> list[str]:
    record = world.records(Endpoint).get(("shop", pod_name))
    return [unpack_address(address) for address in record.addresses] if record else []


def backends(world: World, name: str = "web") -> set[str]:
    shards = [record for key, record in world.records(BackendShard).items() if key[:2] == ("shop", name)]
    return {unpack_address(backend.address) for shard in shards for backend in shard.backends}


def content(world: World, name: str) -> list[Backend]:
    """In the order of the addresses; over how many shards they are spread depends on how many there were."""
    shards = [record for key, record in world.records(BackendShard).items() if key[:2] == ("shop", name)]
    return sorted((backend for shard in shards for backend in shard.backends), key=lambda b: b.address)


# Costs


async def test_what_does_not_decide_about_packets_costs_nothing(world: World) -> None:
    same = pod("shop/web", "10.0.0.1", {"app": "web"}, annotations={"note": "x" * 1000})
    assert await world.written(same) == set()
    operations = world.store.operations
    world.put(same)
    await world.settle()
    assert world.store.operations == operations


async def test_a_pod_costs_its_record(world: World) -> None:
    assert await world.written(pod("shop/web-2", "10.0.0.2", {"app": "web"})) == {"endpoints/shop/web-2"}


async def test_one_backend_of_a_thousand_costs_its_shard(world: World) -> None:
    ips = [f"10.1.{n // 250}.{n % 250}" for n in range(1000)]
    slices = [endpoint_slice(f"shop/big-{n}", "big", *ips[n * 100 : n * 100 + 100]) for n in range(10)]
    world.put(service("shop/big", "10.96.0.9", 80), *slices)
    await world.settle()
    assert backends(world, "big") == set(ips)
    assert len(world.records(BackendShard)) > 30
    keys = await world.written(endpoint_slice("shop/big-3", "big", *ips[301:400]))
    assert len(keys) == 1
    assert backends(world, "big") == set(ips) - {ips[300]}
    (key,) = keys
    assert len(world.store.values()[KEYS.prefix + key]) < 2500
    keys = await world.written(endpoint_slice("shop/big-3", "big", *ips[300:400]))
    assert len(keys) == 1


async def test_events_that_come_together_go_out_together(world: World) -> None:
    transactions = world.store.transactions
    world.put(*(pod(f"shop/p{n}", f"10.2.0.{n}") for n in range(1, 101)))
    await world.settle()
    assert world.store.transactions - transactions <= 3


# Pods


async def test_a_pod_has_its_identity_before_its_address(world: World) -> None:
    keys = await world.written(pod("shop/new", "", {"app": "new"}))
    assert {key.split("/")[0] for key in keys} == {"identities"}
    assert await world.written(pod("shop/new", "10.0.0.5", {"app": "new"})) == {"endpoints/shop/new"}


async def test_a_relabelled_pod_has_another_identity(world: World) -> None:
    before = world.identity_of("shop", "web")
    await world.written(pod("shop/web", "10.0.0.1", {"app": "else"}))
    after = world.identity_of("shop", "web")
    assert after != before
    assert world.records(Identity)[str(after),].labels == {"app": "else"}
    await world.written(pod("shop/web", "10.0.0.1", {"app": "web"}))
    assert world.identity_of("shop", "web") == before


async def test_a_pod_made_anew_under_its_name(world: World) -> None:
    world.delete("Pod", "shop", "web")
    await world.written(pod("shop/web", "10.0.0.7", {"app": "web"}, uid="second"))
    record = world.records(Endpoint)["shop", "web"]
    assert (record.uid, record.addresses) == ("second", (pack_address("10.0.0.7"),))


async def test_an_address_passes_from_the_pod_that_goes_to_the_one_that_comes(world: World) -> None:
    await world.written(
        pod("shop/web", "10.0.0.1", {"app": "web"}, deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("shop/next", "10.0.0.1", {"app": "next"}, creationTimestamp="2026-01-01T00:00:01Z"),
    )
    assert (addresses(world, "web"), addresses(world, "next")) == ([], ["10.0.0.1"])
    world.delete("Pod", "shop", "web")
    await world.settle()
    assert addresses(world, "next") == ["10.0.0.1"]


@pytest.mark.parametrize("later", ["leaving", "staying"])
async def test_an_address_is_of_the_pod_that_stays_whichever_is_younger(world: World, later: str) -> None:
    created = {later: "2026-01-01T00:00:09Z"}
    going: dict[str, Any] = {"deletionTimestamp": "2026-01-01T00:00:10Z"}
    first = "2026-01-01T00:00:00Z"
    await world.written(
        pod("shop/leaving", "10.0.0.8", creationTimestamp=created.get("leaving", first), **going),
        pod("shop/staying", "10.0.0.8", creationTimestamp=created.get("staying", first)),
    )
    assert (addresses(world, "leaving"), addresses(world, "staying")) == ([], ["10.0.0.8"])


async def test_of_two_pods_that_stay_the_younger_has_the_address(world: World) -> None:
    await world.written(
        pod("shop/b", "10.0.0.8", creationTimestamp="2026-01-01T00:00:00Z"),
        pod("shop/a", "10.0.0.8", creationTimestamp="2026-01-01T00:00:09Z"),
    )
    assert (addresses(world, "b"), addresses(world, "a")) == ([], ["10.0.0.8"])
    world.delete("Pod", "shop", "a")
    await world.settle()
    assert addresses(world, "b") == ["10.0.0.8"]


async def test_a_pod_that_has_finished_gives_its_address_back(world: World) -> None:
    done = pod("shop/web", "10.0.0.1", {"app": "web"})
    done["status"]["phase"] = "Succeeded"
    assert await world.written(done) == {"endpoints/shop/web"}
    assert addresses(world, "web") == []


async def test_an_identity_nobody_has_goes_after_its_grace_time() -> None:
    world = World()
    world.grace = 0.0
    world.put(pod("shop/web", "10.0.0.1", {"app": "web"}))
    async with world.running(policy=False):
        number = str(world.identity_of("shop", "web"))
        world.endpoint_sync.collect()
        await world.settle()
        assert (number,) in world.records(Identity)
        world.delete("Pod", "shop", "web")
        await world.settle()
        assert (number,) in world.records(Identity)
        world.endpoint_sync.collect()
        await world.settle()
        assert (number,) not in world.records(Identity)


# Services


async def test_a_service_that_becomes_headless_and_back(world: World) -> None:
    before = world.values()
    await world.written(service("shop/web", "None", 80))
    assert ("shop", "web") not in world.records(Service)
    assert backends(world) == set(), "nobody asks for them"
    await world.written(service("shop/web", "10.96.0.1", 80))
    assert world.values() == before


async def test_slices_may_come_before_their_service(world: World) -> None:
    await world.written(endpoint_slice("shop/late-1", "late", "10.0.0.8"))
    assert backends(world, "late") == set()
    await world.written(service("shop/late", "10.96.0.2", 80))
    assert backends(world, "late") == {"10.0.0.8"}
    world.delete("Service", "shop", "late")
    await world.settle()
    assert backends(world, "late") == set()


async def test_a_slice_given_to_another_service(world: World) -> None:
    await world.written(service("shop/other", "10.96.0.2", 80))
    await world.written(endpoint_slice("shop/web-1", "other", "10.0.0.1"))
    assert (backends(world), backends(world, "other")) == (set(), {"10.0.0.1"})


async def test_a_backend_that_is_no_longer_ready_is_written_at_once(world: World) -> None:
    down = {"addresses": ["10.0.0.1"], "conditions": {"ready": False, "serving": True, "terminating": True}}
    operations = world.store.operations
    assert await world.written(endpoint_slice("shop/web-1", "web", down)) == {"backends/shop/web/0"}
    assert world.store.operations - operations == 1
    (backend,) = content(world, "web")
    assert (backend.ready, backend.serving, backend.terminating) == (False, True, True)


async def test_an_address_in_two_slices_is_merged_from_both(world: World) -> None:
    going = {"addresses": ["10.0.0.1"], "conditions": {"ready": False, "serving": True, "terminating": True}}
    await world.written(endpoint_slice("shop/web-2", "web", going, ports=[{"name": "other", "port": 9}]))
    (backend,) = content(world, "web")
    assert backend.ready
    assert backend.ports == {"": 8080, "other": 9}
    world.delete("EndpointSlice", "shop", "web-1")
    await world.settle()
    (backend,) = content(world, "web")
    assert not backend.ready
    assert backend.ports == {"other": 9}


async def test_a_slice_of_no_service_is_nobodys_backends(world: World) -> None:
    assert await world.written(endpoint_slice("shop/free", "", "10.0.0.3")) == set()
    assert await world.written(endpoint_slice("shop/free", "web", "10.0.0.3")) != set()
    assert backends(world) == {"10.0.0.1", "10.0.0.3"}
    await world.written(endpoint_slice("shop/free", "", "10.0.0.3"))
    assert backends(world) == {"10.0.0.1"}


@pytest.mark.parametrize("label", ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"])
async def test_a_slice_of_another_proxy_or_headless_is_nobodys_backends(world: World, label: str) -> None:
    """kube-proxy does not watch those either, whatever the Service's own labels are."""
    item = endpoint_slice("shop/free", "web", "10.0.0.3")
    await world.written(item)
    assert backends(world) == {"10.0.0.1", "10.0.0.3"}
    item["metadata"]["labels"][label] = "other"
    await world.written(item)
    assert backends(world) == {"10.0.0.1"}


async def test_an_address_in_two_slices_goes_with_the_last(world: World) -> None:
    await world.written(endpoint_slice("shop/web-2", "web", "10.0.0.1", "10.0.0.2"))
    assert backends(world) == {"10.0.0.1", "10.0.0.2"}
    world.delete("EndpointSlice", "shop", "web-1")
    await world.settle()
    assert backends(world) == {"10.0.0.1", "10.0.0.2"}
    world.delete("EndpointSlice", "shop", "web-2")
    await world.settle()
    assert backends(world) == set()


async def test_a_port_keeps_its_number_over_a_restart() -> None:
    world = World()
    world.put(service("shop/web", "10.96.0.1", {"name": "a", "port": 80}, {"name": "b", "port": 81}))
    async with world.running(policy=False):
        before = {port.name: port.id for port in world.records(Service)["shop", "web"].ports}
    world.put(service("shop/web", "10.96.0.1", {"name": "b", "port": 8081}, {"name": "c", "port": 80}))
    async with world.running(policy=False):
        after = {port.name: port.id for port in world.records(Service)["shop", "web"].ports}
    assert after["b"] == before["b"]
    assert len({*before.values(), after["c"]}) == 3


# Bad objects


BAD: dict[str, tuple[Object, str]] = {
    "pod: address": (pod("shop/web", "10.0.0.999", {"app": "web"}), "Pod shop/web"),
    "pod: type": ({**pod("shop/web"), "spec": {"nodeName": 5}}, "Pod shop/web"),
    "pod: labels": (pod("shop/web", "10.0.0.1", {"app": 5}), "Pod shop/web"),  # type: ignore[dict-item]
    "service: port": (service("shop/web", "10.96.0.1", 99999), "Service shop/web"),
    "service: type": (service("shop/web", "10.96.0.1", "http"), "Service shop/web"),  # type: ignore[arg-type]
    "slice: address": (endpoint_slice("shop/web-1", "web", "10.0.0.1", "nowhere"), "EndpointSlice shop/web-1"),
    "slice: type": (endpoint_slice("shop/web-1", "web", ports="x"), "EndpointSlice shop/web-1"),
    "node: CIDR": (node("n1", "172.16.0.1", cidr="10.0.0.0/99"), "Node -/n1"),
    "node: type": ({**node("n1"), "status": []}, "Node -/n1"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_an_object_gone_bad_keeps_its_previous_state(world: World, bad: str) -> None:
    item, name = BAD[bad]
    before = world.values()
    world.put(item, pod("shop/fine", "10.0.0.77"))
    await world.settle()
    assert list(world.problems()) == [name]
    assert before.items() <= world.values().items()
    assert addresses(world, "fine") == ["10.0.0.77"], "the others go on"


@pytest.mark.parametrize("bad", BAD)
async def test_what_was_good_before_a_restart_stays(bad: str) -> None:
    item, name = BAD[bad]
    world = World()
    world.put(node("n1", "172.16.0.1", cidr="10.0.0.0/24"), pod("shop/web", "10.0.0.1", {"app": "web"}))
    world.put(service("shop/web", "10.96.0.1", 80), endpoint_slice("shop/web-1", "web", "10.0.0.1"))
    async with world.running(policy=False):
        before = world.values()
    world.put(item)
    async with world.running(policy=False):
        assert list(world.problems()) == [name]
        assert before.items() <= world.values().items()
        kind, _, where = name.partition(" ")
        namespace, _, short = where.partition("/")
        world.delete(kind, "" if namespace == "-" else namespace, short)
        await world.settle()
        assert world.problems() == {}
        assert before.items() - world.values().items(), "what it stood for has gone with it"


async def test_an_endpoint_that_stands_from_before_a_restart_keeps_its_identity() -> None:
    """Until its pod is understood again or gone: an endpoint whose identity is no more would be closed."""
    world = World()
    world.grace = 0.0
    world.put(pod("shop/web", "10.0.0.1", {"app": "web"}))
    async with world.running(policy=False):
        number = world.identity_of("shop", "web")
    world.put(BAD["pod: address"][0])
    async with world.running(policy=False):
        for _ in range(2):  # told twice that it is bad
            world.endpoint_sync.collect()
            await world.settle()
            assert world.identity_of("shop", "web") == number
            assert (str(number),) in world.records(Identity)
            world.put(BAD["pod: type"][0])
            await world.settle()
        world.put(pod("shop/web", "10.0.0.1", {"app": "else"}))
        await world.settle()
        world.endpoint_sync.collect()
        await world.settle()
        assert world.identity_of("shop", "web") != number
        assert (str(number),) not in world.records(Identity)


async def test_neither_the_pod_nor_its_stored_endpoint_can_be_read() -> None:
    world = World()
    world.put(pod("shop/web", "10.0.0.1", {"app": "web"}), pod("shop/fine", "10.0.0.2"))
    async with world.running(policy=False):
        pass
    world.store.put_now([Put(KEYS.endpoint("shop", "web"), b"\xc1")])
    world.put(BAD["pod: address"][0])
    async with world.running(policy=False):
        assert "nor can its stored records" in world.problems()["Pod shop/web"]
        world.put(pod("shop/web", "10.0.0.3", {"app": "web"}))
        await world.settle()
        assert world.problems() == {}
        assert (addresses(world, "web"), addresses(world, "fine")) == (["10.0.0.3"], ["10.0.0.2"])


async def test_an_endpoint_that_stood_and_went_lets_its_identity_go() -> None:
    world = World()
    world.grace = 0.0
    world.put(pod("shop/web", "10.0.0.1", {"app": "web"}))
    async with world.running(policy=False):
        pass
    world.put(BAD["pod: address"][0])
    async with world.running(policy=False):
        world.delete("Pod", "shop", "web")
        await world.settle()
        world.endpoint_sync.collect()
        await world.settle()
        assert world.records(Identity) == {}


# Starting again


async def test_a_restart_writes_its_marks_and_nothing_else() -> None:
    world = World()
    world.put(*(pod(f"shop/p{n}", f"10.2.0.{n}") for n in range(1, 200)), node("n1", "172.16.0.1"))
    world.put(
        service("shop/web", "10.96.0.1", 80), endpoint_slice("shop/s", "web", *(f"10.2.0.{n}" for n in range(1, 90)))
    )
    async with world.running(policy=False):
        pass
    before, operations = world.values(), world.store.operations
    async with world.running(policy=False):
        assert world.values() == before
    assert world.store.operations - operations == 3, "the beginning of its chain, and two marks"


async def test_what_went_while_nobody_looked_goes_on_the_next_start(world: World) -> None:
    copy = world.store.copy()
    world.delete("Pod", "shop", "web")
    await world.settle()
    fresh = World()
    fresh.api = world.api
    fresh.store.restore(copy)
    fresh.store.put_now([Delete(KEYS.leader("endpoint-sync"))])
    async with fresh.running(policy=False):
        assert addresses(fresh, "web") == []


async def test_the_api_server_away_and_back(world: World) -> None:
    before = world.values()
    world.api.set_available(False)
    await world.settle()
    world.put(pod("shop/web-2", "10.0.0.2", {"app": "web"}))
    world.api.expire()
    await world.settle()
    assert world.values() == before
    world.api.set_available(True)
    await world.until(lambda: addresses(world, "web-2") == ["10.0.0.2"])
    assert before.items() <= world.values().items()


async def test_the_store_away_and_back(world: World) -> None:
    world.store.set_available(False)
    world.put(pod("shop/web-2", "10.0.0.2", {"app": "web"}))
    await world.settle()
    world.store.set_available(True)
    await world.until(lambda: addresses(world, "web-2") == ["10.0.0.2"])


async def test_of_two_one_writes_and_the_other_takes_over() -> None:
    world = World()
    world.put(pod("shop/web", "10.0.0.1", {"app": "web"}))
    async with world.running("one", "two", policy=False):
        leader = KEYS.leader("endpoint-sync")
        first = world.store.values()[leader]
        operations = world.store.operations
        world.put(pod("shop/web-2", "10.0.0.2", {"app": "web"}))
        await world.settle()
        assert world.store.operations - operations == 1, "written once, by one of them"
        before, operations = world.values(), world.store.operations
        world.store.expire(leader)
        await world.until(lambda: world.store.values().get(leader, first) != first)
        await world.settle()
        assert world.values() == before
        assert world.store.operations - operations == 3, "marks only"
        world.put(pod("shop/web-3", "10.0.0.3", {"app": "web"}))
        await world.settle()
        assert addresses(world, "web-3") == ["10.0.0.3"]


# However it was reached


def any_object(choice: random.Random) -> Object:
    number = choice.randrange(5)
    what = choice.randrange(5)
    if what == 0:
        labels = {"app": choice.choice("ab"), "pod-template-hash": choice.choice("xy")}
        created = f"2026-01-01T00:00:0{choice.randrange(9)}Z"
        return pod(
            f"shop/p{number}",
            choice.choice(["", f"10.0.0.{choice.randrange(1, 6)}"]),
            labels,
            creationTimestamp=created,
        )
    if what == 1:
        return service(
            f"shop/s{number}",
            choice.choice(["None", f"10.96.0.{number}"]),
            {"name": "a", "port": choice.choice([80, 81])},
        )
    if what == 2:
        return node(f"n{number}", f"172.16.0.{choice.randrange(1, 9)}", cidr=f"10.{number}.0.0/24")
    ips = [f"10.0.{choice.randrange(3)}.{n}" for n in range(choice.choice([0, 1, 3, 60]))]
    conditions = choice.choice([None, {"ready": False}, {"ready": False, "serving": True, "terminating": True}])
    endpoints = [{"addresses": [ip], "conditions": conditions} for ip in dict.fromkeys(ips)]
    ports = [{"name": "a", "port": choice.choice([80, 81])}, {"name": choice.choice("bc"), "port": 90}]
    owner = choice.choice(["", "s1", "s2", "s3"])
    return endpoint_slice(f"shop/e{choice.randrange(7)}", owner, *endpoints, ports=ports)


def any_step(choice: random.Random, world: World, present: dict[tuple[str, str, str], Object]) -> None:
    item = any_object(choice)
    key = item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]
    if key in present and choice.random() < 0.4:
        world.delete(*key)
        del present[key]
    else:
        world.put(item)
        present[key] = item


@pytest.mark.parametrize("seed", range(12))
async def test_step_by_step_is_as_from_scratch(seed: int) -> None:
    """What changes while nobody looks is found at the next start."""
    choice = random.Random(seed)  # noqa: S311  # to be repeated, not to be secret
    world = World()
    world.grace = 0.0
    present: dict[tuple[str, str, str], Object] = {}
    for _ in range(3):
        async with world.running(policy=False):
            for _ in range(80):
                any_step(choice, world, present)
                if choice.random() < 0.3:
                    await world.settle()
                if choice.random() < 0.1:
                    world.endpoint_sync.collect()
            world.endpoint_sync.collect()
            await world.settle()
            await compare(world, present)
        for _ in range(15):
            any_step(choice, world, present)


async def compare(world: World, present: dict[tuple[str, str, str], Object]) -> None:
    fresh = World()
    fresh.put(*present.values())
    async with fresh.running(policy=False):
        assert without_shards(world) == without_shards(fresh)
        for name in ("s1", "s2", "s3"):
            assert content(world, name) == content(fresh, name)


def without_shards(world: World) -> dict[str, bytes]:
    return {key: value for key, value in world.values().items() if not key.startswith("backends/")}
