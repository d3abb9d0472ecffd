"""Policy, closed pods and foreign addresses."""

import socket
from ipaddress import ip_network

import pytest
from tests.bpf.families import either, family
from tests.bpf.topology import Cluster, Node, Pod
from tests.bpf.traffic import (
    EGRESS,
    INGRESS,
    PAIRS,
    TCP,
    Server,
    allow,
    allow_blocks,
    block,
    client,
    denied,
    exchange_tcp,
    isolate,
    member,
    outside,
    ping,
    pod,
    raise_generation,
    serve,
    vip,
    wait_for,
)

pytestmark = pytest.mark.root

SET_NONE = 0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_ingress_policy(world: Cluster, source: str, target: str) -> None:
    one, other = pod(world, source), pod(world, target)
    node = other.node
    isolate(node, target, ingress=True)
    denied(world, one, other, 8080, node, "POLICY_INGRESS")
    # Isolation binds one direction only: what the pod itself opens comes back.
    exchange_tcp(other, one, one.address, 8080)
    isolate(node, target, ingress=True, ingress_lengths=1 << 16)
    allow(node, target, INGRESS, [500], TCP, 8081, 16)
    member(node, 500, source)
    exchange_tcp(one, other, other.address, 8081)
    denied(world, one, other, 8080, node, "POLICY_INGRESS")


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_egress_policy(world: Cluster, source: str, target: str) -> None:
    one, other = pod(world, source), pod(world, target)
    node = one.node
    isolate(node, source, egress=True)
    denied(world, one, other, 8080, node, "POLICY_EGRESS")
    exchange_tcp(other, one, one.address, 8080)
    isolate(node, source, egress=True, egress_lengths=1 << 31)
    allow(node, source, EGRESS, [501], 0)
    member(node, 501, target)
    raise_generation(node)
    exchange_tcp(one, other, other.address, 8081)
    ping(one, other.address)


def around(target: Pod | Node) -> tuple[str, int]:
    """A range with the whole network of the pod or node in it."""
    return str(ip_network(f"{target.address}/{either(24, 64)}", strict=False).network_address), either(24, 64)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_blocks_of_addresses(world: Cluster, source: str, target: str) -> None:
    """They hold for pods; an exception added to them cuts the connection that lives."""
    one, other = pod(world, source), pod(world, target)
    node = other.node
    isolate(node, target, ingress=True, ingress_lengths=1 << 31)
    allow_blocks(node, target, INGRESS, 700)
    block(node, 701, *around(one))  # another set's
    denied(world, one, other, 8080, node, "POLICY_INGRESS")
    block(node, 700, *around(one))
    with Server(other, 8080) as server, client(one) as connection:
        connection.connect((other.address, 8080))
        accepted = server.accept()
        connection.send(b"before")
        assert accepted.recv(100) == b"before"
        block(node, 700, one.address, either(32, 128), SET_NONE)
        raise_generation(node)
        before = node.programs.counter("POLICY_INGRESS")
        connection.send(b"after")
        wait_for("a drop", lambda: node.programs.counter("POLICY_INGRESS") > before)
        accepted.setblocking(False)
        with pytest.raises(BlockingIOError):
            accepted.recv(100)
        block(node, 700, one.address, either(32, 128), 500)  # those in it who are in this set as well
        denied(world, one, other, 8081, node, "POLICY_INGRESS")
        member(node, 500, source)
        raise_generation(node)
        accepted.setblocking(True)
        assert accepted.recv(100) == b"after", "sent again, once it was allowed"
        accepted.close()


def test_blocks_of_addresses_hold_for_nodes_and_the_outside(world: Cluster) -> None:
    node, a = world.nodes[0], pod(world, "a")
    isolate(node, "a", egress=True, egress_lengths=1 << 31)
    allow_blocks(node, "a", EGRESS, 700)
    for target, name in ((node, "own node"), (world.nodes[1], "other node"), (outside(world), "outside")):
        lost = node.programs.counter("POLICY_EGRESS")
        with client(a, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (target.address, 9))
        assert node.programs.counter("POLICY_EGRESS") > lost, name
        block(node, 700, target.address, either(32, 128))
        raise_generation(node)
        ping(a, target.address)


