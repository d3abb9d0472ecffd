"""Clients outside the cluster, by way of a node's own addresses: backends on that node, and on another one."""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.bpf.families import either, family
from tests.bpf.kernel import FIRST_PORT, LAST_PORT
from tests.bpf.topology import OUTSIDE, Cluster, Node, Pod, outside_address
from tests.bpf.traffic import (
    DONT,
    PORT,
    SERVICE,
    TCP,
    UDP,
    WANT,
    Server,
    answer_to_nobody,
    client,
    exchange_tcp,
    exchange_udp,
    forget_paths,
    hop_limit,
    isolate,
    link_mtu,
    mtu_discover,
    no_drops,
    outside,
    path_mtu,
    pod,
    publish,
    receive,
    send_all,
    serve,
    too_big,
    vip,
    wait_for,
)

pytestmark = pytest.mark.root

IP_RECVERR, IPV6_RECVERR = 11, 25  # of linux/in.h and linux/in6.h


def test_a_backend_on_the_node_sees_the_client(world: Cluster) -> None:
    node, backend = world.nodes[0], pod(world, "a")
    publish(node, backend)
    assert exchange_tcp(outside(world), backend, node.address, PORT, server_port=8080)[0] == outside_address()
    publish(node, backend, protocol=UDP)
    exchange_udp(outside(world), backend, node.address, PORT, size=1000, server_port=8080)
    no_drops(world)


def test_a_backend_elsewhere_sees_the_node(world: Cluster) -> None:
    node, backend = world.nodes[0], pod(world, "c")
    publish(node, backend)
    address, port = exchange_tcp(outside(world), backend, node.address, PORT, server_port=8080)
    assert address == node.address
    assert FIRST_PORT <= port <= LAST_PORT
    no_drops(world)


def test_one_port_of_a_client_towards_two_frontends_of_one_backend(world: Cluster) -> None:
    """At once, and one after the other."""
    node, backend = world.nodes[0], pod(world, "c")
    publish(node, backend)
    other = {"addr": node.address, "port": PORT + 1, "protocol": TCP}
    node.programs.maps["frontends"].set(other, {"service": SERVICE + TCP, "outside": SERVICE + TCP})
    with Server(backend, 8080) as server, client(outside(world)) as first, client(outside(world)) as second:
        for number, connection in enumerate((first, second)):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind((outside_address(), 4321))
            connection.connect((node.address, PORT + number))
        accepted = [server.accept(), server.accept()]
        for mine, theirs, number in zip((first, second), accepted, (0, 1), strict=True):
            theirs.sendall(b"%d" % number)
            assert mine.recv(100) == b"%d" % number
            theirs.close()
    no_drops(world)


