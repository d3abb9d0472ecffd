"""What pods send out of the cluster, under the node's address: the outside world has no way back to pods here."""

import errno
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from scapy.layers.inet import ICMP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPerror6
from scapy.layers.sctp import SCTP
from tests.bpf.families import either, family
from tests.bpf.kernel import FIRST_PORT, LAST_PORT
from tests.bpf.test_sctp import INIT, INIT_ACK, open_raw, take
from tests.bpf.topology import Cluster, Node, outside_address
from tests.bpf.traffic import (
    DONT,
    EGRESS,
    TCP,
    UDP,
    WANT,
    Server,
    allow,
    answer_to_nobody,
    client,
    exchange_tcp,
    exchange_udp,
    forget_paths,
    isolate,
    link_mtu,
    mtu_discover,
    no_drops,
    outside,
    path_mtu,
    peer_of,
    ping,
    pod,
    receive,
    send_all,
    serve,
    vip,
    wait_for,
)

pytestmark = pytest.mark.root

EVERYTHING, HOST = (96, 0), (128, 128)
POD_NETWORKS = ("10.201.1.0/24", "fd00:201:1::/64")


def set_masquerade(node: Node, on: bool = True) -> None:
    ipv4, ipv6 = node.addresses
    node.programs.maps["devices"].set({"value": 0}, {"flags": 2 if on else 0, "addr": ipv4, "addr6": ipv6})


def exempt(node: Node, address: str, prefix: int, on: bool = True) -> None:
    key = {"prefix": prefix, "addr": address}
    if on:
        node.programs.maps["non_masquerade"].set(key, {"value": 1})
    else:
        node.programs.maps["non_masquerade"].delete(key)


@contextmanager
def no_way_back(cluster: Cluster) -> Iterator[None]:
    node, network = cluster.nodes[0], either(*POD_NETWORKS)
    cluster.outside.run("ip", "route", "del", network, "via", node.address)
    try:
        yield
    finally:
        cluster.outside.run("ip", "route", "add", network, "via", node.address)


@pytest.fixture
def masked(world: Cluster) -> Iterator[Cluster]:
    """n1 masquerades, n2 does not."""
    set_masquerade(world.nodes[0])
    with no_way_back(world):
        yield world


@pytest.fixture
def tcx_masked(tcx_world: Cluster) -> Iterator[Cluster]:
    set_masquerade(tcx_world.nodes[0])
    with no_way_back(tcx_world):
        yield tcx_world


def seen(world: Cluster, port: int = 8080) -> tuple[str, int]:
    """Whom the outside world sees when a connects."""
    return exchange_tcp(pod(world, "a"), outside(world), outside_address(), port)


def entries(node: Node) -> list[tuple[int, str]]:
    """Protocol and client of what leaves as the node."""
    return [(k["protocol"], v["client"]) for k, v in node.programs.maps["masqueraded"].items()]


def test_a_connection_out_of_the_cluster_has_the_nodes_address(masked: Cluster) -> None:
    address, port = seen(masked)
    assert address == masked.nodes[0].address
    assert FIRST_PORT <= port <= LAST_PORT
    no_drops(masked)


@pytest.mark.parametrize("size", [4, 1400, 4000])
def test_datagrams_also_in_fragments(masked: Cluster, size: int) -> None:
    a, node = pod(masked, "a"), masked.nodes[0]
    with (
        Server(outside(masked), 8080, socket.SOCK_DGRAM) as server,
        client(a, socket.SOCK_DGRAM) as sender,
    ):
        for _ in range(3):
            sender.sendto(b"x" * size, (outside_address(), 8080))
            data, peer = receive(server.socket)
            assert (data, peer[0]) == (b"x" * size, node.address)
            server.socket.sendto(b"y" * size, peer)
            assert receive(sender) == (b"y" * size, (outside_address(), 8080))
    assert entries(node) == [(UDP, a.address)], "one socket, one port"
    no_drops(masked)


@pytest.mark.parametrize("size", [56, 4000])
def test_echo_goes_by_identifier(masked: Cluster, size: int) -> None:
    ping(pod(masked, "a"), outside_address(), size)
    ping(pod(masked, "b"), outside_address(), size)
    icmp = either(1, 58)
    assert sorted(entries(masked.nodes[0])) == [(icmp, pod(masked, "a").address), (icmp, pod(masked, "b").address)]
    no_drops(masked)


