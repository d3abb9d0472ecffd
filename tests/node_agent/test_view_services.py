"""From Services and backends to map entries, without a kernel."""

import pytest
from msgspec import structs
from tests.node_agent.world import (
    KEYS,
    Agent,
    Values,
    backend,
    backends,
    service,
    slots,
    touched,
)

from tidegate.records import Service, decode, encode
from tidegate.store import Put

IP, OTHER_IP = "10.0.1.5", "10.0.2.5"


@pytest.fixture
def agent() -> Agent:
    """With a complete, empty snapshot."""
    fresh = Agent()
    fresh.snapshot({})
    return fresh


MOVED = 8  # of those who stand in a row of that length, with a load of a half, there are few


def shop(*ips: str) -> Values:
    return backends("shop", 0, *map(backend, ips))


def test_a_service_with_its_frontends_and_backends(agent: Agent) -> None:
    agent.change({**service("shop", "10.96.0.1", http=80), **shop(IP, OTHER_IP)})
    assert agent.rows("frontends") == {("10.96.0.1", 80, 6): 5080, ("10.96.0.1", 0, 0): 0}
    assert set(slots(agent).values()) == {IP, OTHER_IP}
    assert {row["port"] for row in agent.rows("backends").values()} == {8080}


def test_a_removed_service_leaves_nothing(agent: Agent) -> None:
    agent.change({**service("shop", "10.96.0.1", http=80), **shop(IP, OTHER_IP)})
    steps = agent.remove(KEYS.service("default", "shop"))
    assert [step.map for step in steps] == ["frontends", "services", "backends"]
    assert not any(agent.kernel.values())
    agent.change(service("shop", "10.96.0.1", http=80))
    assert set(slots(agent).values()) == {IP, OTHER_IP}


def test_a_port_that_goes_leaves_the_others(agent: Agent) -> None:
    agent.change({**service("shop", "10.96.0.1", http=80, other=81), **shop(IP)})
    agent.change(service("shop", "10.96.0.1", http=80))
    assert agent.rows("frontends").keys() == {("10.96.0.1", 80, 6), ("10.96.0.1", 0, 0)}
    assert agent.rows("services").keys() == {5080}
    assert set(slots(agent).values()) == {IP}


def test_an_address_passes_from_one_service_to_the_next(agent: Agent) -> None:
    agent.change(service("old", "10.96.0.1", http=80))
    agent.change(service("new", "10.96.0.1", http=80, more=81))
    agent.remove(KEYS.service("default", "old"))
    ports = {("10.96.0.1", 80, 6): 5080, ("10.96.0.1", 81, 6): 5081}
    assert agent.rows("frontends") == {("10.96.0.1", 0, 0): 0, **ports}


def test_the_slot_of_a_removed_backend_is_taken_by_the_last(agent: Agent) -> None:
    ips = [f"10.0.2.{n}" for n in range(1, 6)]
    agent.change({**service("shop", "10.96.0.1", http=80), **shop(*ips)})
    before = slots(agent)
    gone = before[1]
    agent.change(shop(*(ip for ip in ips if ip != gone)))
    assert slots(agent) == {0: before[0], 1: before[4], 2: before[2], 3: before[3]}


def test_the_slot_of_a_replaced_backend_is_taken_by_the_new_one(agent: Agent) -> None:
    agent.change({**service("shop", "10.96.0.1", http=80), **shop("10.0.2.1", "10.0.2.2", "10.0.2.3")})
    before = slots(agent)
    steps = agent.change(shop("10.0.2.1", "10.0.2.9", "10.0.2.3"))
    assert slots(agent) == {slot: ip.replace("10.0.2.2", "10.0.2.9") for slot, ip in before.items()}
    assert touched(steps) == 1


@pytest.mark.parametrize("size", [10, 1000])
def test_one_backend_costs_the_same_among_few_and_among_many(agent: Agent, size: int) -> None:
    ips = [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(size)]
    agent.change({**service("shop", "10.96.0.1", http=80), **shop(*ips)})
    costs = [
        touched(agent.change(shop(*ips[1:]))),  # one goes: its slot, the last slot, the count
        touched(agent.change(shop(*ips))),  # one comes: its slot, the count
        touched(agent.change(shop(*ips[1:], "10.9.9.9"))),  # one for another
    ]
    assert costs == [3, 2, 1]
    assert len(slots(agent)) == size


