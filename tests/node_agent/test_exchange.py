"""Backends that come and go one by one lead to the same as all of them at once."""

import random
from typing import Any

import pytest
from msgspec import structs
from tests.node_agent.world import ENTRIES, KEYS, Agent, Values, backend, backends, puts, service, slots
from tests.scale.soak import differences, without_slots

from tidegate.records import Backend, Service, decode, encode
from tidegate.records.addresses import pack_address

SHARDS, BACKENDS, ROUNDS = 3, 12, 80
SHAPES: dict[str, dict[str, Any]] = {
    "cluster IP": {},
    "affinity": {"affinity_seconds": 60},
    "outside": {"external_ips": (pack_address("198.51.100.1"),)},
    "outside, affinity": {"external_ips": (pack_address("198.51.100.1"),), "affinity_seconds": 60},
    "outside, local": {"external_ips": (pack_address("198.51.100.1"),), "external_local": True},
    "inside, local": {"internal_local": True},
}


def shaped(**fields: Any) -> Values:
    ((key, value),) = service("shop", "10.96.0.1", http=80, more=81).items()
    return {key: encode(structs.replace(decode(Service, value), **fields))}


def some_backend(rng: random.Random, number: int) -> Backend:
    state = rng.choices(("ready", "ending", "neither"), (8, 2, 1))[0]
    found = backend(f"10.0.1.{number}", state == "ready", state != "neither", state == "ending")
    ports = {"http": 8080 + (rng.random() < 0.1)} | ({"more": 9090} if rng.random() < 0.8 else {})
    nodes = ("n1",) if rng.random() < 0.02 else ()
    return structs.replace(found, ports=ports, for_nodes=nodes, node=rng.choice(("n1", "n2")))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes(shape: str, seed: int) -> None:
    """Also from one shard to another, in one transaction or in two."""
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    values = shaped(**SHAPES[shape])
    held: dict[int, list[Backend]] = {shard: [] for shard in range(SHARDS)}
    agent = Agent()
    agent.snapshot(values)
    for number in range(ROUNDS):
        changed: Values = {}
        for shard in rng.sample(range(SHARDS), rng.randrange(1, SHARDS)):
            known = {each.address: each for each in held[shard]}
            for _ in range(rng.randrange(1, 3)):
                each = some_backend(rng, rng.randrange(BACKENDS))
                if known.pop(each.address, None) is None or rng.random() < 0.5:
                    known[each.address] = each
            held[shard] = [*known.values()]
            changed |= backends("shop", shard, *held[shard])
        values |= changed
        agent.change(changed)
        scratch = Agent()
        scratch.snapshot(values)
        if _at_odds(held):
            continue  # what counts of an address of which two shards say different things is what came last
        found = differences(*(without_slots(each.kernel, ENTRIES) for each in (agent, scratch)))
        assert found == {}, f"round {number}"


def _at_odds(held: dict[int, list[Backend]]) -> bool:
    said: dict[bytes, Backend] = {}
    return any(said.setdefault(each.address, each) != each for shard in held.values() for each in shard)


ONE, TWO, THREE = (f"10.0.1.{number}" for number in (1, 2, 3))


def shop(*backends_of_shard_0: Backend) -> Agent:
    agent = Agent()
    agent.snapshot({**service("shop", "10.96.0.1", http=80), **backends("shop", 0, *backends_of_shard_0)})
    return agent


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("together", [True, False])
def test_a_backend_goes_to_another_shard(first: int, together: bool) -> None:
    """As when the number of shards changes; endpoint-sync writes the new shard before it takes from the old one."""
    agent = shop(backend(ONE), backend(TWO), backend(THREE))
    written = [*puts(backends("shop", 0, backend(ONE))), *puts(backends("shop", 1, backend(TWO), backend(THREE)))]
    written = written if first == 0 else written[::-1]
    for operations in [written] if together else [[operation] for operation in written]:
        agent.batch(*operations)
    assert set(slots(agent).values()) == {ONE, TWO, THREE}
    agent.change(backends("shop", 1, backend(THREE)))
    assert set(slots(agent).values()) == {ONE, THREE}


def test_the_last_one_that_is_ready_goes() -> None:
    ending = backend(ONE, ready=False, terminating=True)
    agent = shop(ending, backend(TWO))
    agent.change(backends("shop", 0, ending))
    assert set(slots(agent).values()) == {ONE}
    agent.change(backends("shop", 0, ending, backend(THREE)))
    assert set(slots(agent).values()) == {THREE}


def test_hints_that_come_later_count() -> None:
    agent = shop(backend(ONE), backend(TWO))
    agent.change(backends("shop", 0, *(structs.replace(backend(ip), for_nodes=("n1",)) for ip in (ONE, THREE))))
    elsewhere = [structs.replace(backend(TWO), for_nodes=("n2",))]
    agent.change(backends("shop", 1, *elsewhere))
    assert set(slots(agent).values()) == {ONE, THREE}


def test_what_finds_no_room_changes_nothing() -> None:
    agent = Agent(sizes={"backends": 4})
    agent.snapshot({**service("shop", "10.96.0.1", http=80), **backends("shop", 0, backend("10.0.1.1"))})
    agent.change(backends("shop", 0, *(backend(f"10.0.1.{number}") for number in range(1, 4))))
    before = slots(agent)
    assert len(before) == 3
    agent.change(backends("shop", 0, *(backend(f"10.0.1.{number}") for number in range(1, 7))))
    assert slots(agent) == before
    assert agent.view.room.refused.keys() == {("default", "shop")}
    agent.change(backends("shop", 0, *(backend(f"10.0.1.{number}") for number in range(4, 6))))
    assert set(slots(agent).values()) == {"10.0.1.4", "10.0.1.5"}
    assert not agent.view.room.refused


def test_a_service_that_goes_with_its_backends_changed_leaves_nothing() -> None:
    agent = Agent()
    agent.snapshot({**service("shop", "10.96.0.1", http=80), **backends("shop", 0, backend("10.0.1.1"))})
    agent.change(backends("shop", 0, backend("10.0.1.1"), backend("10.0.1.2")))
    changed = puts(backends("shop", 0, backend("10.0.1.2")))
    agent.view.batch(changed)
    agent.remove(KEYS.service("default", "shop"))
    assert not any(agent.kernel.values())