def test_an_association(masked: Cluster) -> None:
    node = masked.nodes[0]
    with open_raw(pod(masked, "a").namespace) as asking, open_raw(masked.outside) as answering:
        for _ in range(2):
            asking.sendto(bytes(SCTP(sport=4321, dport=9001) / INIT), (outside_address(), 0))
            packet, peer = take(answering, 9001)
            assert (peer, bytes(packet.payload)) == (node.address, bytes(INIT))
            assert FIRST_PORT <= packet.sport <= LAST_PORT
            answering.sendto(bytes(SCTP(sport=9001, dport=packet.sport) / INIT_ACK), (peer, 0))
            packet, peer = take(asking, 4321)
            assert (packet.sport, peer, bytes(packet.payload)) == (9001, outside_address(), bytes(INIT_ACK))
    no_drops(masked)


def test_bulk_keeps_checksums_right(masked: Cluster) -> None:
    a, data = pod(masked, "a"), bytes(index % 251 for index in range(100_000))
    for namespaces in ([], [masked.outside, a.namespace]):
        for namespace in namespaces:
            namespace.run("ethtool", "-K", "eth0", "tx", "off")
        with Server(outside(masked), 8080) as server, client(a) as connection:
            connection.connect((outside_address(), 8080))
            with server.accept() as accepted:
                send_all(connection, accepted, data)
                send_all(accepted, connection, data)
        for namespace in namespaces:
            namespace.run("ethtool", "-K", "eth0", "tx", "on")


def test_pods_and_nodes_see_the_pod(masked: Cluster) -> None:
    a = pod(masked, "a")
    for name in ("b", "c"):
        assert exchange_tcp(a, pod(masked, name), pod(masked, name).address, 8080)[0] == a.address
    ping(a, masked.nodes[1].address)
    ping(a, masked.nodes[0].address)
    masked.nodes[1].namespace.run("ping", "-c", "1", "-n", "-W", "5", a.address)
    assert entries(masked.nodes[0]) == []
    no_drops(masked)


def test_who_comes_from_outside_is_answered_by_the_pod(tcx_world: Cluster) -> None:
    node, a = tcx_world.nodes[0], pod(tcx_world, "a")
    set_masquerade(node)
    assert exchange_tcp(outside(tcx_world), a, a.address, 8080)[0] == outside_address()
    exchange_udp(outside(tcx_world), a, a.address, 8080)
    ping(outside(tcx_world), a.address)
    assert entries(node) == []


RANGES = [
    ("nothing", None, (0, 0), True),
    ("everything", ("0.0.0.0", "::"), EVERYTHING, False),
    ("the network", ("172.31.0.0", "fd00:31::"), (96 + 24, 64), False),
    ("the host", ("172.31.0.250", "fd00:31::250"), HOST, False),
    ("another host", ("172.31.0.251", "fd00:31::251"), HOST, True),
    ("another network", ("172.30.0.0", "fd00:30::"), (96 + 16, 32), True),
]


@pytest.mark.parametrize(("why", "addresses", "prefixes", "expected"), RANGES, ids=[row[0] for row in RANGES])
def test_ranges(
    tcx_world: Cluster, why: str, addresses: tuple[str, str] | None, prefixes: tuple[int, int], expected: bool
) -> None:
    node = tcx_world.nodes[0]
    set_masquerade(node)
    if addresses:
        exempt(node, either(*addresses), either(*prefixes))
    assert seen(tcx_world)[0] == (node.address if expected else pod(tcx_world, "a").address)


def test_turned_off_it_is_off(tcx_world: Cluster) -> None:
    assert seen(tcx_world)[0] == pod(tcx_world, "a").address


def test_a_running_connection_stays_as_it_began(tcx_world: Cluster) -> None:
    """Through a change in each direction; new ones go by what holds now."""
    node, a, where = tcx_world.nodes[0], pod(tcx_world, "a"), outside_address()
    set_masquerade(node)
    with ExitStack() as stack:
        server = stack.enter_context(Server(outside(tcx_world), 8080))
        pairs: list[tuple[socket.socket, socket.socket]] = []
        for excepted in (False, True, False, True):
            if pairs:
                exempt(node, where, either(*HOST), on=excepted)
            connection = stack.enter_context(client(a))
            connection.connect((where, 8080))
            accepted = stack.enter_context(server.accept())
            assert peer_of(accepted)[0] == (a.address if excepted else node.address)
            pairs.append((connection, accepted))
            for mine, theirs in pairs:
                mine.sendall(b"ping")
                assert theirs.recv(100) == b"ping"
                theirs.sendall(b"pong")
                assert mine.recv(100) == b"pong"
    no_drops(tcx_world)