@pytest.mark.parametrize("size", [4, 1400])
def test_datagrams_to_a_backend_elsewhere(world: Cluster, size: int) -> None:
    node, backend = world.nodes[0], pod(world, "c")
    publish(node, backend, protocol=UDP)
    with Server(backend, 8080, socket.SOCK_DGRAM) as server, client(outside(world), socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(b"x" * size, (node.address, PORT))
            data, peer = receive(server.socket)
            assert (data, peer[0]) == (b"x" * size, node.address)
            server.socket.sendto(b"y" * size, peer)
            assert receive(sender) == (b"y" * size, (node.address, PORT))
    assert len(node.programs.maps["masqueraded"].items()) == 1, "one socket, one port"
    no_drops(world)


@pytest.mark.parametrize("target", ["a", "c"])
def test_bulk_keeps_checksums_right(world: Cluster, target: str) -> None:
    """With the checksums left open by the sender, and summed up by it."""
    node, backend = world.nodes[0], pod(world, target)
    publish(node, backend)
    data = bytes(index % 251 for index in range(100_000))
    for namespaces in ([], [world.outside, backend.namespace]):
        for namespace in namespaces:
            namespace.run("ethtool", "-K", "eth0", "tx", "off")
        with Server(backend, 8080) as server, client(outside(world)) as connection:
            connection.connect((node.address, PORT))
            with server.accept() as accepted:
                send_all(connection, accepted, data)
                send_all(accepted, connection, data)
        for namespace in namespaces:
            namespace.run("ethtool", "-K", "eth0", "tx", "on")


def test_the_node_keeps_its_own_ports(world: Cluster) -> None:
    node = world.nodes[0]
    publish(node, pod(world, "c"))
    own = Pod("node", node.addresses, node.namespace, node, "", 0)
    assert exchange_tcp(outside(world), own, node.address, 8443)[0] == outside_address()
    with client(outside(world)) as connection, pytest.raises(ConnectionRefusedError):
        connection.connect((node.address, PORT + 1))
    no_drops(world)


def test_what_the_node_itself_opens_is_not_taken_for_a_reply(world: Cluster) -> None:
    """From a port below 30000, to the very backend that connections from outside go to."""
    node, backend = world.nodes[0], pod(world, "c")
    publish(node, backend)
    with Server(backend, 8080) as server, client(outside(world)) as first:
        first.connect((node.address, PORT))
        with server.accept() as accepted:
            taken = accepted.getpeername()[1]
            own = node.namespace.socket(family(), socket.SOCK_STREAM)
            own.settimeout(10)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((node.address, 2000 if taken != 2000 else 2001))
            own.connect((backend.address, 8080))
            with server.accept() as other, own:
                other.sendall(b"to the node")
                assert own.recv(100) == b"to the node"
            accepted.sendall(b"to the client")
            assert first.recv(100) == b"to the client"


def test_a_refused_client_is_told(world: Cluster) -> None:
    node = world.nodes[0]
    publish(node)
    publish(node, protocol=UDP)
    with client(outside(world)) as connection, pytest.raises(ConnectionRefusedError):
        connection.connect((node.address, PORT))
    with client(outside(world), socket.SOCK_DGRAM) as sender:
        sender.connect((node.address, PORT))
        sender.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)
    assert node.programs.drops() == {"NO_BACKEND": 2}


@pytest.mark.parametrize("target", ["a", "c"])
def test_policy_of_the_backend(world: Cluster, target: str) -> None:
    """It is judged where the backend is."""
    backend = pod(world, target)
    publish(world.nodes[0], backend)
    isolate(backend.node, target, ingress=True)
    entrance = Pod("entrance", world.nodes[0].addresses, world.outside, world.nodes[0], "", 0)
    with Server(backend, 8080), client(outside(world)) as connection:
        connection.setblocking(False)
        connection.connect_ex((entrance.address, PORT))
        wait_for("it is dropped", lambda: backend.node.programs.counter("POLICY_INGRESS") > 0)


@pytest.mark.parametrize("target", ["a", "c"])
def test_a_closed_port_of_a_backend(world: Cluster, target: str) -> None:
    """The error is about the client's packet, and comes from the address that it spoke to."""
    node = world.nodes[0]
    publish(node, pod(world, target), protocol=UDP)
    with client(outside(world), socket.SOCK_DGRAM) as sender:
        sender.connect((node.address, PORT))
        sender.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)
    no_drops(world)


@pytest.mark.parametrize("target", ["a", "c"])
def test_a_client_that_is_gone(world: Cluster, target: str) -> None:
    """Its kernel tells the backend, in the backend's words."""
    node, backend = world.nodes[0], pod(world, target)
    publish(node, backend, protocol=UDP)
    answer_to_nobody(backend, 8080, outside(world), node.address, PORT)
    no_drops(world)


