"""Services at the socket: resolved once, no packet translated."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.bpf.families import family
from tests.bpf.kernel import attached_to_cgroup
from tests.bpf.topology import Cluster, Node, Pod, outside_address
from tests.bpf.traffic import PATIENCE, TCP, UDP, Server, outside, peer_of, pod, receive, serve, vip, wait_for
from tests.leftovers import cgroup2

pytestmark = pytest.mark.root

SO_NETNS_COOKIE = 71  # linux/socket.h
SETTING_SOCKET_NAMESPACE, SETTING_NODE_NAMESPACE = 3, 7  # types.h
FRONTEND_RANGES, SERVICE_DROP = 0x2, 0x1
SERVICE = {TCP: 7000 + TCP, UDP: 7000 + UDP}


@pytest.fixture
def hooked(tcx_world: Cluster) -> Iterator[Path]:
    """A cgroup with the socket programs of the first node."""
    cgroup = cgroup2() / f"tgt-bpf-{os.getpid()}"
    cgroup.mkdir()
    try:
        with attached_to_cgroup(tcx_world.nodes[0].programs, cgroup):
            yield cgroup
    finally:
        cgroup.rmdir()


@contextmanager
def inside(cgroup: Path) -> Iterator[None]:
    """This process in the cgroup: sockets belong to the cgroup that they are made in."""
    home = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    back = cgroup2() / home.removeprefix("0::/") / "cgroup.procs"
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        back.write_text(str(os.getpid()))


def hooked_client(cgroup: Path, at: Pod, kind: int, *, mapped: bool = False) -> socket.socket:
    with inside(cgroup):
        made = at.namespace.socket(socket.AF_INET6 if mapped else family(), kind)
    made.settimeout(PATIENCE)
    return made


def namespace_cookie(at: Pod) -> int:
    with at.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


def peers(at: Pod) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What the node remembers of sockets: backend, and what was addressed."""
    return [item for item in at.node.programs.maps["socket_peers"].items() if item[0]["reverse"]]


def as_written(mapped: bool) -> str:
    """The Service's address as a client with an IPv6 socket writes an IPv4 one."""
    return f"::ffff:{vip()}" if mapped and ":" not in vip() else vip()


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
@pytest.mark.parametrize("target", ["b", "c"])
def test_tcp_is_connected_to_a_backend(hooked: Path, tcx_world: Cluster, target: str, mapped: bool) -> None:
    a, backend = pod(tcx_world, "a"), pod(tcx_world, target)
    serve(tcx_world, 80, [(backend, 8080)])
    with Server(backend, 8080) as server, hooked_client(hooked, a, socket.SOCK_STREAM, mapped=mapped) as connection:
        connection.connect((as_written(mapped), 80))
        assert peer_of(connection) == (as_written(mapped), 80)
        with server.accept() as accepted:
            assert accepted.getpeername()[0] == a.address
            accepted.sendall(b"pong")
            assert connection.recv(100) == b"pong"
    assert a.node.programs.maps["translations"].items() == []


def test_a_pod_reaches_itself_through_its_own_service(hooked: Path, tcx_world: Cluster) -> None:
    a = pod(tcx_world, "a")
    serve(tcx_world, 80, [(a, 8080)])
    with Server(a, 8080) as server, hooked_client(hooked, a, socket.SOCK_STREAM) as connection:
        connection.connect((vip(), 80))
        server.accept().close()


REFUSED = [("no backend", 80, "NO_BACKEND"), ("no such port", 81, "NO_SERVICE_PORT")]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize(("why", "port", "reason"), REFUSED, ids=[row[0] for row in REFUSED])
def test_connect_is_refused_at_once(
    hooked: Path, tcx_world: Cluster, why: str, port: int, reason: str, kind: int
) -> None:
    a = pod(tcx_world, "a")
    serve(tcx_world, 80, [])
    serve(tcx_world, 80, [], UDP)
    with hooked_client(hooked, a, kind) as connection:
        assert connection.connect_ex((vip(), port)) == errno.ECONNREFUSED
    assert a.node.programs.drops() == {reason: 1}


def test_other_addresses_are_left_alone(hooked: Path, tcx_world: Cluster) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    serve(tcx_world, 80, [(pod(tcx_world, "c"), 8080)])
    with Server(b, 80) as server, hooked_client(hooked, a, socket.SOCK_STREAM) as connection:
        connection.connect((b.address, 80))
        assert peer_of(connection) == (b.address, 80)
        server.accept().close()


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
def test_udp_replies_come_from_the_service(hooked: Path, tcx_world: Cluster, mapped: bool, connected: bool) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    serve(tcx_world, 53, [(b, 5353)], UDP)
    with (
        Server(b, 5353, socket.SOCK_DGRAM) as server,
        hooked_client(hooked, a, socket.SOCK_DGRAM, mapped=mapped) as sender,
    ):
        if connected:
            sender.connect((as_written(mapped), 53))
            sender.send(b"ping")
            assert peer_of(sender) == (as_written(mapped), 53)
        else:
            sender.sendto(b"ping", (as_written(mapped), 53))
        data, peer = server.socket.recvfrom(100)
        assert data == b"ping"
        server.socket.sendto(b"pong", peer)
        assert receive(sender) == (b"pong", (as_written(mapped), 53))


