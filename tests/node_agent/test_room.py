"""What does not fit into the maps is refused whole, Service by Service."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.node_agent.world import KEYS, OWN, Agent, Contents, Values, backend, backends, pod_key, service

from node_agent.__main__ import made_for
from node_agent.loader.source import find_source, read_source
from node_agent.room import MAPS
from node_agent.table import ORDER
from tidegate.records import Backend, BackendShard, Endpoint, HostPort, Service, ServicePort, encode
from tidegate.records.addresses import pack_address, pack_cidr
from tidegate.records.capacity import DEFAULT, NODE_ADDRESSES, NOTHING, Amount, cost, map_sizes

SIZES = {"backends": 10, "services": 6, "frontends": 8}


def some(name: str, count: int, number: int = 0) -> Values:
    """A Service with one port: two frontends, one selection."""
    number = number or sum(map(ord, name)) % 250
    ends = (backend(f"10.{number}.0.{n + 1}") for n in range(count))
    return {**service(name, f"10.96.0.{number}", **{f"p{number}": 80 + number}), **shard(name, number, *ends)}


def shard(name: str, number: int, *ends: Backend) -> Values:
    return backends(name, 0, *(Backend(address=end.address, ports={f"p{number}": 8080}) for end in ends))


def held(agent: Agent, number: int) -> int:
    """How many backends the kernel holds of the Service with that number."""
    return sum(1 for key in agent.kernel["backends"] if int.from_bytes(key[:4], "little") == 5080 + number)


def copied(agent: Agent) -> Contents:
    return {name: dict(agent.kernel[name]) for name in ORDER}


def test_a_service_that_does_not_fit_is_not_there_at_all_and_others_are() -> None:
    agent = Agent(sizes=SIZES)
    agent.snapshot({**some("a", 6, 1), **some("b", 5, 2), **some("c", 4, 3)})
    assert [held(agent, number) for number in (1, 2, 3)] == [6, 0, 4]
    assert len(agent.kernel["services"]) == 2
    assert len(agent.kernel["frontends"]) == 4
    assert agent.view.room.refused == {
        ("default", "b"): "map backends: 5 entries where it has 0, and the map holds 10",
    }


def test_one_that_grows_keeps_its_last_state_whole_until_there_is_room() -> None:
    agent = Agent(sizes=SIZES)
    agent.snapshot({**some("a", 5, 1), **some("b", 5, 2)})
    before = copied(agent)
    assert agent.change(some("a", 6, 1)) == []
    assert agent.change(some("a", 7, 1)) == []
    assert copied(agent) == before
    agent.change(some("b", 3, 2))
    assert held(agent, 1) == 5, "nobody has looked again"
    agent.route({})
    assert (held(agent, 1), held(agent, 2)) == (7, 3)
    assert agent.view.room.refused == {}


def test_what_goes_makes_room_only_when_it_has_gone() -> None:
    """In one batch: adds come before removals, and no map may be found full on the way."""
    agent = Agent(sizes=SIZES)
    agent.snapshot({**some("a", 1, 1), **some("z", 9, 2)})
    steps = agent.change({**some("a", 9, 1), **some("z", 1, 2)})
    assert sum(len(step.puts) for step in steps if step.map == "backends") == 0
    assert (held(agent, 1), held(agent, 2)) == (1, 1)
    agent.route({})
    assert (held(agent, 1), held(agent, 2)) == (9, 1)


@pytest.mark.parametrize("ip", ["10.96.0.1", "10.96.0.9"])
def test_a_refused_service_outlives_a_restart_in_its_last_state(ip: str) -> None:
    agent = Agent(sizes=SIZES)
    agent.snapshot({**some("a", 3, 1), **some("b", 5, 2)})
    before = copied(agent)
    grown = {**some("a", 6, 1), **service("a", ip, p1=81)}
    assert agent.change(grown) == []
    later = agent.restarted()
    assert later.snapshot({**grown, **some("b", 5, 2)}) == []
    assert copied(later) == before
    assert later.view.room.refused.keys() == {("default", "a")}
    later.change(some("b", 1, 2))
    later.route({})
    assert (held(later, 1), held(later, 2)) == (6, 1)
    assert later.view.room.refused == {}
    assert copied(later) == copied(fresh({**grown, **some("b", 1, 2)}))
    again = later.restarted()
    assert again.snapshot({**some("b", 1, 2)}) != []
    assert (held(again, 1), held(again, 2)) == (0, 1)


def fresh(values: Values) -> Agent:
    agent = Agent()
    agent.snapshot(values)
    return agent


def test_a_refused_service_that_is_deleted_after_a_restart_goes_whole() -> None:
    agent = Agent(sizes=SIZES)
    agent.snapshot({**some("a", 3, 1), **some("b", 5, 2)})
    agent.change(some("a", 6, 1))
    later = agent.restarted()
    later.snapshot({**some("a", 6, 1), **some("b", 5, 2)})
    later.remove(*some("a", 6, 1))
    assert copied(later) == copied(fresh(some("b", 5, 2)))
    assert later.view.room.refused == {}


def test_host_ports_wait_for_room_too() -> None:
    agent = Agent(sizes={"backends": 3})
    ports = tuple(HostPort(port=8000 + n, target=80) for n in range(3))
    agent.route({}, ["172.16.0.1"])
    exposed = Endpoint(node=OWN, identity=7, addresses=(pack_address("10.0.0.1"),), host_ports=ports)
    agent.snapshot(some("a", 1, 1))
    agent.change({pod_key("p"): encode(exposed)})
    assert (held(agent, 1), len(agent.kernel["backends"])) == (1, 1)
    assert agent.view.room.refused.keys() == {("host port", "default", "p")}
    agent.remove(*some("a", 1, 1))
    agent.route({}, ["172.16.0.1"])
    assert len(agent.kernel["backends"]) == len(agent.kernel["frontends"]) == 3
    assert agent.view.room.refused == {}


# What endpoint-sync counts, and what an agent writes.

_V4 = st.integers(1, 60).map(lambda n: pack_address(f"10.0.0.{n}"))
_V6 = st.integers(1, 60).map(lambda n: pack_address(f"fd00::{n:x}"))
_CLUSTER_IPS = st.one_of(st.tuples(_V4), st.tuples(_V6), st.tuples(_V4, _V6))


@st.composite
def services(draw: st.DrawFn) -> tuple[Service, tuple[Backend, ...]]:
    names = ["a", "b", "c"][: draw(st.integers(0, 3))]
    ports = tuple(
        ServicePort(id=100 + index, name=name, port=80 + index, node_port=draw(st.sampled_from([0, 30000 + index])))
        for index, name in enumerate(names)
    )
    record = Service(
        cluster_ips=draw(_CLUSTER_IPS),
        external_ips=tuple(draw(st.lists(_V4 | _V6, max_size=2))),
        load_balancer_ips=tuple(draw(st.lists(_V4 | _V6, max_size=2))),
        ports=ports,
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 60])),
        source_ranges=tuple(draw(st.lists(st.sampled_from([pack_cidr("10.0.0.0/8"), pack_cidr("fd00::/8")])))),
    )
    found = {
        address: Backend(
            address=address,
            ports=dict.fromkeys(draw(st.lists(st.sampled_from(["a", "b", "c", "d"]))), 8080),
            ready=draw(st.booleans()),
            node=draw(st.sampled_from(["n1", "n2"])),
        )
        for address in draw(st.lists(_V4 | _V6, max_size=6))
    }
    return record, tuple(found.values())


@settings(derandomize=True, deadline=None)
@given(services())
def test_what_endpoint_sync_counts_covers_what_agents_write(drawn: tuple[Service, tuple[Backend, ...]]) -> None:
    record, ends = drawn
    values = {
        KEYS.service("default", "s"): encode(record),
        KEYS.backends("default", "s", 0): encode(BackendShard(backends=ends)),
    }
    agent = Agent()
    own = [f"172.16.0.{n}" for n in range(NODE_ADDRESSES)] + [f"fd01::{n:x}" for n in range(1, NODE_ADDRESSES + 1)]
    agent.route({}, own)
    agent.snapshot(values)
    spare = map_sizes(NOTHING)  # for host ports
    sizes = {name: size - spare[name] for name, size in map_sizes(cost(record, ends)).items()}
    written = {name: len(agent.kernel[name]) for name in sizes}
    assert {name: count for name, count in written.items() if count > sizes[name]} == {}
    # And what the agent itself counts is what it writes.
    counted = Counter(dict(zip(MAPS, agent.view.room._held.get(("default", "s"), ()), strict=False)))
    assert {name: count for name, count in written.items() if count != counted[name]} == {}


def test_the_bounds_are_reached() -> None:
    """Everybody near, everything asked for: half of any bound would not do."""
    ports = tuple(ServicePort(id=100 + n, name=str(n), port=80 + n, node_port=30000 + n) for n in range(2))
    ends = tuple(Backend(address=pack_address(f"10.0.0.{n}"), ports={"0": 1, "1": 2}, node=OWN) for n in range(1, 5))
    record = Service(cluster_ips=(pack_address("10.96.0.1"),), ports=ports, external_local=True, affinity_seconds=60)
    agent = Agent()
    agent.route({}, [f"172.16.0.{n}" for n in range(NODE_ADDRESSES)])
    agent.snapshot(
        {
            KEYS.service("default", "s"): encode(record),
            KEYS.backends("default", "s", 0): encode(BackendShard(backends=ends)),
        }
    )
    assert cost(record, ends) == Amount(backends=8, frontends=4)
    written = {name: len(agent.kernel[name]) for name in ("backends", "slots", "ring", "services", "frontends")}
    assert written == {"backends": 16, "slots": 16, "ring": 8, "services": 4, "frontends": 3 + 2 * NODE_ADDRESSES}


def test_the_maps_are_as_large_as_the_default_capacity_needs() -> None:
    sizes = read_source(find_source(), {}).sizes
    assert {name: sizes[name] for name, size in map_sizes(DEFAULT).items() if sizes[name] < size} == {}


def test_an_agent_makes_its_maps_for_the_capacity_that_it_is_told() -> None:
    assert made_for(None, None, None) == ()
    million = Amount(1_000_000, DEFAULT.frontends, DEFAULT.source_ranges)
    assert dict(size.split("=") for size in made_for(1_000_000, None, None)) == {
        name: str(size) for name, size in map_sizes(million).items()
    }