@pytest.mark.parametrize("target", ["a", "c"])
def test_a_smaller_mtu_on_the_way_to_the_client(world: Cluster, target: str) -> None:
    """A router there says so to the node, as it believes; the backend hears of it."""
    node, backend = world.nodes[0], pod(world, target)
    mtu = either(1100, 1300)
    publish(node, backend, protocol=UDP)
    with (
        Server(backend, 8080, socket.SOCK_DGRAM) as server,
        client(outside(world), socket.SOCK_DGRAM) as sender,
        world.outside.socket(family(), socket.SOCK_RAW, either(socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)) as router,
    ):
        sender.sendto(b"x", (node.address, PORT))
        _, peer = receive(server.socket)
        server.socket.setsockopt(*mtu_discover(), WANT)
        server.socket.connect(peer)
        backend.namespace.run("ip", either("-4", "-6"), "route", "flush", "cache")
        assert server.socket.getsockopt(*path_mtu()) == 1500
        port = sender.getsockname()[1]
        router.sendto(too_big(node, port, mtu), (node.address, 0))
        wait_for("the backend knows", lambda: server.socket.getsockopt(*path_mtu()) == mtu)
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        server.socket.send(b"y" * 900)
        assert receive(sender) == (b"y" * 900, (node.address, PORT))
    backend.namespace.run("ip", either("-4", "-6"), "route", "flush", "cache")


def test_errors_about_the_nodes_own_packets_are_its_own(world: Cluster) -> None:
    node = world.nodes[0]
    publish(node, pod(world, "c"), protocol=UDP)
    with node.namespace.socket(family(), socket.SOCK_DGRAM) as own:
        own.settimeout(10)
        own.connect((outside_address(), 5999))
        own.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            own.recv(100)


RANGES = [
    ("the client itself", OUTSIDE, (128, 128), True),
    ("its network", ("172.31.0.0", "fd00:31::"), (96 + 24, 64), True),
    ("everybody", ("0.0.0.0", "::"), (96, 0), True),  # a range
    ("another", ("172.31.0.251", "fd00:31::251"), (128, 128), False),
    ("another Service's", None, (0, 0), False),
]


@pytest.mark.parametrize(("why", "addresses", "prefixes", "allowed"), RANGES, ids=[row[0] for row in RANGES])
def test_source_ranges(
    tcx_world: Cluster, why: str, addresses: tuple[str, str] | None, prefixes: tuple[int, int], allowed: bool
) -> None:
    node, backend = tcx_world.nodes[0], pod(tcx_world, "a")
    publish(node, backend)
    maps, number = node.programs.maps, SERVICE + TCP
    key = {"addr": node.address, "port": PORT, "protocol": TCP}
    maps["frontends"].set(key, {"service": number, "outside": number, "flags": 2})
    own = number if addresses else number + 1
    maps["source_ranges"].set(
        {"prefix": 32 + either(*prefixes), "service": own, "addr": either(*(addresses or OUTSIDE))}, {"value": 1}
    )
    if allowed:
        exchange_tcp(outside(tcx_world), backend, node.address, PORT, server_port=8080)
        return
    with client(outside(tcx_world)) as connection:
        connection.setblocking(False)
        connection.connect_ex((node.address, PORT))
        wait_for("it is dropped", lambda: node.programs.drops() == {"SOURCE_RANGE": 1})


def test_source_ranges_hold_for_pods_too(tcx_world: Cluster) -> None:
    """Packets, and sockets, whose packets are looked at instead."""
    node, source, backend = tcx_world.nodes[0], pod(tcx_world, "a"), pod(tcx_world, "b")
    serve(tcx_world, 80, [(backend, 8080)])
    maps, number = node.programs.maps, 7000 + TCP
    maps["frontends"].set({"addr": vip(), "port": 80, "protocol": TCP}, {"service": number, "flags": 2})
    with client(source) as connection:
        connection.setblocking(False)
        connection.connect_ex((vip(), 80))
        wait_for("it is dropped", lambda: node.programs.counter("SOURCE_RANGE") > 0)
    maps["source_ranges"].set({"prefix": 32 + 128, "service": number, "addr": source.address}, {"value": 1})
    exchange_tcp(source, backend, vip(), 80, server_port=8080)