def test_policy_holds_behind_a_service(world: Cluster) -> None:
    a, b = pod(world, "a"), pod(world, "b")
    serve(world, 80, [(b, 8080)])
    isolate(a.node, "b", ingress=True, ingress_lengths=1 << 16)
    allow(a.node, "b", INGRESS, [1], TCP, 80, 16)  # the Service's port, not the backend's
    with client(a) as connection:
        connection.setblocking(False)
        connection.connect_ex((vip(), 80))
        wait_for("a drop", lambda: a.node.programs.counter("POLICY_INGRESS") > 0)
    allow(a.node, "b", INGRESS, [1], TCP, 8080, 16)
    exchange_tcp(a, b, vip(), 80, server_port=8080)


BLOCKS = [
    ("block of 16", 8000, 12, {8000: True, 8015: True, 8016: False, 7999: False}),
    ("upper half", 32768, 1, {32768: True, 65535: True, 32767: False}),
    ("all ports", 0, 0, {1: True, 65535: True}),
]


@pytest.mark.parametrize(("name", "port", "length", "expected"), BLOCKS, ids=[row[0] for row in BLOCKS])
def test_port_prefix_blocks(tcx_world: Cluster, name: str, port: int, length: int, expected: dict[int, bool]) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    isolate(a.node, "b", ingress=True, ingress_lengths=1 << length)
    allow(a.node, "b", INGRESS, [1], TCP, port, length)
    for tried, works in expected.items():
        if works:
            exchange_tcp(a, b, b.address, tried)
        else:
            denied(tcx_world, a, b, tried, a.node, "POLICY_INGRESS")


def test_own_node_is_not_subject_to_ingress_policy(world: Cluster) -> None:
    node = world.nodes[0]
    a = pod(world, "a")
    isolate(node, "a", ingress=True, egress=True)
    node.namespace.run("ping", "-c", "1", "-n", "-W", "5", a.address)
    # … but another node is.
    with Server(a, 8080), world.nodes[1].namespace.socket(family(), socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        connection.connect_ex((a.address, 8080))
        wait_for("a drop", lambda: node.programs.counter("POLICY_INGRESS") > 0)


def test_closed_pod_meets_only_its_own_node(world: Cluster) -> None:
    node = world.nodes[0]
    a, b = pod(world, "a"), pod(world, "b")
    closed = {"identity": 0, "ifindex": b.ifindex, "flags": 1 | 8}
    node.programs.maps["endpoints"].set({"addr": b.address}, closed)
    node.namespace.run("ping", "-c", "1", "-n", "-W", "5", b.address)
    ping(b, node.address)
    denied(world, a, b, 8080, node, "CLOSED")
    denied(world, b, a, 8080, node, "CLOSED")
    node.programs.maps["endpoints"].delete({"addr": b.address})
    denied(world, b, a, 8080, node, "CLOSED")
    denied(world, a, b, 8080, node, "NOT_UPLINK")


def test_spoofed_source_is_dropped(world: Cluster) -> None:
    node = world.nodes[0]
    a, b = pod(world, "a"), pod(world, "b")
    a.namespace.run("ip", "addr", "add", b.address, "dev", "lo", *either((), ("nodad",)))
    try:
        with client(a, socket.SOCK_DGRAM) as sender:
            sender.bind((b.address, 0))
            sender.sendto(b"x", (pod(world, "c").address, 9))
            wait_for("the drop", lambda: node.programs.drops() == {"SPOOFED": 1})
    finally:
        a.namespace.run("ip", "addr", "del", b.address, "dev", "lo")
