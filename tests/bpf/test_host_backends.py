"""Clients outside, and backends of the host network: the node itself answers, under the Service's address."""

import socket
from collections.abc import Iterator

import pytest
from tests.bpf.families import either, family
from tests.bpf.topology import Cluster, Node, Pod, outside_address
from tests.bpf.traffic import (
    PORT,
    SERVICE,
    TCP,
    UDP,
    WANT,
    Server,
    answer_to_nobody,
    client,
    exchange_tcp,
    mtu_discover,
    no_drops,
    outside,
    path_mtu,
    publish,
    receive,
    send_all,
    too_big,
    vip,
    wait_for,
)

pytestmark = pytest.mark.root


def host(node: Node) -> Pod:
    """What listens on the node itself."""
    return Pod("host", node.addresses, node.namespace, node, "", 0)


@pytest.fixture
def routed(world: Cluster) -> Iterator[Cluster]:
    """vip() is a load balancer's address, which leads to the first node."""
    node = world.nodes[0]
    version = either("-4", "-6")
    for protocol in (TCP, UDP):
        publish(node, host(node), protocol=protocol)
        number = SERVICE + protocol
        key = {"addr": vip(), "port": 443, "protocol": protocol}
        node.programs.maps["frontends"].set(key, {"service": number, "outside": number})
    world.outside.run("ip", version, "route", "add", vip(), "via", node.address)
    yield world
    world.outside.run("ip", version, "route", "del", vip())


@pytest.mark.parametrize("number", [0, 1])
def test_the_node_answers_itself(routed: Cluster, number: int) -> None:
    """By its own address, and by a load balancer's; it sees the client."""
    node = routed.nodes[0]
    address, port = ((node.address, PORT), (vip(), 443))[number]
    for _ in range(3):
        seen, _ = exchange_tcp(outside(routed), host(node), address, port, server_port=8080)
        assert seen == outside_address()
    with (
        Server(host(node), 8080, socket.SOCK_DGRAM) as server,
        client(outside(routed), socket.SOCK_DGRAM) as sender,
    ):
        for size in (10, 4000, 10):
            sender.sendto(b"x" * size, (address, port))
            data, peer = receive(server.socket)
            assert (data, peer[0]) == (b"x" * size, outside_address())
            server.socket.sendto(b"y" * size, peer)
            assert receive(sender) == (b"y" * size, (address, port))
    no_drops(routed)


def test_bulk(routed: Cluster) -> None:
    node = routed.nodes[0]
    data = bytes(index % 251 for index in range(100_000))
    with Server(host(node), 8080) as server, client(outside(routed)) as connection:
        connection.connect((vip(), 443))
        with server.accept() as accepted:
            send_all(connection, accepted, data)
            send_all(accepted, connection, data)
            left = node.programs.maps["connections"].items()
            assert len(left) == 1, "it is an established connection"
    no_drops(routed)


def test_another_nodes_host_network(world: Cluster) -> None:
    node, other = world.nodes
    publish(node, host(other))
    seen, _ = exchange_tcp(outside(world), host(other), node.address, PORT, server_port=8080)
    assert seen == node.address
    no_drops(world)


def test_a_closed_port(routed: Cluster) -> None:
    node = routed.nodes[0]
    for address, port in ((node.address, PORT), (vip(), 443)):
        with client(outside(routed), socket.SOCK_DGRAM) as sender:
            sender.connect((address, port))
            sender.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                sender.recv(100)
        with client(outside(routed)) as connection, pytest.raises(ConnectionRefusedError):
            connection.connect((address, port))
    no_drops(routed)


def test_a_client_that_is_gone(routed: Cluster) -> None:
    node = routed.nodes[0]
    answer_to_nobody(host(node), 8080, outside(routed), vip(), 443)
    no_drops(routed)


def client_from(routed: Cluster, port: int) -> socket.socket:
    """One of TCP, by a port that others of the client's may have, too."""
    made = client(outside(routed))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((outside_address(), port))
    return made


def test_one_port_of_a_client_towards_the_service_and_the_node_in_turn(routed: Cluster) -> None:
    """What is addressed last is what answers."""
    node = routed.nodes[0]
    with Server(host(node), 8080, socket.SOCK_DGRAM) as server, client(outside(routed), socket.SOCK_DGRAM) as sender:
        for target in ((vip(), 443), (node.address, 8080), (vip(), 443), (node.address, PORT), (node.address, 8080)):
            sender.sendto(b"x", target)
            _, peer = receive(server.socket)
            server.socket.sendto(b"y", peer)
            assert receive(sender) == (b"y", target)
    with Server(host(node), 8080) as listener:
        for target in ((vip(), 443), (node.address, 8080), (vip(), 443)):
            with client_from(routed, 4322) as connection:
                connection.connect(target)
                listener.accept().close()
                assert connection.recv(1) == b""
    no_drops(routed)


def test_no_connection_to_the_node_beside_one_to_the_service(routed: Cluster) -> None:
    """By one port of the client's: on the wire both would be one."""
    node = routed.nodes[0]
    before = node.programs.counter("TRANSLATION_CLASH")
    with Server(host(node), 8080) as listener, client_from(routed, 4323) as first:
        first.connect((vip(), 443))
        accepted = listener.accept()
        with client_from(routed, 4323) as second:
            second.settimeout(0.5)
            with pytest.raises(TimeoutError):
                second.connect((node.address, 8080))
        accepted.sendall(b"x")
        assert first.recv(1) == b"x"
        accepted.close()
    assert node.programs.counter("TRANSLATION_CLASH") > before


@pytest.fixture
def own_route(routed: Cluster) -> Iterator[Cluster]:
    """To the client, and gone with what was learned of it: bpf_fib_lookup() goes by that even once it is flushed."""
    node = routed.nodes[0]
    node.namespace.run("ip", "route", "add", outside_address(), "dev", "eth0")
    yield routed
    node.namespace.run("ip", "route", "del", outside_address())


def test_a_smaller_mtu_on_the_way_to_the_client(own_route: Cluster) -> None:
    """A router there says so to the node, about a packet of the Service's."""
    node, outer = own_route.nodes[0], own_route.outside
    with (
        Server(host(node), 8080, socket.SOCK_DGRAM) as server,
        client(outside(own_route), socket.SOCK_DGRAM) as sender,
        outer.socket(family(), socket.SOCK_RAW, either(socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)) as router,
    ):
        sender.sendto(b"x", (node.address, PORT))
        _, peer = receive(server.socket)
        server.socket.setsockopt(*mtu_discover(), WANT)
        server.socket.connect(peer)
        assert server.socket.getsockopt(*path_mtu()) == 1500
        mtu = either(1100, 1300)
        router.sendto(too_big(node, sender.getsockname()[1], mtu), (node.address, 0))
        wait_for("the node knows", lambda: server.socket.getsockopt(*path_mtu()) == mtu)