def test_no_port_is_left(tcx_world: Cluster) -> None:
    """All of them are in use towards this backend; towards another one they are free."""
    node, full, free = tcx_world.nodes[0], pod(tcx_world, "c"), pod(tcx_world, "d")
    maps = node.programs.maps
    entry = {
        "client": either("192.0.2.1", "2001:db8::1"),
        "client_port": 1,
        "vip": node.address,
        "expires": int(time.monotonic()) + 3600,
    }
    for port in range(FIRST_PORT, LAST_PORT + 1):
        key = {"backend": full.address, "node": node.address, "backend_port": 8080, "node_port": port, "protocol": TCP}
        maps["masqueraded"].set(key, entry)
    publish(node, full)
    with Server(full, 8080), client(outside(tcx_world)) as connection:
        connection.setblocking(False)
        connection.connect_ex((node.address, PORT))
        wait_for("it is counted", lambda: node.programs.counter("NO_SOURCE_PORT") > 0)
    publish(node, free)
    exchange_tcp(outside(tcx_world), free, node.address, PORT, server_port=8080)


LIVES = [("reset", 10), ("closed", 30)]


@pytest.mark.parametrize(("end", "lifetime"), LIVES)
def test_ports_of_ended_connections_are_soon_free(tcx_world: Cluster, end: str, lifetime: int) -> None:
    node, backend = tcx_world.nodes[0], pod(tcx_world, "c")
    publish(node, backend)
    with Server(backend, 8080) as server, client(outside(tcx_world)) as connection:
        connection.connect((node.address, PORT))
        with server.accept() as accepted:
            accepted.sendall(b"hello")
            connection.recv(100)
            left = node.programs.maps["masqueraded"].items()[0][1]["expires"] - time.monotonic()
            assert 86000 < left <= 86401
            if end == "reset":
                linger = b"\1\0\0\0\0\0\0\0"
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if end == "closed":
            assert connection.recv(100) == b""

    def ends_soon() -> bool:
        left = node.programs.maps["masqueraded"].items()[0][1]["expires"] - time.monotonic()
        return bool(left <= lifetime + 1)

    wait_for("its entry ends soon", ends_soon)


def test_a_pod_comes_in_by_another_node(world: Cluster) -> None:
    """From one node's pod to the other's port, with the backend on either of them."""
    source, entrance = pod(world, "a"), world.nodes[1]
    for target in ("b", "c"):
        backend = pod(world, target)
        publish(entrance, backend)
        seen, _ = exchange_tcp(source, backend, entrance.address, PORT, server_port=8080)
        assert seen == (source.address if target == "c" else entrance.address)
    no_drops(world)


def test_an_own_address_does_not_come_from_outside(world: Cluster) -> None:
    node, backend = world.nodes[0], pod(world, "a")
    publish(node, backend)
    world.outside.run("ip", "addr", "add", backend.address, "dev", "lo", *either((), ("nodad",)))
    try:
        spoofer = world.outside.socket(family(), socket.SOCK_DGRAM)
        publish(node, backend, protocol=UDP)
        with spoofer:
            spoofer.bind((backend.address, 0))
            spoofer.sendto(b"x", (node.address, PORT))
            wait_for("it is dropped", lambda: node.programs.drops() == {"SPOOFED": 1})
    finally:
        world.outside.run("ip", "addr", "del", backend.address, "dev", "lo")


@contextmanager
def narrow(backend: Pod, entrance: Node, mtu: int) -> Iterator[None]:
    """The way from the entrance to the backend takes no more than that: its device there, or the route to its node."""
    if backend.node is not entrance:
        with narrow_route(entrance, backend.address, mtu, "via", either(*backend.node.addresses)):
            yield
        return
    entrance.namespace.run("ip", "link", "set", backend.veth, "mtu", str(mtu))
    try:
        yield
    finally:
        entrance.namespace.run("ip", "link", "set", backend.veth, "mtu", "1500")