def test_unconnected_udp_stays_with_its_backend_while_that_is_one(hooked: Path, tcx_world: Cluster) -> None:
    a, b, c = (pod(tcx_world, name) for name in "abc")
    serve(tcx_world, 53, [(b, 5353), (c, 5353)], UDP)
    with (
        Server(b, 5353, socket.SOCK_DGRAM) as one,
        Server(c, 5353, socket.SOCK_DGRAM) as other,
        hooked_client(hooked, a, socket.SOCK_DGRAM) as sender,
    ):
        servers = {"b": one, "c": other}

        def ask() -> str:
            """Who gets the datagram."""
            sender.sendto(b"x", (vip(), 53))
            found: list[str] = []

            def arrived() -> bool:
                for name, server in servers.items():
                    server.socket.setblocking(False)
                    try:
                        server.socket.recv(100)
                    except BlockingIOError:
                        continue
                    found.append(name)
                return bool(found)

            wait_for("the datagram", arrived)
            return found[0]

        first = ask()
        assert [ask() for _ in range(10)] == [first] * 10
        # It goes; the other one takes the first slot.
        left = "c" if first == "b" else "b"
        serve(tcx_world, 53, [(pod(tcx_world, left), 5353)], UDP)
        assert [ask() for _ in range(3)] == [left] * 3


def test_sockets_spread_over_the_backends(hooked: Path, tcx_world: Cluster) -> None:
    a, b, c = (pod(tcx_world, name) for name in "abc")
    serve(tcx_world, 53, [(b, 5353), (c, 5353)], UDP)
    with ExitStack() as stack:
        for _ in range(40):
            sender = stack.enter_context(hooked_client(hooked, a, socket.SOCK_DGRAM))
            sender.connect((vip(), 53))
        chosen = [key["addr"] for key, _ in peers(a)]
    assert len(chosen) == 40
    assert min(chosen.count(b.address), chosen.count(c.address)) > 5


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_closed_socket_is_forgotten(hooked: Path, tcx_world: Cluster, kind: int, mapped: bool) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    serve(tcx_world, 80, [(b, 8080)], TCP if kind == socket.SOCK_STREAM else UDP)
    with Server(b, 8080, kind), hooked_client(hooked, a, kind, mapped=mapped) as stays:
        stays.connect((as_written(mapped), 80))
        (kept,) = peers(a)
        with hooked_client(hooked, a, kind, mapped=mapped) as goes:
            goes.connect((as_written(mapped), 80))
            assert len(peers(a)) == 2
        assert peers(a) == [kept]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_only_sockets_of_the_named_namespace_are_translated(hooked: Path, tcx_world: Cluster, kind: int) -> None:
    """The others' packets are, on the veth."""
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    serve(tcx_world, 80, [(b, 8080)], TCP if kind == socket.SOCK_STREAM else UDP)
    translations, settings = (a.node.programs.maps[name] for name in ("translations", "settings"))
    own = namespace_cookie(a)
    for only, translated in ((own, True), (own + 1, False)):
        settings.set({"value": SETTING_SOCKET_NAMESPACE}, {"value": only})
        with Server(b, 8080, kind) as server, hooked_client(hooked, a, kind) as sender:
            sender.connect((vip(), 80))
            assert bool(peers(a)) == translated
            sender.send(b"ping")
            with server.accept() if kind == socket.SOCK_STREAM else server.socket.dup() as other:
                data, peer = other.recvfrom(100)
                assert data == b"ping"
                if peer is not None:
                    other.connect(peer)
                other.send(b"pong")
                assert sender.recv(100) == b"pong"
            assert peer_of(sender) == (vip(), 80)
            assert bool(translations.items()) != translated


@pytest.fixture
def own(tcx_world: Cluster) -> Pod:
    """The first node itself, as a client."""
    node = tcx_world.nodes[0]
    found = Pod("host", node.addresses, node.namespace, node, "", 0)
    node.programs.maps["settings"].set({"value": SETTING_NODE_NAMESPACE}, {"value": namespace_cookie(found)})
    return found


def limit(node: Node, address: str) -> None:
    """The Service is for this address alone."""
    maps, number = node.programs.maps, SERVICE[TCP]
    key = {"addr": vip(), "port": 80, "protocol": TCP}
    maps["frontends"].set(key, {"service": number, "outside": number, "flags": FRONTEND_RANGES})
    maps["source_ranges"].set({"prefix": 160, "service": number, "addr": address}, {"value": 1})


def test_the_node_itself_within_source_ranges(hooked: Path, tcx_world: Cluster, own: Pod) -> None:
    b = pod(tcx_world, "b")
    serve(tcx_world, 80, [(b, 8080)])
    limit(own.node, own.address)
    with Server(b, 8080) as server, hooked_client(hooked, own, socket.SOCK_STREAM) as connection:
        connection.connect((vip(), 80))
        server.accept().close()


@pytest.mark.parametrize("reason", ["SOURCE_RANGE", "NO_LOCAL_BACKEND"])
def test_the_nodes_own_packets_to_what_it_may_not_use(hooked: Path, tcx_world: Cluster, own: Pod, reason: str) -> None:
    """They are dropped, and nothing else is."""
    node = own.node
    serve(tcx_world, 80, [(pod(tcx_world, "b"), 8080)] if reason == "SOURCE_RANGE" else [])
    if reason == "SOURCE_RANGE":
        limit(node, outside_address())
    else:
        node.programs.maps["services"].set({"value": SERVICE[TCP]}, {"count": 0, "flags": SERVICE_DROP})
    with hooked_client(hooked, own, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        assert connection.connect_ex((vip(), 80)) == errno.EINPROGRESS
        wait_for("it is dropped", lambda: node.programs.counter(reason) > 0)
    with Server(outside(tcx_world), 80) as server, hooked_client(hooked, own, socket.SOCK_STREAM) as connection:
        connection.connect((outside_address(), 80))
        server.accept().close()
    assert set(node.programs.drops()) == {reason}
