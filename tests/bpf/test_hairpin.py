"""A pod that reaches itself through a Service, without a socket hook: it sees its node, as behind kube-proxy."""

import socket

import pytest
from tests.bpf.families import either, family
from tests.bpf.topology import Cluster
from tests.bpf.traffic import (
    UDP,
    Server,
    answer_to_nobody,
    client,
    exchange_tcp,
    hop_limit,
    isolate,
    no_drops,
    pod,
    receive,
    serve,
    vip,
    wait_for,
)

pytestmark = pytest.mark.root


@pytest.mark.parametrize("isolated", [False, True])
def test_a_pod_reaches_itself(world: Cluster, isolated: bool) -> None:
    """No policy keeps it from that."""
    a = pod(world, "a")
    serve(world, 80, [(a, 8080)])
    serve(world, 53, [(a, 5353)], UDP)
    if isolated:
        isolate(a.node, "a", ingress=True, egress=True)
    for _ in range(3):
        assert exchange_tcp(a, a, vip(), 80, server_port=8080)[0] == a.node.address
    with Server(a, 5353, socket.SOCK_DGRAM) as server, client(a, socket.SOCK_DGRAM) as sender:
        for size in (10, 4000, 10):
            sender.sendto(b"x" * size, (vip(), 53))
            data, peer = receive(server.socket)
            assert (data, peer[0]) == (b"x" * size, a.node.address)
            server.socket.sendto(b"y" * size, peer)
            assert receive(sender) == (b"y" * size, (vip(), 53))
    no_drops(world)


def test_a_pod_among_the_backends_is_one_of_them(tcx_world: Cluster) -> None:
    """Its connections go to itself as often as to the other."""
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    serve(tcx_world, 80, [(a, 8080), (b, 8080)])
    with Server(a, 8080) as own, Server(b, 8080) as other:
        own.socket.setblocking(False)
        other.socket.setblocking(False)
        answered = {"a": 0, "b": 0}
        for _ in range(40):
            with client(a) as connection:
                connection.connect((vip(), 80))
                for name, server in (("a", own), ("b", other)):
                    try:
                        accepted, peer = server.socket.accept()
                    except BlockingIOError:
                        continue
                    assert peer[0] == (a.node.address if name == "a" else a.address)
                    accepted.close()
                    answered[name] += 1
    assert sum(answered.values()) == 40
    assert min(answered.values()) > 5, answered
    no_drops(tcx_world)


def test_a_closed_port_of_itself(world: Cluster) -> None:
    """The error comes to the client as one about its own packet, from the Service."""
    a = pod(world, "a")
    serve(world, 5300, [(a, 5301)], UDP)
    with client(a, socket.SOCK_DGRAM) as sender:
        sender.connect((vip(), 5300))
        sender.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)
    serve(world, 80, [(a, 8081)])
    with client(a) as connection, pytest.raises(ConnectionRefusedError):
        connection.connect((vip(), 80))
    no_drops(world)


def test_a_client_that_is_gone(world: Cluster) -> None:
    a = pod(world, "a")
    serve(world, 5300, [(a, 5301)], UDP)
    answer_to_nobody(a, 5301, a, vip(), 5300)
    no_drops(world)


def test_what_the_pod_says_to_its_node_is_the_nodes(world: Cluster) -> None:
    """While a connection to itself is open, and from the very port of its backend."""
    a = pod(world, "a")
    serve(world, 53, [(a, 5353)], UDP)
    with Server(a, 5353, socket.SOCK_DGRAM) as server, client(a, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (vip(), 53))
        _, (_, taken) = receive(server.socket)
        with a.node.namespace.socket(family(), socket.SOCK_DGRAM) as own:
            own.settimeout(10)
            own.bind((a.node.address, 2000 if taken != 2000 else 2001))
            server.socket.sendto(b"to the node", own.getsockname()[:2])
            assert receive(own) == (b"to the node", (a.address, 5353))
    no_drops(world)


def test_at_the_end_of_its_life(tcx_world: Cluster) -> None:
    a = pod(tcx_world, "a")
    serve(tcx_world, 80, [(a, 8080)])
    with client(a) as connection:
        connection.setsockopt(*hop_limit(), 1)
        connection.setblocking(False)
        connection.connect_ex((vip(), 80))
        wait_for("it is dropped", lambda: a.node.programs.counter("TTL") > 0)


def test_a_node_without_an_address(tcx_world: Cluster) -> None:
    a = pod(tcx_world, "a")
    serve(tcx_world, 80, [(a, 8080)])
    a.node.programs.maps["devices"].set({"value": 0}, {either("addr6", "addr"): a.node.addresses[either(1, 0)]})
    with client(a) as connection:
        connection.setblocking(False)
        connection.connect_ex((vip(), 80))
        wait_for("it is dropped", lambda: a.node.programs.counter("NO_NODE_ADDRESS") > 0)