@pytest.mark.parametrize("masquerading", [True, False])
@pytest.mark.parametrize("lost", [("connections", "connections_new"), ("masqueraded",)])
def test_a_connection_outlives_its_entries(tcx_world: Cluster, masquerading: bool, lost: tuple[str, ...]) -> None:
    node, a = tcx_world.nodes[0], pod(tcx_world, "a")
    set_masquerade(node, masquerading)
    with Server(outside(tcx_world), 8080) as server, client(a) as connection:
        connection.connect((outside_address(), 8080))
        with server.accept() as accepted:
            for name in lost:
                node.programs.maps[name].clear()
            set_masquerade(node)
            connection.sendall(b"ping")
            assert accepted.recv(100) == b"ping"
            accepted.sendall(b"pong")
            assert connection.recv(100) == b"pong"
            assert peer_of(accepted)[0] == (node.address if masquerading else a.address)


def test_policy_sees_the_pod(tcx_masked: Cluster) -> None:
    node, a = tcx_masked.nodes[0], pod(tcx_masked, "a")
    isolate(node, "a", ingress=True, egress=True, egress_lengths=1 << 16)
    with client(a) as connection:
        connection.setblocking(False)
        assert connection.connect_ex((outside_address(), 8080)) == errno.EINPROGRESS
        wait_for("it is dropped", lambda: node.programs.counter("POLICY_EGRESS") > 0)
    assert entries(node) == []
    allow(node, "a", EGRESS, [1], TCP, 8080, 16)
    assert seen(tcx_masked)[0] == node.address


def test_a_service_with_a_backend_outside(tcx_masked: Cluster) -> None:
    """The packets of what no socket hook sees are translated twice."""
    node, a = tcx_masked.nodes[0], pod(tcx_masked, "a")
    serve(tcx_masked, 80, [(outside(tcx_masked), 8080)])
    serve(tcx_masked, 80, [(outside(tcx_masked), 8081)], UDP)
    assert exchange_tcp(a, outside(tcx_masked), vip(), 80, server_port=8080)[0] == node.address
    with client(a, socket.SOCK_DGRAM) as sender:
        sender.connect((vip(), 80))
        sender.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)
    no_drops(tcx_masked)


def test_a_closed_port_outside(masked: Cluster) -> None:
    with client(pod(masked, "a"), socket.SOCK_DGRAM) as sender:
        sender.connect((outside_address(), 8080))
        sender.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)
    no_drops(masked)


def test_a_client_that_is_gone(masked: Cluster) -> None:
    """The pod's kernel tells the one outside, about a packet to the node, as that one believes."""
    answer_to_nobody(outside(masked), 8080, pod(masked, "a"), outside_address(), 8080)
    no_drops(masked)


