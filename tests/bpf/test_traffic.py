"""Real packets through real programs: two nodes, two pods each, attached by tcx and by clsact."""

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from tests.bpf.kernel import Loaded
from tests.bpf.topology import OUTSIDE, Cluster, Node, Pod, attached, build, set_endpoints

pytestmark = pytest.mark.root

IDENTITIES = {"a": 1001, "b": 1002, "c": 1003, "d": 1004}
VIP = "10.97.0.10"
PATIENCE = 10.0
INGRESS, EGRESS = 0, 1
# Of linux/in.h; the socket module has them not.
IP_MTU_DISCOVER, IP_RECVERR, IP_MTU = 10, 11, 14
IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 0, 2
TCP, UDP = 6, 17


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    built = build()
    yield built
    built.remove()


@pytest.fixture(params=["tcx", "clsact"])
def world(request: pytest.FixtureRequest, cluster: Cluster, both_loaded: list[Loaded]) -> Iterator[Cluster]:
    """The cluster with programs attached, everybody known, nobody isolated, no connections."""
    yield from _world(cluster, both_loaded, request.param)


@pytest.fixture
def tcx_world(cluster: Cluster, both_loaded: list[Loaded]) -> Iterator[Cluster]:
    yield from _world(cluster, both_loaded, "tcx")


def _world(cluster: Cluster, both_loaded: list[Loaded], how: str) -> Iterator[Cluster]:
    with ExitStack() as stack:
        for node, loaded in zip(cluster.nodes, both_loaded, strict=True):
            loaded.clear()
            stack.enter_context(attached(node, loaded, how))
            set_endpoints(cluster, node, IDENTITIES)
        yield cluster


def pod(cluster: Cluster, name: str) -> Pod:
    return next(pod for pod in cluster.pods if pod.name == name)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, f"waited in vain for: {what}"
        time.sleep(0.005)


