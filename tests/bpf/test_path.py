"""TTL, MTU and fragments: as the kernel would treat them."""

import socket
import struct
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.bpf.families import either, family, using
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.topology import Cluster, Pod, attached_world
from tests.bpf.traffic import (
    DO,
    DONT,
    EGRESS,
    INGRESS,
    PAIRS,
    PATIENCE,
    UDP,
    Server,
    allow,
    client,
    exchange_udp,
    isolate,
    mtu_discover,
    no_drops,
    path_mtu,
    ping,
    pod,
    receive,
    send_all,
    serve,
    vip,
)

UNSPEC, REDIRECT = -1, 7


pytestmark = pytest.mark.root

# Routers cut no IPv6 packets.
IPV4_ONLY = pytest.mark.parametrize("world", [("tcx", 4), ("clsact", 4)], ids=["tcx", "clsact"], indirect=True)


def traced(source: Pod, address: str, ttl: int) -> str:
    """The address that answers "time exceeded" to a datagram with this TTL."""
    with source.namespace.socket(family(), socket.SOCK_DGRAM) as sender:
        sender.settimeout(PATIENCE)
        sender.setsockopt(*either((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)), 1)  # IP_RECVERR
        sender.setsockopt(
            *either((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)), ttl
        )
        sender.connect((address, 33434))
        sender.send(b"x")
        with pytest.raises(OSError, match="No route to host"):
            sender.recv(100)
        _, ancillary, _, _ = sender.recvmsg(1000, 1000, socket.MSG_ERRQUEUE)
        data = ancillary[0][2]
        _, origin, kind, code = struct.unpack_from("<IBBB", data)
        # SO_EE_ORIGIN_ICMP or …6, time exceeded in transit. Behind the error lies the address, in a sockaddr.
        assert (origin, kind, code) == either((2, 11, 0), (3, 3, 0))
        return socket.inet_ntop(family(), data[20:24] if family() == socket.AF_INET else data[24:40])


@pytest.mark.parametrize("version", [4, 6])
def test_traceroute_sees_the_same_hops_as_without_programs(
    cluster: Cluster, both_loaded: list[Loaded], version: int
) -> None:
    a = pod(cluster, "a")
    with using(version):
        targets = [(pod(cluster, "b").address, 1), (pod(cluster, "c").address, 1), (pod(cluster, "c").address, 2)]
        plain = [traced(a, address, ttl) for address, ttl in targets]
    for world in attached_world(cluster, both_loaded, "tcx", version):
        assert [traced(a, address, ttl) for address, ttl in targets] == plain
        serve(world, 33434, [(pod(world, "c"), 33434)], UDP)
        # Through a Service: the error quotes the packet as the client sent it, or the socket would not see it.
        assert traced(a, vip(), 1) == plain[1]
        assert traced(a, vip(), 2) == plain[2]


@pytest.fixture
def narrow(cluster: Cluster) -> Iterator[None]:
    """b and c behind links of 1300 bytes, while the other ends think of 1500."""
    changed = [pod(cluster, "b"), pod(cluster, "c")]
    for target in changed:
        target.node.namespace.run("ip", "link", "set", target.veth, "mtu", "1300")
    yield
    for target in changed:
        target.node.namespace.run("ip", "link", "set", target.veth, "mtu", "1500")
        for other in cluster.pods:
            other.namespace.run("ip", "-4", "route", "flush", "cache")
            other.namespace.run("ip", "-6", "route", "flush", "cache")


def learned_mtu(source: Pod, target: str) -> int:
    """Sends a datagram of 1400 bytes that must not be fragmented; the MTU that the socket is told."""
    with source.namespace.socket(family(), socket.SOCK_DGRAM) as sender:
        sender.setsockopt(*mtu_discover(), DO)
        sender.connect((target, 9))
        sender.send(b"x" * 1400)
        limit = time.monotonic() + PATIENCE
        while (mtu := sender.getsockopt(*path_mtu())) == 1500:
            assert time.monotonic() < limit, "no ICMP fragmentation needed arrived"
            time.sleep(0.005)
        return mtu


@pytest.mark.parametrize("target", ["b", "c"])
def test_too_long_packets_are_answered(narrow: None, world: Cluster, target: str) -> None:
    a, other = pod(world, "a"), pod(world, target)
    assert learned_mtu(a, other.address) == 1300
    assert not {"NOT_UPLINK", "ICMP_UNRELATED"} & set(a.node.programs.drops())


