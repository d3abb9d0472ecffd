"""What the agent tells of its choices, beside what the table of Services (test_rows) shows."""

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from tests.node_agent.world import KEYS, MAPS, OWN, Agent, Values, backend, backends, judged, pod, service

from node_agent.explain import explain, explain_selection
from node_agent.frontends import HOST_PORT
from node_agent.layout import Form
from node_agent.loader import Field, Layout
from node_agent.trace import Hook, Kernel, Outcome, Question, delivery, walk
from node_agent.tracing import read_question
from tidegate.records import Backend, Endpoint, HostPort, Protocol, Service, ServicePort, encode
from tidegate.records.addresses import pack_address, pack_cidr

VIP, CLIENT = pack_address("10.96.0.1"), pack_address("10.0.1.9")
NUMBER = 5080
COOKIE = 0x1_0000_0007  # of the client's network namespace
AFFINITY = {
    "affinities": (
        Form(Layout(24, (Field("client", 0, 16, "addr"), Field("service", 16, 4, "u32"), Field("pad", 20, 4, "u32")))),
        Form(
            Layout(
                32,
                (
                    Field("backend", 0, 16, "addr"),
                    Field("port", 16, 2, "be16"),
                    Field("pad", 18, 2, "u16"),
                    Field("pad2", 20, 4, "u32"),
                    Field("expires", 24, 8, "u64"),
                ),
            )
        ),
    )
}


def kernel(agent: Agent, stays: Mapping[bytes, bytes] | None = None, now: float = 0) -> Kernel:
    forms = {name: (Form(entry.key), Form(entry.value)) for name, entry in MAPS.items()}
    entries: Mapping[str, Mapping[bytes, bytes]] = {**agent.kernel, "affinities": stays or {}}
    return Kernel({**forms, **AFFINITY}, lambda name, key: entries[name].get(key), now)


def question(hook: Hook, cookie: int = 0) -> Question:
    return Question(hook, CLIENT, VIP, 80, Protocol.TCP, cookie)


@pytest.fixture
def agent() -> Agent:
    fresh = Agent()
    fresh.route({"10.0.1.9": 9, "10.0.1.5": 5}, ["172.16.0.1"])
    fresh.snapshot({**judged(300), **pod("client", 300, "10.0.1.9"), **pod("here", 300, "10.0.1.5")})
    return fresh


def stay(address: str, expires: int, client: bytes = CLIENT) -> dict[bytes, bytes]:
    key, value = AFFINITY["affinities"]
    packed = value.pack(backend=pack_address(address), port=8080, expires=expires)
    return {key.pack(client=client, service=NUMBER): packed}


def affine() -> Values:
    port = ServicePort(id=NUMBER, name="http", port=80)
    return {KEYS.service("default", "shop"): encode(Service(cluster_ips=(VIP,), ports=(port,), affinity_seconds=60))}


def test_a_client_that_stays_with_its_backend(agent: Agent) -> None:
    agent.change({**affine(), **backends("shop", 0, backend("10.0.1.5"), backend("10.0.2.5"))})
    both = {pack_address("10.0.1.5"), pack_address("10.0.2.5")}

    def chosen(hook: Hook, *known: Any) -> set[bytes]:
        found = walk(kernel(agent, *known), question(hook, COOKIE))
        assert found.outcome is Outcome.CHOSEN
        return {address for address, _ in found.backends}

    assert chosen(Hook.POD) == both
    assert chosen(Hook.POD, stay("10.0.2.5", 50), 49) == {pack_address("10.0.2.5")}
    assert chosen(Hook.POD, stay("10.0.2.5", 50), 50) == both, "too long ago"
    assert chosen(Hook.POD, stay("10.0.2.9", 50), 49) == both, "no backend any more"
    assert chosen(Hook.SOCKET, stay("10.0.2.5", 50), 49) == both, "there clients are namespaces, not addresses"
    namespace = struct.pack("=IIII", 1, 7, 0xFFFFFFFF, 0xFFFFFFFF)
    assert chosen(Hook.SOCKET, stay("10.0.2.5", 50, namespace), 49) == {pack_address("10.0.2.5")}


