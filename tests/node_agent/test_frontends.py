"""What clients may address for each Service, and which selection of backends is behind it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from msgspec import structs
from tests.node_agent.world import KEYS, MAPS, OWN, Agent, Values, touched

from node_agent.entries import FRONTEND_OPEN, FRONTEND_RANGES, SERVICE_DROP
from node_agent.frontends import IPV6, LOCAL, families, frontends, numbers
from node_agent.layout import Form
from tidegate.records import Backend, BackendShard, Node, Protocol, Service, ServicePort, encode
from tidegate.records.addresses import pack_address, pack_cidr, unpack_address

NODE_IPS = [pack_address(text) for text in ("172.16.0.1", "203.0.113.9", "127.0.0.1", "127.1.2.3")]
NODE_IPS += [pack_address(text) for text in ("fd00:31::1", "2001:db8::9", "::1", "fe80::1", "febf::1")]
VIP, LB, EXTERNAL = "10.96.0.1", "203.0.113.1", "198.51.100.1"
VIP6, LB6, EXTERNAL6 = "fd00:96::1", "2001:db8:1::1", "2001:db8:2::1"
PORT = ServicePort(id=500, name="http", port=80)
NODE_PORT = ServicePort(id=500, name="http", port=80, node_port=30080)

# address:port/protocol → (selection for clients in the cluster, for those outside); port 0: open or closed
Expected = Mapping[str, tuple[int, int] | str]


@dataclass(frozen=True)
class Row:
    service: Service
    expected: Expected
    selections: set[int]


def service(*ports: ServicePort, lb: str = "", external: str = "", **fields: bool) -> Service:
    return Service(
        cluster_ips=(pack_address(VIP),),
        load_balancer_ips=(pack_address(lb),) if lb else (),
        external_ips=(pack_address(external),) if external else (),
        ports=ports,
        **fields,  # type: ignore[arg-type]
    )


def both(record: Service, *vips: str) -> Service:
    """With addresses of both families at everything that has one; `vips` are its ClusterIPs."""
    return structs.replace(
        record,
        cluster_ips=tuple(map(pack_address, vips)),
        load_balancer_ips=record.load_balancer_ips and (*record.load_balancer_ips, pack_address(LB6)),
        external_ips=record.external_ips and (*record.external_ips, pack_address(EXTERNAL6)),
    )


LOCAL_500 = 500 | LOCAL
SIX = 500 | IPV6
CLOSED = {f"{VIP}:0/0": "closed"}
ROWS = {
    "ClusterIP": Row(service(PORT), {**CLOSED, f"{VIP}:80/6": (500, 500)}, {500}),
    "ClusterIP, policy Local": Row(
        service(PORT, internal_local=True), {**CLOSED, f"{VIP}:80/6": (LOCAL_500, LOCAL_500)}, {LOCAL_500}
    ),
    "external policy Local without anything external": Row(
        service(PORT, external_local=True), {**CLOSED, f"{VIP}:80/6": (500, 500)}, {500}
    ),
    "one number on two protocols": Row(
        service(PORT, ServicePort(id=501, name="udp", port=80, protocol=Protocol.UDP)),
        {**CLOSED, f"{VIP}:80/6": (500, 500), f"{VIP}:80/17": (501, 501)},
        {500, 501},
    ),
    "NodePort on all addresses but loopback": Row(
        service(NODE_PORT),
        {
            **CLOSED,
            f"{VIP}:80/6": (500, 500),
            "172.16.0.1:30080/6": (500, 500),
            "203.0.113.9:30080/6": (500, 500),
        },
        {500},
    ),
    "load balancer": Row(
        service(PORT, lb=LB),
        {**CLOSED, f"{VIP}:80/6": (500, 500), f"{LB}:0/0": "closed", f"{LB}:80/6": (500, 500)},
        {500},
    ),
    "load balancer, policy Local: clients in the cluster need no second hop": Row(
        service(PORT, lb=LB, external_local=True),
        {**CLOSED, f"{VIP}:80/6": (500, 500), f"{LB}:0/0": "closed", f"{LB}:80/6": (500, LOCAL_500)},
        {500, LOCAL_500},
    ),
    "external IP: its other ports may be somebody's": Row(
        service(PORT, external=EXTERNAL),
        {**CLOSED, f"{VIP}:80/6": (500, 500), f"{EXTERNAL}:0/0": "open", f"{EXTERNAL}:80/6": (500, 500)},
        {500},
    ),
    "both policies Local": Row(
        service(PORT, external=EXTERNAL, external_local=True, internal_local=True),
        {
            **CLOSED,
            f"{VIP}:80/6": (LOCAL_500, LOCAL_500),
            f"{EXTERNAL}:0/0": "open",
            f"{EXTERNAL}:80/6": (500, LOCAL_500),
        },
        {500, LOCAL_500},
    ),
    "only the internal policy Local": Row(
        service(PORT, external=EXTERNAL, internal_local=True),
        {
            **CLOSED,
            f"{VIP}:80/6": (LOCAL_500, LOCAL_500),
            f"{EXTERNAL}:0/0": "open",
            f"{EXTERNAL}:80/6": (500, 500),
        },
        {500, LOCAL_500},
    ),
    "both families": Row(
        both(service(PORT, lb=LB, external_local=True), VIP, VIP6),
        {
            **CLOSED,
            f"{VIP}:80/6": (500, 500),
            f"{LB}:0/0": "closed",
            f"{LB}:80/6": (500, LOCAL_500),
            f"{VIP6}:0/0": "closed",
            f"{VIP6}:80/6": (SIX, SIX),
            f"{LB6}:0/0": "closed",
            f"{LB6}:80/6": (SIX, SIX | LOCAL),
        },
        {500, LOCAL_500, SIX, SIX | LOCAL},
    ),
    "IPv6 alone: IPv4 addresses of it mean nothing": Row(
        both(service(NODE_PORT, lb=LB, external=EXTERNAL), VIP6),
        {
            f"{VIP6}:0/0": "closed",
            f"{VIP6}:80/6": (SIX, SIX),
            f"{LB6}:0/0": "closed",
            f"{LB6}:80/6": (SIX, SIX),
            f"{EXTERNAL6}:0/0": "open",
            f"{EXTERNAL6}:80/6": (SIX, SIX),
            "fd00:31::1:30080/6": (SIX, SIX),
            "2001:db8::9:30080/6": (SIX, SIX),
        },
        {SIX},
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_frontends(row: Row) -> None:
    found: dict[str, tuple[int, int] | str] = {}
    for one in frontends(row.service, NODE_IPS):
        name = f"{unpack_address(one.address)}:{one.port}/{one.protocol}"
        found[name] = (one.service, one.outside) if one.port else "open" if one.open else "closed"
    assert found == row.expected
    needed = {number for port in row.service.ports for number in numbers(row.service, port)}
    assert {number | bit for number in needed for bit in families(row.service)} == row.selections


# The same in the tables


def backends(*places: tuple[str, str]) -> Values:
    """Addresses and their nodes."""
    shard = BackendShard(
        backends=tuple(Backend(address=pack_address(ip), node=node, ports={"http": 8080}) for ip, node in places)
    )
    return {KEYS.backends("default", "shop", 0): encode(shard)}


def stored(record: Service) -> Values:
    return {KEYS.service("default", "shop"): encode(record)}


def members(agent: Agent, number: int) -> set[str]:
    return {row["addr"] for (of, _), row in agent.rows("backends").items() if of == number}


@pytest.fixture
def agent() -> Agent:
    fresh = Agent()
    fresh.snapshot({})
    return fresh


def test_each_selection_has_its_backends(agent: Agent) -> None:
    agent.change(
        {**stored(service(PORT, lb=LB, external_local=True)), **backends(("10.0.0.1", OWN), ("10.0.0.2", "n9"))}
    )
    assert members(agent, 500) == {"10.0.0.1", "10.0.0.2"}
    assert members(agent, LOCAL_500) == {"10.0.0.1"}
    agent.change(stored(service(PORT)))
    assert members(agent, LOCAL_500) == set()
    assert set(agent.rows("services")) == {500}
    agent.remove(KEYS.service("default", "shop"))
    assert not any(agent.kernel[name] for name in ("frontends", "services", "backends"))


def test_each_family_has_its_own_backends(agent: Agent) -> None:
    agent.change(stored(both(service(PORT, internal_local=True), VIP, VIP6)))
    agent.change(backends(("10.0.0.1", OWN), ("fd00::2", "n9")))
    assert members(agent, LOCAL_500) == {"10.0.0.1"}
    assert members(agent, SIX | LOCAL) == set()
    assert agent.flags("services", SIX | LOCAL) == SERVICE_DROP, "there are some elsewhere, in this family"
    agent.change(backends(("10.0.0.1", OWN), ("fd00::1", OWN)))
    assert members(agent, SIX | LOCAL) == {"fd00::1"}
    agent.change(backends(("fd00::1", OWN)))
    assert (members(agent, LOCAL_500), agent.flags("services", LOCAL_500)) == (set(), 0)
    agent.change(stored(service(PORT)))
    assert set(agent.rows("services")) == {500}


def test_a_local_selection_without_backends_is_dropped_while_there_are_some_elsewhere(agent: Agent) -> None:
    agent.change({**stored(service(PORT, internal_local=True)), **backends(("10.0.0.2", "n9"))})
    assert agent.flags("services", LOCAL_500) == SERVICE_DROP
    agent.remove(KEYS.backends("default", "shop", 0))
    assert agent.flags("services", LOCAL_500) == 0


def test_addresses_that_come_and_go(agent: Agent) -> None:
    agent.change({**stored(service(NODE_PORT)), **backends(("10.0.0.2", "n9"))})
    before = set(agent.rows("frontends"))
    agent.route({}, ["172.16.0.1"])
    assert set(agent.rows("frontends")) - before == {("172.16.0.1", 30080, 6)}
    agent.route({}, ["172.16.0.2"])
    assert set(agent.rows("frontends")) - before == {("172.16.0.2", 30080, 6)}
    agent.route({})
    assert set(agent.rows("frontends")) == before


def test_the_zone_of_the_node_decides_what_is_near(agent: Agent) -> None:
    hinted = [
        Backend(address=pack_address(f"10.0.0.{n}"), ports={"http": 1}, for_zones=(z,)) for n, z in enumerate("ab")
    ]
    agent.change(
        {**stored(service(PORT)), KEYS.backends("default", "shop", 0): encode(BackendShard(backends=tuple(hinted)))}
    )
    assert members(agent, 500) == {"10.0.0.0", "10.0.0.1"}
    agent.change({KEYS.node(OWN): encode(Node(zone="b"))})
    assert members(agent, 500) == {"10.0.0.1"}
    agent.change({KEYS.node(OWN): encode(Node())})
    assert members(agent, 500) == {"10.0.0.0", "10.0.0.1"}


def test_an_address_of_two_services_goes_to_the_one_that_is_left(agent: Agent) -> None:
    other = Service(cluster_ips=(pack_address("10.96.0.2"),), external_ips=(pack_address(EXTERNAL),), ports=(
        ServicePort(id=700, name="http", port=80),
    ))  # fmt: skip
    agent.change(stored(service(PORT, external=EXTERNAL)))
    agent.change({KEYS.service("default", "other"): encode(other)})
    assert agent.rows("frontends")[EXTERNAL, 80, 6] == 700
    agent.remove(KEYS.service("default", "other"))
    assert agent.rows("frontends")[EXTERNAL, 80, 6] == 500
    assert agent.flags("frontends", (EXTERNAL, 0, 0)) == FRONTEND_OPEN


def slot_index(agent: Agent) -> dict[str, int]:
    """Address → slot, as clients that stay with a backend find it."""
    return {key[2]: index for key, index in agent.rows("slots").items()}


def placed(agent: Agent) -> dict[str, int]:
    return {row["addr"]: slot for (_, slot), row in agent.rows("backends").items()}


def test_slots_can_be_found_while_clients_are_to_stay(agent: Agent) -> None:
    places = [(f"10.0.0.{n}", OWN) for n in range(1, 6)]
    affine = structs.replace(service(PORT), affinity_seconds=60)
    agent.change({**stored(service(PORT)), **backends(*places)})
    assert slot_index(agent) == {}
    agent.change(stored(affine))
    assert slot_index(agent) == placed(agent)
    assert len(slot_index(agent)) == 5
    steps = agent.change(backends(*places[1:]))
    assert slot_index(agent) == placed(agent), "one has moved"
    assert touched([step for step in steps if step.map == "slots"]) <= 2
    agent.change(backends(*places))
    assert slot_index(agent) == placed(agent)
    agent.change(stored(service(PORT)))
    assert slot_index(agent) == {}
    agent.change(stored(affine))
    agent.remove(KEYS.service("default", "shop"))
    assert slot_index(agent) == {}


def test_source_ranges(agent: Agent) -> None:
    two = (pack_cidr("10.0.0.0/8"), pack_cidr("fd00::/8"))
    limited = structs.replace(service(PORT, lb=LB, external=EXTERNAL), source_ranges=two)
    agent.change(stored(limited))
    assert set(agent.rows("source_ranges")) == {(32 + 104, 500, "10.0.0.0"), (32 + 8, SIX, "fd00::")}
    flags = {key[0]: agent.flags("frontends", key) for key in agent.rows("frontends") if key[1]}
    assert flags == {VIP: 0, LB: FRONTEND_RANGES, EXTERNAL: 0}, "they are the load balancer's"
    agent.change(stored(structs.replace(limited, source_ranges=two[:1])))
    assert set(agent.rows("source_ranges")) == {(32 + 104, 500, "10.0.0.0")}
    steps = agent.change(stored(service(PORT, lb=LB, external=EXTERNAL)))
    assert [(step.map, len(step.puts), len(step.deletes)) for step in steps] == [
        ("frontends", 1, 0),
        ("source_ranges", 0, 1),
    ], "open before the ranges go"


def test_source_ranges_need_a_load_balancer(agent: Agent) -> None:
    agent.change(stored(structs.replace(service(PORT, external=EXTERNAL), source_ranges=(pack_cidr("10.0.0.0/8"),))))
    assert agent.rows("source_ranges") == {}


def test_the_timeout_of_the_affinity(agent: Agent) -> None:
    agent.change({**stored(structs.replace(service(PORT), affinity_seconds=60)), **backends(("10.0.0.1", OWN))})
    (value,) = agent.kernel["services"].values()
    assert Form(MAPS["services"].value).unpack(value)["affinity_seconds"] == 60


def test_a_restart_writes_nothing(agent: Agent) -> None:
    values = {
        **stored(service(NODE_PORT, lb=LB, external_local=True)),
        **backends(("10.0.0.1", OWN), ("10.0.0.2", "n9")),
    }
    agent.view.set_host({}, frozenset(NODE_IPS))
    agent.change(values)
    again = agent.restarted()
    again.view.set_host({}, frozenset(NODE_IPS))
    assert again.snapshot(values) == []