@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")])
@pytest.mark.parametrize("service", [False, True], ids=["direct", "service"])
def test_streams_find_the_path_mtu(narrow: None, world: Cluster, source: str, target: str, service: bool) -> None:
    """GSO segments for 1500 bytes meet a link of 1300: the sender must learn of it, behind a Service and of one."""
    one, other = pod(world, source), pod(world, target)
    serve(world, 80, [(other, 8080)])
    address, port = (vip(), 80) if service else (other.address, 8080)
    data = bytes(range(256)) * 4096
    with Server(other, 8080) as server, client(one) as connection:
        connection.connect((address, port))
        with server.accept() as accepted:
            send_all(connection, accepted, data)
            send_all(accepted, connection, data)


SEGMENTS = [
    ("b", 0, REDIRECT),
    ("b", 1, UNSPEC),
    ("c", 0, REDIRECT),
    ("c", 1, UNSPEC),
]


@pytest.mark.parametrize(("target", "over", "action"), SEGMENTS)
def test_segments_decide_not_the_whole_packet(tcx_world: Cluster, target: str, over: int, action: int) -> None:
    """A packet that will be cut into segments so many bytes longer than the links, which have 1500."""
    a, other = pod(tcx_world, "a"), pod(tcx_world, target)
    header = either(IP, IPv6)(src=a.address, dst=other.address)
    packet = Ether(dst="00:00:00:00:00:00") / header / TCP() / Raw(bytes(3000))
    size = 1500 - len(header / TCP()) + over
    # test_run gives it to the loopback device.
    a.node.programs.maps["endpoints"].set({"addr": a.address}, {"identity": 1001, "ifindex": 1, "flags": 1})
    program = a.node.programs.open_program(either("from_pod", "from_pod6"))
    got, _, mark = run_program(program, bytes(packet), namespace=a.node.namespace.fd, gso_size=size)
    assert (got, mark & 0x00F00000 == 0x00100000) == (action, action == UNSPEC)


@IPV4_ONLY
def test_packets_without_df_are_fragmented(narrow: None, world: Cluster) -> None:
    a = pod(world, "a")
    for target in ("b", "c"):
        other = pod(world, target)
        with Server(other, 8080, socket.SOCK_DGRAM) as server, client(a, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(*mtu_discover(), DONT)
            sender.sendto(b"x" * 1400, (other.address, 8080))
            assert len(server.socket.recv(65535)) == 1400


@IPV4_ONLY
def test_replies_of_a_service_are_translated_when_the_stack_has_fragmented_them(narrow: None, world: Cluster) -> None:
    """The way into b and c is narrow: what comes back to them is cut on their own node, after its program."""
    backend = pod(world, "a")
    serve(world, 53, [(backend, 5353)], UDP)
    for name in ("b", "c"):
        with Server(backend, 5353, socket.SOCK_DGRAM) as server, client(pod(world, name), socket.SOCK_DGRAM) as sender:
            server.socket.setsockopt(*mtu_discover(), DONT)
            sender.sendto(b"x", (vip(), 53))
            server.socket.sendto(b"y" * 1400, server.socket.recvfrom(100)[1])
            data, source = receive(sender)
            assert (len(data), source) == (1400, (vip(), 53))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_fragments(world: Cluster, source: str, target: str) -> None:
    one, other = pod(world, source), pod(world, target)
    for node in world.nodes:
        for name in (source, target):
            isolate(node, name, ingress=True, egress=True, ingress_lengths=1 << 16, egress_lengths=1 << 16)
            allow(node, name, INGRESS, [1], UDP, 8080, 16)
            allow(node, name, EGRESS, [1], UDP, 8080, 16)
    exchange_udp(one, other, other.address, 8080, size=4000)
    serve(world, 53, [(other, 8080)], UDP)
    exchange_udp(one, other, vip(), 53, size=4000, server_port=8080)
    no_drops(world)


def test_fragmented_ping(world: Cluster) -> None:
    a = pod(world, "a")
    ping(a, pod(world, "b").address, 4000)
    ping(a, pod(world, "c").address, 4000)
    world.nodes[0].namespace.run("ping", "-c", "1", "-n", "-W", "5", "-s", "4000", a.address)
    no_drops(world)