@contextmanager
def narrow_route(node: Node, target: str, mtu: int, *way: str) -> Iterator[None]:
    # What is not locked counts for the node's own packets only.
    node.namespace.run("ip", "route", "add", target, *way, "mtu", "lock", str(mtu))
    try:
        yield
    finally:
        node.namespace.run("ip", "route", "del", target)


@pytest.mark.parametrize("target", ["a", "c"])
def test_a_smaller_mtu_on_the_way_to_the_backend(world: Cluster, target: str) -> None:
    """The client is told about the packet that it sent, and makes smaller ones."""
    node, backend = world.nodes[0], pod(world, target)
    publish(node, backend)
    publish(node, backend, protocol=UDP)
    data = bytes(index % 251 for index in range(100_000))
    with narrow(backend, node, 1300):
        with client(outside(world), socket.SOCK_DGRAM) as sender:
            sender.setsockopt(*mtu_discover(), WANT)
            sender.connect((node.address, PORT))
            sender.send(b"x" * 1400)
            wait_for("the client knows", lambda: sender.getsockopt(*path_mtu()) == 1300)
            assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        forget_paths(world)
        with Server(backend, 8080) as server, client(outside(world)) as connection:
            connection.connect((node.address, PORT))
            with server.accept() as accepted:
                send_all(connection, accepted, data)
    forget_paths(world)


def test_a_smaller_mtu_from_the_node_to_the_client(world: Cluster) -> None:
    """A backend elsewhere is told about what it has sent to the node."""
    node, backend = world.nodes[0], pod(world, "c")
    publish(node, backend, protocol=UDP)
    with (
        narrow_route(node, outside_address(), 1300, "dev", "eth0"),
        Server(backend, 8080, socket.SOCK_DGRAM) as server,
        client(outside(world), socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(b"x", (node.address, PORT))
        _, peer = receive(server.socket)
        server.socket.setsockopt(*mtu_discover(), WANT)
        server.socket.connect(peer)
        server.socket.send(b"y" * 1400)
        wait_for("the backend knows", lambda: server.socket.getsockopt(*path_mtu()) == 1300)
    forget_paths(world)


def test_a_reply_that_the_stack_cuts_comes_from_the_service(world: Cluster) -> None:
    """A datagram larger than the uplink, which may be cut: by the stack. In IPv6 the backend is told."""
    node, backend = world.nodes[0], pod(world, "a")
    publish(node, backend, protocol=UDP)
    with (
        link_mtu(world, node, "eth0", 1300),
        Server(backend, 8080, socket.SOCK_DGRAM) as server,
        client(outside(world), socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(b"x", (node.address, PORT))
        _, peer = receive(server.socket)
        server.socket.connect(peer)
        server.socket.setsockopt(*mtu_discover(), either(DONT, WANT))
        server.socket.send(b"y" * 1400)
        if family() == socket.AF_INET6:
            wait_for("the backend knows", lambda: server.socket.getsockopt(*path_mtu()) == 1300)
            assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
            server.socket.send(b"y" * 1400)
        assert receive(sender) == (b"y" * 1400, (node.address, PORT))
    no_drops(world)


@pytest.mark.parametrize("target", ["a", "c"])
def test_a_client_whose_packets_are_too_old_is_told(world: Cluster, target: str) -> None:
    node, backend = world.nodes[0], pod(world, target)
    publish(node, backend, protocol=UDP)
    with client(outside(world), socket.SOCK_DGRAM) as sender:
        sender.setsockopt(*either((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)), 1)
        sender.setsockopt(*hop_limit(), 1)
        sender.connect((node.address, PORT))
        sender.send(b"x")
        with pytest.raises(OSError, match="No route to host"):
            sender.recv(100)
