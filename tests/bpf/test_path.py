"""TTL, MTU and fragments: as the kernel would treat them."""

import socket
import struct
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.topology import Cluster, Pod, attached_world
from tests.bpf.traffic import (
    EGRESS,
    INGRESS,
    PAIRS,
    PATIENCE,
    UDP,
    VIP,
    Server,
    allow,
    client,
    exchange_udp,
    isolate,
    no_drops,
    ping,
    pod,
    send_all,
    serve,
)

# Of linux/in.h; the socket module has them not.
IP_MTU_DISCOVER, IP_RECVERR, IP_MTU = 10, 11, 14
IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 0, 2
UNSPEC, REDIRECT = -1, 7


pytestmark = pytest.mark.root


def traced(source: Pod, address: str, ttl: int) -> str:
    """The address that answers "time exceeded" to a datagram with this TTL."""
    with source.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(PATIENCE)
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sender.connect((address, 33434))
        sender.send(b"x")
        with pytest.raises(OSError, match="No route to host"):
            sender.recv(100)
        _, ancillary, _, _ = sender.recvmsg(1000, 1000, socket.MSG_ERRQUEUE)
        data = ancillary[0][2]
        _, origin, kind, code = struct.unpack_from("<IBBB", data)
        assert (origin, kind, code) == (2, 11, 0)  # SO_EE_ORIGIN_ICMP, time exceeded in transit
        return socket.inet_ntoa(data[20:24])


def test_traceroute_sees_the_same_hops_as_without_programs(cluster: Cluster, both_loaded: list[Loaded]) -> None:
    a = pod(cluster, "a")
    targets = [(pod(cluster, "b").address, 1), (pod(cluster, "c").address, 1), (pod(cluster, "c").address, 2)]
    plain = [traced(a, address, ttl) for address, ttl in targets]
    for world in attached_world(cluster, both_loaded, "tcx"):
        assert [traced(a, address, ttl) for address, ttl in targets] == plain
        serve(world, 33434, [(pod(world, "c"), 33434)], UDP)
        # Through a Service: the error quotes the packet as the client sent it, or the socket would not see it.
        assert traced(a, VIP, 1) == plain[1]
        assert traced(a, VIP, 2) == plain[2]


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
            other.namespace.run("ip", "route", "flush", "cache")


def learned_mtu(source: Pod, target: str) -> int:
    """Sends a datagram of 1400 bytes that must not be fragmented; the MTU that the socket is told."""
    with source.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sender.connect((target, 9))
        sender.send(b"x" * 1400)
        limit = time.monotonic() + PATIENCE
        while (mtu := sender.getsockopt(socket.IPPROTO_IP, IP_MTU)) == 1500:
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
    address, port = (VIP, 80) if service else (other.address, 8080)
    data = bytes(range(256)) * 4096
    with Server(other, 8080) as server, client(one) as connection:
        connection.connect((address, port))
        with server.accept() as accepted:
            send_all(connection, accepted, data)
            send_all(accepted, connection, data)


SEGMENTS = [
    ("b", 1460, REDIRECT),
    ("b", 1461, UNSPEC),
    ("c", 1460, REDIRECT),
    ("c", 1461, UNSPEC),
]


@pytest.mark.parametrize(("target", "size", "action"), SEGMENTS)
def test_segments_decide_not_the_whole_packet(tcx_world: Cluster, target: str, size: int, action: int) -> None:
    """A packet that will be cut into segments of `size` bytes of data, on links of 1500."""
    a, other = pod(tcx_world, "a"), pod(tcx_world, target)
    packet = Ether(dst="00:00:00:00:00:00") / IP(src=a.address, dst=other.address) / TCP() / Raw(bytes(3000))
    # test_run gives it to the loopback device.
    a.node.programs.maps["endpoints"].set({"addr": a.address}, {"identity": 1001, "ifindex": 1, "flags": 1})
    with a.node.namespace.entered():
        got, _, mark = run_program(a.node.programs.open_program("from_pod"), bytes(packet), gso_size=size)
    assert (got, mark & 0x00F00000 == 0x00100000) == (action, action == UNSPEC)


def test_packets_without_df_are_fragmented(narrow: None, world: Cluster) -> None:
    a = pod(world, "a")
    for target in ("b", "c"):
        other = pod(world, target)
        with Server(other, 8080, socket.SOCK_DGRAM) as server, client(a, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            sender.sendto(b"x" * 1400, (other.address, 8080))
            assert len(server.socket.recv(65535)) == 1400


def test_replies_of_a_service_are_translated_when_the_stack_has_fragmented_them(narrow: None, world: Cluster) -> None:
    """The way into b and c is narrow: what comes back to them is cut on their own node, after its program."""
    backend = pod(world, "a")
    serve(world, 53, [(backend, 5353)], UDP)
    for name in ("b", "c"):
        with Server(backend, 5353, socket.SOCK_DGRAM) as server, client(pod(world, name), socket.SOCK_DGRAM) as sender:
            server.socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            sender.sendto(b"x", (VIP, 53))
            server.socket.sendto(b"y" * 1400, server.socket.recvfrom(100)[1])
            data, source = sender.recvfrom(65535)
            assert (len(data), source) == (1400, (VIP, 53))


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
    exchange_udp(one, other, VIP, 53, size=4000, server_port=8080)
    no_drops(world)


def test_fragmented_ping(world: Cluster) -> None:
    a = pod(world, "a")
    ping(a, pod(world, "b").address, 4000)
    ping(a, pod(world, "c").address, 4000)
    world.nodes[0].namespace.run("ping", "-c", "1", "-n", "-W", "5", "-s", "4000", a.address)
    no_drops(world)