def test_a_source_that_is_no_pod_of_this_node(agent: Agent) -> None:
    found = walk(kernel(agent), Question(Hook.POD, pack_address("10.0.1.7"), VIP, 80, Protocol.TCP))
    assert (found.outcome, found.reason) == (Outcome.DROPPED, "CLOSED")


@pytest.mark.parametrize(
    ("hook", "backend_ip", "words"),
    [
        (Hook.POD, "10.0.1.5", "a pod of this node, by redirect_peer"),
        (Hook.SOCKET, "10.0.1.9", "the client itself, inside"),
        (Hook.POD, "10.0.1.9", "hairpin"),
        (Hook.POD, "172.16.0.1", "this node itself"),
        (Hook.POD, "192.0.2.1", "an address outside the cluster, by redirect_neigh"),
        (Hook.NETWORK, "192.0.2.1", "masqueraded"),
        (Hook.SOCKET, "10.0.1.5", "a pod of this node, by redirect_peer"),
    ],
)
def test_the_way_to_a_backend(agent: Agent, hook: Hook, backend_ip: str, words: str) -> None:
    assert words in delivery(kernel(agent), hook, CLIENT, pack_address(backend_ip))


def rows(agent: Agent) -> list[dict[str, Any]]:
    return list(explain(agent.view.services, agent.view.host_ports))


def test_a_backend_without_the_port_is_left_out(agent: Agent) -> None:
    other = Backend(address=pack_address("10.0.2.6"), ports={"metrics": 9100})
    agent.change({**service("shop", "10.96.0.1", http=80), **backends("shop", 0, backend("10.0.1.5"), other)})
    (row,) = rows(agent)
    assert row["backends"] == ["10.0.1.5:8080"]
    assert row["left_out"] == {"10.0.2.6": "its EndpointSlice has no port 'http'"}
    assert explain_selection(agent.view.services, agent.view.host_ports, NUMBER) == row
    assert explain_selection(agent.view.services, agent.view.host_ports, NUMBER + 1) is None


def test_frontends_of_all_kinds_and_who_may_use_them(agent: Agent) -> None:
    record = Service(
        type="LoadBalancer",
        cluster_ips=(VIP,),
        load_balancer_ips=(pack_address("203.0.113.1"),),
        external_ips=(pack_address("198.51.100.1"),),
        source_ranges=(pack_cidr("10.0.0.0/8"),),
        external_local=True,
        ports=(ServicePort(id=NUMBER, name="http", port=80, node_port=30080),),
    )
    agent.change({KEYS.service("default", "shop"): encode(record)})
    cluster, local = rows(agent)
    assert cluster["frontends"] == [
        "10.96.0.1:80",
        "203.0.113.1:80 (in the cluster) (source ranges)",
        "198.51.100.1:80 (in the cluster)",
        "172.16.0.1:30080 (in the cluster)",
    ]
    assert (cluster["source_ranges"], cluster["type"]) == (["10.0.0.0/8"], "LoadBalancer")
    assert [end for end in local["frontends"] if "(outside)" not in end] == []
    assert len(local["frontends"]) == 3


def test_host_ports_are_told_too(agent: Agent) -> None:
    record = Endpoint(
        node=OWN, identity=300, addresses=(pack_address("10.0.1.5"),), host_ports=(HostPort(port=8443, target=443),)
    )
    agent.change({KEYS.endpoint("default", "here"): encode(record)})
    (row,) = rows(agent)
    assert (row["type"], row["frontends"], row["backends"]) == ("hostPort", ["172.16.0.1:8443"], ["10.0.1.5:443"])
    assert row["selection"] & HOST_PORT
    assert explain_selection(agent.view.services, agent.view.host_ports, row["selection"]) == row


def test_questions() -> None:
    asked = {"hook": "socket", "source": "10.0.1.9", "destination": "10.96.0.1", "port": "80", "protocol": "6"}
    assert read_question(asked) == question(Hook.SOCKET)
    for bad in ({"hook": "veth"}, {"source": "x"}, {"port": "http"}):
        with pytest.raises(ValueError, match=r".+"):
            read_question({**asked, **bad})
    with pytest.raises(ValueError, match="hook is missing"):
        read_question({})