def test_a_smaller_mtu_on_the_way(masked: Cluster) -> None:
    """A router tells the node, as it believes; the pod hears of it."""
    node, a, mtu = masked.nodes[0], pod(masked, "a"), either(1100, 1300)
    protocol = either(socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
    forget_paths(masked)
    with (
        Server(outside(masked), 8080, socket.SOCK_DGRAM) as server,
        client(a, socket.SOCK_DGRAM) as sender,
        masked.outside.socket(family(), socket.SOCK_RAW, protocol) as router,
    ):
        sender.setsockopt(*mtu_discover(), WANT)
        sender.connect((outside_address(), 8080))
        sender.send(b"x")
        port = receive(server.socket)[1][1]
        about = UDPerror(sport=port, dport=8080, len=1400)
        if family() == socket.AF_INET6:
            quoted6 = IPerror6(src=node.address, dst=outside_address(), plen=1400) / about
            word = bytes(ICMPv6PacketTooBig(mtu=mtu) / quoted6)
        else:
            quoted = IPerror(src=node.address, dst=outside_address(), flags="DF") / about
            word = bytes(ICMP(type=3, code=4, nexthopmtu=mtu) / quoted)
        router.sendto(word, (node.address, 0))
        wait_for("the pod knows", lambda: sender.getsockopt(*path_mtu()) == mtu)
    forget_paths(masked)
    no_drops(masked)


@contextmanager
def beyond(cluster: Cluster) -> Iterator[str]:
    """An address behind the outside world, which forwards."""
    switch = either("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    address = either("198.51.100.9", "2001:db8:51::9")
    cluster.outside.set(switch, "1")
    cluster.outside.run("ip", "route", "add", address, "dev", "eth0")
    try:
        yield address
    finally:
        cluster.outside.run("ip", "route", "del", address, "dev", "eth0")
        cluster.outside.set(switch, "0")


@pytest.mark.parametrize(("ttl", "teller"), [(1, "node"), (2, "outside")])
def test_time_exceeded(masked: Cluster, ttl: int, teller: str) -> None:
    """Of echoes, whose identifier must be the pod's again."""
    a = pod(masked, "a")
    hops = either("10.201.1.1", "fd00:201:1::1"), outside_address()
    with beyond(masked) as address:
        command = ["ping", "-c", "1", "-n", "-W", "5", "-t", str(ttl), address]
        with a.namespace.entered():
            result = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    assert f"From {hops[0] if teller == 'node' else hops[1]}" in result
    assert "exceeded" in result
    no_drops(masked)


def test_a_reply_too_large_for_the_pod(masked: Cluster) -> None:
    """The node's stack tells the one outside, in the words that one knows."""
    node, a = masked.nodes[0], pod(masked, "a")
    with (
        link_mtu(masked, node, a.veth, 1300),
        Server(outside(masked), 8080, socket.SOCK_DGRAM) as server,
        client(a, socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(b"x", (outside_address(), 8080))
        _, peer = receive(server.socket)
        server.socket.setsockopt(*mtu_discover(), WANT)
        server.socket.connect(peer)
        server.socket.send(b"y" * 1400)
        wait_for("it is told", lambda: server.socket.getsockopt(*path_mtu()) == 1300)
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        server.socket.send(b"z" * 1400)
        assert receive(sender)[0] == b"z" * 1400


def test_a_reply_that_may_be_cut(masked: Cluster) -> None:
    """By the node's stack in IPv4, by the sender in IPv6."""
    node, a = masked.nodes[0], pod(masked, "a")
    with (
        link_mtu(masked, node, a.veth, 1300),
        Server(outside(masked), 8080, socket.SOCK_DGRAM) as server,
        client(a, socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(b"x", (outside_address(), 8080))
        _, peer = receive(server.socket)
        server.socket.setsockopt(*mtu_discover(), either(DONT, WANT))
        for number in range(2):  # the first one in IPv6 is refused, and tells
            server.socket.sendto(b"%d" % number * 1400, peer)
            wait_for("the path is known", lambda: family() == socket.AF_INET or told(masked, peer[0]))
        last = receive(sender)[0]
        if family() == socket.AF_INET:
            assert last == b"0" * 1400
        else:
            assert last == b"1" * 1400


def told(cluster: Cluster, address: str) -> bool:
    return "mtu 1300" in cluster.outside.run("ip", "route", "get", address)


def test_what_the_stack_forwards_has_the_nodes_address(masked: Cluster) -> None:
    """A datagram larger than the uplink, which may be cut: fragments by the stack. In IPv6 the pod is told."""
    node, a = masked.nodes[0], pod(masked, "a")
    with (
        link_mtu(masked, node, "eth0", 1300),
        Server(outside(masked), 8080, socket.SOCK_DGRAM) as server,
        client(a, socket.SOCK_DGRAM) as sender,
    ):
        sender.connect((outside_address(), 8080))
        sender.setsockopt(*mtu_discover(), either(DONT, WANT))
        sender.send(b"0" * 1400)
        if family() == socket.AF_INET6:
            wait_for("the pod knows", lambda: sender.getsockopt(*path_mtu()) == 1300)
            assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
            sender.send(b"0" * 1400)
        data, peer = receive(server.socket)
        assert (data, peer[0]) == (b"0" * 1400, node.address)
        server.socket.sendto(b"y", peer)
        assert sender.recv(100) == b"y"
    no_drops(masked)


def test_ports_come_from_all_blocks_until_none_is_left(tcx_masked: Cluster) -> None:
    node, a = tcx_masked.nodes[0], pod(tcx_masked, "a")
    node.programs.set_ports((2000, 2001), (3000, 3000), (61000, 61001))
    wanted = {2000, 2001, 3000, 61000, 61001}
    with ExitStack() as stack:
        server = stack.enter_context(Server(outside(tcx_masked), 8080))
        other = stack.enter_context(Server(outside(tcx_masked), 8081))
        ports: set[int] = set()
        attempts = 0
        while ports != wanted:
            # Ports are drawn: the last one may be missed by all draws of one packet. The client sends it again.
            connection = stack.enter_context(client(a))
            connection.connect((outside_address(), 8080))
            ports.add(peer_of(stack.enter_context(server.accept()))[1])
            attempts += 1
        assert attempts == len(wanted), "nobody shares a port"
        before = node.programs.counter("NO_SOURCE_PORT")
        late = stack.enter_context(client(a))
        late.setblocking(False)
        late.connect_ex((outside_address(), 8080))
        wait_for("it is counted", lambda: node.programs.counter("NO_SOURCE_PORT") > before)
        free = stack.enter_context(client(a))
        free.connect((outside_address(), 8081))
        assert peer_of(stack.enter_context(other.accept()))[1] in wanted


def test_without_any_port(tcx_masked: Cluster) -> None:
    node = tcx_masked.nodes[0]
    node.programs.set_ports()
    with client(pod(tcx_masked, "a"), socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (outside_address(), 8080))
        wait_for("it is counted", lambda: node.programs.counter("NO_SOURCE_PORT") > 0)


def test_without_an_address_of_the_node(tcx_masked: Cluster) -> None:
    node = tcx_masked.nodes[0]
    node.programs.maps["devices"].set({"value": node.uplink}, {"flags": 1})
    with client(pod(tcx_masked, "a"), socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (outside_address(), 8080))
        wait_for("it is counted", lambda: node.programs.counter("NO_NODE_ADDRESS") > 0)


def test_ports_of_ended_connections_are_soon_free(tcx_masked: Cluster) -> None:
    node = tcx_masked.nodes[0]
    seen(tcx_masked)

    def ends_soon() -> bool:
        left = node.programs.maps["masqueraded"].items()[0][1]["expires"] - time.monotonic()
        return bool(left <= 31)

    wait_for("its entry ends soon", ends_soon)


def test_a_port_that_is_used_again_is_a_new_connection(tcx_masked: Cluster) -> None:
    """It has the old one's entry, and not its end."""
    node, a = tcx_masked.nodes[0], pod(tcx_masked, "a")
    with Server(outside(tcx_masked), 8080) as server:
        for last in (False, True):
            with client(a) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                connection.bind((a.address, 4323))
                connection.connect((outside_address(), 8080))
                with server.accept() as accepted:
                    accepted.sendall(b"x")
                    assert connection.recv(10) == b"x"
                    (entry,) = node.programs.maps["masqueraded"].items()
                    if not last:
                        # Reset: no TIME_WAIT keeps the port.
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    assert entry[1]["expires"] - time.monotonic() > 1000


def test_what_has_no_ports_goes_one_client_at_a_time(tcx_masked: Cluster) -> None:
    """A protocol of nobody's (RFC 3692: 253), there and back."""
    node, clients = tcx_masked.nodes[0], [pod(tcx_masked, "a"), pod(tcx_masked, "b")]
    strip = either(20, 0)  # raw sockets of IPv4 show the header
    with ExitStack() as stack:
        first, second = (stack.enter_context(p.namespace.socket(family(), socket.SOCK_RAW, 253)) for p in clients)
        server = stack.enter_context(tcx_masked.outside.socket(family(), socket.SOCK_RAW, 253))
        for opened in (first, server):
            opened.settimeout(10)
        first.sendto(b"there", (outside_address(), 0))
        data, peer = receive(server)
        assert (data[strip:], peer[0]) == (b"there", node.address)
        server.sendto(b"back", (node.address, 0))
        assert receive(first)[0][strip:] == b"back"
        second.sendto(b"there", (outside_address(), 0))
        wait_for("it is dropped", lambda: node.programs.drops() == {"NO_SOURCE_PORT": 1})


def test_the_nodes_own_packets_are_its_own(tcx_masked: Cluster) -> None:
    node = tcx_masked.nodes[0]
    seen(tcx_masked)
    node.namespace.run("ping", "-c", "1", "-n", "-W", "5", outside_address())
    with node.namespace.socket(family(), socket.SOCK_DGRAM) as own:
        own.settimeout(10)
        own.connect((outside_address(), 5999))
        own.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            own.recv(100)