class Server:
    """A listening socket in a pod, for TCP or UDP."""

    def __init__(self, at: Pod, port: int, kind: int = socket.SOCK_STREAM) -> None:
        self.socket = at.namespace.socket(socket.AF_INET, kind)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((at.address, port))
        self.socket.settimeout(PATIENCE)
        if kind == socket.SOCK_STREAM:
            self.socket.listen()

    def accept(self) -> socket.socket:
        accepted, _ = self.socket.accept()
        accepted.settimeout(PATIENCE)
        return accepted

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def client(at: Pod, kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = at.namespace.socket(socket.AF_INET, kind)
    made.settimeout(PATIENCE)
    return made


def send_all(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    """Through the connection, both ends in this thread."""
    got = bytearray()
    sender.setblocking(False)
    try:
        left = memoryview(data)
        while len(got) < len(data):
            if left:
                try:
                    left = left[sender.send(left) :]
                except BlockingIOError:
                    pass
            got += receiver.recv(1 << 20)
    finally:
        sender.settimeout(PATIENCE)
    assert bytes(got) == data


def exchange_tcp(source: Pod, target: Pod, address: str, port: int, server_port: int | None = None) -> tuple[str, int]:
    """Connects, sends both ways, closes; returns the peer as the server saw it."""
    with Server(target, server_port or port) as server, client(source) as connection:
        connection.connect((address, port))
        with server.accept() as accepted:
            connection.sendall(b"ping")
            assert accepted.recv(100) == b"ping"
            accepted.sendall(b"pong")
            assert connection.recv(100) == b"pong"
            assert connection.getpeername() == (address, port)
            peer: tuple[str, int] = accepted.getpeername()
            return peer


def exchange_udp(
    source: Pod, target: Pod, address: str, port: int, size: int = 4, server_port: int | None = None
) -> None:
    """A datagram there and back; the reply comes from the address that was addressed."""
    with Server(target, server_port or port, socket.SOCK_DGRAM) as server, client(source, socket.SOCK_DGRAM) as sender:
        there, back = b"x" * size, b"y" * size
        sender.sendto(there, (address, port))
        data, peer = server.socket.recvfrom(65535)
        assert data == there
        assert peer[0] == source.address
        server.socket.sendto(back, peer)
        assert sender.recvfrom(65535) == (back, (address, port))


def ping(source: Pod, address: str, size: int = 56) -> None:
    source.namespace.run("ping", "-c", "1", "-n", "-W", "5", "-s", str(size), address)


def no_drops(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert node.programs.drops() == {}, node.name


def isolate(node: Node, name: str, *, ingress: bool = False, egress: bool = False, **lengths: int) -> None:
    flags = (1 if ingress else 0) | (2 if egress else 0)
    identity = IDENTITIES[name]
    node.programs.maps["subjects"].set({"value": identity}, {"policy": identity, "flags": flags, **lengths})


def allow(
    node: Node, name: str, direction: int, sets: list[int], protocol: int = TCP, port: int = 0, length: int = 0
) -> None:
    key = {"policy": IDENTITIES[name], "direction": direction, "protocol": protocol, "length": length, "port": port}
    node.programs.maps["rules"].set(key, {"sets": sets, "count": len(sets)})


def member(node: Node, number: int, name: str) -> None:
    node.programs.maps["members"].set({"set": number, "member": IDENTITIES[name]}, {"value": 1})


def raise_generation(node: Node) -> None:
    settings = node.programs.maps["settings"]
    now = settings.get({"value": 0})
    assert now is not None
    settings.set({"value": 0}, {"value": now["value"] + 1})


def serve(cluster: Cluster, port: int, backends: list[tuple[Pod, int]], protocol: int = TCP) -> None:
    """The Service VIP:port on all nodes."""
    for node in cluster.nodes:
        maps = node.programs.maps
        service = 7000 + protocol
        maps["frontends"].set({"addr": VIP}, {})
        maps["frontends"].set({"addr": VIP, "port": port, "protocol": protocol}, {"service": service})
        for slot, (target, target_port) in enumerate(backends):
            value = {"addr": target.address, "port": target_port}
            maps["backends"].set({"service": service, "slot": slot}, value)
        maps["services"].set({"value": service}, {"count": len(backends)})


PAIRS = [("a", "b"), ("a", "c")]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_pods_reach_each_other(world: Cluster, source: str, target: str) -> None:
    one, other = pod(world, source), pod(world, target)
    assert exchange_tcp(one, other, other.address, 8080)[0] == one.address
    exchange_udp(one, other, other.address, 8080)
    ping(one, other.address)
    ping(other, one.address)
    no_drops(world)
    assert one.node.programs.counter("FORWARDED") > 10


def test_pod_and_its_own_node_reach_each_other(world: Cluster) -> None:
    node = world.nodes[0]
    a = pod(world, "a")
    node.namespace.run("ping", "-c", "1", "-n", "-W", "5", a.address)
    ping(a, node.address)
    ping(a, "10.201.1.1")
    no_drops(world)


def test_pod_and_the_outside_world_reach_each_other(world: Cluster) -> None:
    a = pod(world, "a")
    ping(a, OUTSIDE)
    world.outside.run("ping", "-c", "1", "-n", "-W", "5", a.address)
    no_drops(world)


@pytest.mark.parametrize("target", ["b", "c"])
def test_service_without_a_socket_hook(world: Cluster, target: str) -> None:
    a, backend = pod(world, "a"), pod(world, target)
    serve(world, 80, [(backend, 8080)])
    serve(world, 53, [(backend, 5353)], UDP)
    assert exchange_tcp(a, backend, VIP, 80, server_port=8080)[0] == a.address
    exchange_udp(a, backend, VIP, 53, server_port=5353)
    no_drops(world)


def test_service_spreads_over_its_backends(tcx_world: Cluster) -> None:
    a, b, c = (pod(tcx_world, name) for name in "abc")
    serve(tcx_world, 80, [(b, 8080), (c, 8080)])
    with Server(b, 8080) as one, Server(c, 8080) as other:
        one.socket.setblocking(False)
        other.socket.setblocking(False)
        answered = {"b": 0, "c": 0}
        for _ in range(40):
            with client(a) as connection:
                connection.connect((VIP, 80))
                for name, server in (("b", one), ("c", other)):
                    try:
                        server.socket.accept()[0].close()
                        answered[name] += 1
                    except BlockingIOError:
                        continue
    assert sum(answered.values()) == 40
    assert min(answered.values()) > 5, answered


def test_service_whose_backend_is_also_the_client_uses_another_one(tcx_world: Cluster) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    serve(tcx_world, 80, [(a, 8080), (b, 8080)])
    for _ in range(8):
        exchange_tcp(a, b, VIP, 80, server_port=8080)


REFUSED = [
    ("no backend left", 80, [], "NO_BACKEND"),
    ("another port of the same address", 81, ["b"], "NO_SERVICE_PORT"),
    ("only backend is the client", 80, ["a"], "HAIRPIN"),
]


@pytest.mark.parametrize(("why", "port", "backends", "reason"), REFUSED, ids=[row[0] for row in REFUSED])
def test_service_that_cannot_be_reached(
    tcx_world: Cluster, why: str, port: int, backends: list[str], reason: str
) -> None:
    a = pod(tcx_world, "a")
    serve(tcx_world, 80, [(pod(tcx_world, name), 8080) for name in backends])
    with client(a) as connection:
        connection.setblocking(False)
        assert connection.connect_ex((VIP, port)) == errno.EINPROGRESS
        wait_for(reason, lambda: tcx_world.nodes[0].programs.drops() == {reason: 1})


def denied(world: Cluster, source: Pod, target: Pod, port: int, node: Node, reason: str) -> None:
    """A TCP connection is attempted and dropped on that node for that reason."""
    before = node.programs.counter(reason)
    with Server(target, port), client(source) as connection:
        connection.setblocking(False)
        assert connection.connect_ex((target.address, port)) == errno.EINPROGRESS
        wait_for(f"a drop {reason}", lambda: node.programs.counter(reason) > before)
        with pytest.raises(OSError, match="not connected"):
            connection.getpeername()


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


def test_policy_holds_behind_a_service(world: Cluster) -> None:
    a, b = pod(world, "a"), pod(world, "b")
    serve(world, 80, [(b, 8080)])
    isolate(a.node, "b", ingress=True, ingress_lengths=1 << 16)
    allow(a.node, "b", INGRESS, [1], TCP, 80, 16)  # the Service's port, not the backend's
    with client(a) as connection:
        connection.setblocking(False)
        connection.connect_ex((VIP, 80))
        wait_for("a drop", lambda: a.node.programs.counter("POLICY_INGRESS") > 0)
    allow(a.node, "b", INGRESS, [1], TCP, 8080, 16)
    exchange_tcp(a, b, VIP, 80, server_port=8080)


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
    with Server(a, 8080), world.nodes[1].namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
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
    a.namespace.run("ip", "addr", "add", f"{b.address}/32", "dev", "lo")
    try:
        with client(a, socket.SOCK_DGRAM) as sender:
            sender.bind((b.address, 0))
            sender.sendto(b"x", (pod(world, "c").address, 9))
            wait_for("the drop", lambda: node.programs.drops() == {"SPOOFED": 1})
    finally:
        a.namespace.run("ip", "addr", "del", f"{b.address}/32", "dev", "lo")


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_revocation_cuts_a_live_connection(world: Cluster, source: str, target: str) -> None:
    one, other = pod(world, source), pod(world, target)
    node = other.node
    isolate(node, target, ingress=True, ingress_lengths=1 << 16)
    for port in (8080, 8081):
        allow(node, target, INGRESS, [1], TCP, port, 16)
    with (
        Server(other, 8080) as revoked_server,
        Server(other, 8081) as kept_server,
        client(one) as revoked,
        client(one) as kept,
    ):
        revoked.connect((other.address, 8080))
        kept.connect((other.address, 8081))
        with revoked_server.accept() as revoked_end, kept_server.accept() as kept_end:
            revoked.sendall(b"before")
            assert revoked_end.recv(100) == b"before"
            key = {"policy": IDENTITIES[target], "direction": INGRESS, "protocol": TCP, "length": 16, "port": 8080}
            node.programs.maps["rules"].delete(key)
            raise_generation(node)
            revoked.sendall(b"after")
            wait_for("the drop", lambda: node.programs.counter("POLICY_INGRESS") > 0)
            # Nor does the responder revive it from its side.
            dropped = node.programs.counter("POLICY_INGRESS")
            revoked_end.sendall(b"reply")
            wait_for("the reply's drop", lambda: node.programs.counter("POLICY_INGRESS") > dropped)
            revoked_end.setblocking(False)
            with pytest.raises(BlockingIOError):
                revoked_end.recv(100)
            kept.sendall(b"still")
            assert kept_end.recv(100) == b"still"
            # Allowed again, it goes on where it was.
            node.programs.maps["rules"].set(key, {"sets": [1], "count": 1})
            revoked_end.settimeout(PATIENCE)
            assert revoked_end.recv(100) == b"after"


def test_stream_survives_the_loss_of_the_connection_maps(world: Cluster) -> None:
    a, c = pod(world, "a"), pod(world, "c")
    isolate(c.node, "c", ingress=True, ingress_lengths=1 << 16)
    allow(c.node, "c", INGRESS, [1], TCP, 8080, 16)
    with Server(c, 8080) as server, client(a) as connection:
        connection.connect((c.address, 8080))
        with server.accept() as accepted:
            for _ in range(3):
                for node in world.nodes:
                    node.programs.maps["connections"].clear()
                    node.programs.maps["connections_new"].clear()
                connection.sendall(b"ping")
                assert accepted.recv(100) == b"ping"
                accepted.sendall(b"pong")
                assert connection.recv(100) == b"pong"


def test_reply_after_expiry_is_judged_as_new(world: Cluster) -> None:
    a, b = pod(world, "a"), pod(world, "b")
    isolate(a.node, "a", ingress=True)
    with Server(b, 8080, socket.SOCK_DGRAM) as server, client(a, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"one", (b.address, 8080))
        _, peer = server.socket.recvfrom(100)
        server.socket.sendto(b"two", peer)
        assert sender.recv(100) == b"two"
        connections = a.node.programs.maps["connections"]
        ((key, entry),) = connections.items()
        assert entry["flags"] & 2
        assert entry["expires"] > time.monotonic() + 60
        connections.set(key, {**{k: v for k, v in entry.items() if k != "vip"}, "expires": 1})
        server.socket.sendto(b"three", peer)
        wait_for("the drop", lambda: a.node.programs.drops() == {"POLICY_INGRESS": 1})


def test_only_answered_connections_reach_the_map_of_live_ones(tcx_world: Cluster) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    maps = a.node.programs.maps
    with client(a, socket.SOCK_DGRAM) as sender:
        for port in range(9000, 9020):
            sender.sendto(b"x", (b.address, port))
        wait_for("the entries", lambda: len(maps["connections_new"].items()) == 20)
        # Nobody listens: errors are no replies.
        assert maps["connections"].items() == []
    exchange_tcp(a, b, b.address, 8080)
    assert len(maps["connections"].items()) == 1


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
    for world in _world(cluster, both_loaded, "tcx"):
        assert [traced(a, address, ttl) for address, ttl in targets] == plain
        serve(world, 33434, [(pod(world, "c"), 33434)], UDP)
        # Through a Service: the error quotes the packet as the client sent it, or the socket would not see it.
        assert traced(a, VIP, 1) == plain[1]
        assert traced(a, VIP, 2) == plain[2]


def test_port_unreachable_comes_back_through_a_service(world: Cluster) -> None:
    a = pod(world, "a")
    for target in ("b", "c"):
        serve(world, 5300, [(pod(world, target), 5301)], UDP)
        with client(a, socket.SOCK_DGRAM) as sender:
            sender.connect((VIP, 5300))
            sender.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                sender.recv(100)


def test_error_of_a_services_client_reaches_the_backend(world: Cluster) -> None:
    a = pod(world, "a")
    for target in ("b", "c"):
        backend = pod(world, target)
        serve(world, 5300, [(backend, 5301)], UDP)
        with Server(backend, 5301, socket.SOCK_DGRAM) as server:
            with client(a, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", (VIP, 5300))
                _, peer = server.socket.recvfrom(100)
            # The client's socket is gone: its kernel answers that nobody is there.
            server.socket.connect(peer)
            server.socket.send(b"late")
            with pytest.raises(ConnectionRefusedError):
                server.socket.recv(100)


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


@pytest.mark.parametrize("target", ["b", "c"])
@pytest.mark.parametrize("service", [False, True], ids=["direct", "service"])
def test_streams_find_the_path_mtu(narrow: None, world: Cluster, target: str, service: bool) -> None:
    """GSO segments for 1500 bytes meet a link of 1300: the sender must learn of it, also behind a Service."""
    a, other = pod(world, "a"), pod(world, target)
    serve(world, 80, [(other, 8080)])
    address, port = (VIP, 80) if service else (other.address, 8080)
    data = bytes(range(256)) * 4096
    with Server(other, 8080) as server, client(a) as connection:
        connection.connect((address, port))
        with server.accept() as accepted:
            send_all(connection, accepted, data)
            send_all(accepted, connection, data)


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


@pytest.mark.parametrize("size", [3000, 100_000])
def test_bulk_through_a_service_keeps_checksums_right(world: Cluster, size: int) -> None:
    """With checksums left to the device and without."""
    a, b = pod(world, "a"), pod(world, "b")
    serve(world, 80, [(b, 8080)])
    data = bytes(index % 251 for index in range(size))
    for offload in ("on", "off"):
        for end in (a, b):
            end.namespace.run("ethtool", "-K", "eth0", "tx", offload, "rx", offload)
        with Server(b, 8080) as server, client(a) as connection:
            connection.connect((VIP, 80))
            with server.accept() as accepted:
                send_all(connection, accepted, data)
                send_all(accepted, connection, data)
    for end in (a, b):
        end.namespace.run("ethtool", "-K", "eth0", "tx", "on", "rx", "on")