@pytest.mark.parametrize("size", [40, 1000])
def test_one_backend_for_clients_outside_costs_the_same_among_few_and_among_many(agent: Agent, size: int) -> None:
    """Besides: its position, that of who takes its slot, and of those few who stood behind it because of it."""
    ips = [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(size)]
    record = decode(Service, service("shop", "10.96.0.1", http=80)[KEYS.service("default", "shop")])
    port = structs.replace(record.ports[0], node_port=30080)
    agent.change({KEYS.service("default", "shop"): encode(structs.replace(record, ports=(port,))), **shop(*ips)})
    assert sorted(agent.rows("ring").values()) == list(range(size))
    for left_out in ips[:20]:
        others = [ip for ip in ips if ip != left_out]
        assert touched(agent.change(shop(*others))) <= 3 + 2 + MOVED
        assert touched(agent.change(shop(*ips))) <= 2 + 1 + MOVED
    agent.change(shop(ips[0]))
    assert agent.rows("ring") == {}


def test_backends_in_several_shards(agent: Agent) -> None:
    agent.change({**service("shop", "10.96.0.1", http=80), **shop(IP), **backends("shop", 1, backend(OTHER_IP))})
    before = slots(agent)
    assert set(before.values()) == {IP, OTHER_IP}
    # While they are spread anew, one stands in both.
    assert agent.change(backends("shop", 1, backend(OTHER_IP), backend(IP))) == []
    assert agent.remove(KEYS.backends("default", "shop", 0)) == []
    assert slots(agent) == before


def test_backends_that_are_not_ready(agent: Agent) -> None:
    agent.change(service("shop", "10.96.0.1", http=80))
    ending = backend(OTHER_IP, ready=False, serving=True, terminating=True)
    agent.change(backends("shop", 0, backend(IP), ending, backend("10.0.2.9", ready=False, serving=False)))
    assert set(slots(agent).values()) == {IP}
    agent.change(backends("shop", 0, ending, backend("10.0.2.9", ready=False, serving=False)))
    assert set(slots(agent).values()) == {OTHER_IP}
    agent.change(backends("shop", 0, backend("10.0.2.9", ready=False, serving=False)))
    assert slots(agent) == {}


def test_a_backend_that_stands_in_two_slots_is_one_after_a_restart(agent: Agent) -> None:
    """The agent was killed when the last one had been put into the place of the first, and its own had not gone yet."""
    records, ips = service("shop", "10.96.0.1", http=80), ["10.0.2.1", "10.0.2.2", "10.0.2.3"]
    agent.change({**records, **shop(*ips)})
    agent.view.batch([Put(key, value) for key, value in shop(*ips[1:]).items()])
    for step in agent.tables.plan():
        if step.puts:
            agent.carry_out(step)
    assert {slot: row["addr"] for (_, slot), row in agent.rows("backends").items()} == {0: ips[2], 1: ips[1], 2: ips[2]}
    again = agent.restarted()
    again.snapshot({**records, **shop(*ips[1:])})
    assert slots(again) == {0: ips[2], 1: ips[1]}
    again.change(shop(ips[1]))
    assert slots(again) == {0: ips[1]}


def test_slots_stay_where_they_are_over_a_restart(agent: Agent) -> None:
    ips = [f"10.0.2.{n}" for n in range(1, 9)]
    agent.change({**service("shop", "10.96.0.1", http=80), **shop(*ips)})
    agent.change(shop(*ips[2:]))
    before = slots(agent)
    again = agent.restarted()
    steps = again.snapshot({**service("shop", "10.96.0.1", http=80), **shop(*ips[3:])})
    assert touched(steps) == 3
    moved = {slot for slot, ip in slots(again).items() if before[slot] != ip}
    assert len(moved) <= 1
