"""Sockets in pods, and what the agent would write about them: the words that the tests are written in."""

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from scapy.layers.inet import ICMP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPerror6
from tests.bpf.families import either, family
from tests.bpf.topology import IDENTITIES, OUTSIDE, Cluster, Node, Pod, outside_address

PATIENCE = 10.0
INGRESS, EGRESS = 0, 1
TCP, UDP = 6, 17
PORT, SERVICE = 30080, 9000  # a NodePort, and what the number of its Service begins with
# A pair on one node, and one across nodes.
PAIRS = [("a", "b"), ("a", "c")]


# Of linux/in.h and linux/in6.h; the socket module has them not. Values for the MTU discovery:
DONT, WANT, DO = 0, 1, 2


def mtu_discover() -> tuple[int, int]:
    """IP_MTU_DISCOVER, as the first two arguments of setsockopt()."""
    return either((socket.IPPROTO_IP, 10), (socket.IPPROTO_IPV6, 23))


def path_mtu() -> tuple[int, int]:
    """IP_MTU."""
    return either((socket.IPPROTO_IP, 14), (socket.IPPROTO_IPV6, 24))


def hop_limit() -> tuple[int, int]:
    """IP_TTL."""
    return either((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS))


def vip() -> str:
    return either("10.97.0.10", "fd00:97::10")


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
        self.socket = at.namespace.socket(family(), kind)
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
    made = at.namespace.socket(family(), kind)
    made.settimeout(PATIENCE)
    return made


def peer_of(at: socket.socket) -> tuple[str, int]:
    address, port = at.getpeername()[:2]
    return address, port


def receive(at: socket.socket) -> tuple[bytes, tuple[str, int]]:
    """A datagram, and whom it came from."""
    data, source = at.recvfrom(65535)
    return data, (source[0], source[1])


def send_all(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    """Through the connection, both ends in this thread."""
    got = bytearray()
    sender.setblocking(False)
    try:
        left = memoryview(data)
        while len(got) < len(data):
            if left:
                with suppress(BlockingIOError):
                    left = left[sender.send(left) :]
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
            assert peer_of(connection) == (address, port)
            return peer_of(accepted)


def exchange_udp(
    source: Pod, target: Pod, address: str, port: int, size: int = 4, server_port: int | None = None
) -> None:
    """A datagram there and back; the reply comes from the address that was addressed."""
    with Server(target, server_port or port, socket.SOCK_DGRAM) as server, client(source, socket.SOCK_DGRAM) as sender:
        there, back = b"x" * size, b"y" * size
        sender.sendto(there, (address, port))
        data, peer = receive(server.socket)
        assert data == there
        assert peer[0] == source.address
        server.socket.sendto(back, peer)
        assert receive(sender) == (back, (address, port))


def forget_paths(cluster: Cluster) -> None:
    """The MTUs that pods and the outside have been told of."""
    for namespace in (cluster.outside, *(pod.namespace for pod in cluster.pods)):
        namespace.run("ip", either("-4", "-6"), "route", "flush", "cache")


@contextmanager
def link_mtu(cluster: Cluster, node: Node, device: str, mtu: int) -> Iterator[None]:
    node.namespace.run("ip", "link", "set", device, "mtu", str(mtu))
    try:
        yield
    finally:
        node.namespace.run("ip", "link", "set", device, "mtu", "1500")
        forget_paths(cluster)


def ping(source: Pod, address: str, size: int = 56) -> None:
    source.namespace.run("ping", "-c", "1", "-n", "-W", "5", "-s", str(size), address)


def no_drops(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert node.programs.drops() == {}, node.name


def denied(world: Cluster, source: Pod, target: Pod, port: int, node: Node, reason: str) -> None:
    """A TCP connection is attempted and dropped on that node for that reason."""
    before = node.programs.counter(reason)
    with Server(target, port), client(source) as connection:
        connection.setblocking(False)
        assert connection.connect_ex((target.address, port)) == errno.EINPROGRESS
        wait_for(f"a drop {reason}", lambda: node.programs.counter(reason) > before)
        with pytest.raises(OSError, match="not connected"):
            connection.getpeername()


def isolate(
    node: Node, name: str, *, ingress: bool = False, egress: bool = False, audit: bool = False, **lengths: int
) -> None:
    flags = (1 if ingress else 0) | (2 if egress else 0) | (8 if audit else 0)
    identity = IDENTITIES[name]
    node.programs.maps["subjects"].set({"value": identity}, {"policy": identity, "flags": flags, **lengths})


def allow(
    node: Node, name: str, direction: int, sets: list[int], protocol: int = TCP, port: int = 0, length: int = 0
) -> None:
    key = {"policy": IDENTITIES[name], "direction": direction, "protocol": protocol, "length": length, "port": port}
    node.programs.maps["rules"].set(key, {"sets": sets, "count": len(sets)})


def member(node: Node, number: int, name: str) -> None:
    node.programs.maps["members"].set({"set": number, "member": IDENTITIES[name]}, {"value": 1})


def allow_blocks(node: Node, name: str, direction: int, number: int) -> None:
    """Everything for a set of blocks."""
    key = {"policy": IDENTITIES[name], "direction": direction}
    node.programs.maps["rules"].set(key, {"blocks": number})


def block(node: Node, number: int, address: str, length: int, needed: int = 1) -> None:
    """A range of the family of `address`; `needed` is 0 for an exception."""
    prefix = 32 + length + (0 if ":" in address else 96)
    node.programs.maps["peer_blocks"].set({"prefix": prefix, "set": number, "addr": address}, {"value": needed})


def raise_generation(node: Node) -> None:
    settings = node.programs.maps["settings"]
    now = settings.get({"value": 0})
    assert now is not None
    settings.set({"value": 0}, {"value": now["value"] + 1})


def serve(cluster: Cluster, port: int, backends: list[tuple[Pod, int]], protocol: int = TCP) -> None:
    """The Service vip():port on all nodes."""
    for node in cluster.nodes:
        maps = node.programs.maps
        service = 7000 + protocol
        maps["frontends"].set({"addr": vip()}, {})
        maps["frontends"].set({"addr": vip(), "port": port, "protocol": protocol}, {"service": service})
        for slot, (target, target_port) in enumerate(backends):
            value = {"addr": target.address, "port": target_port}
            maps["backends"].set({"service": service, "slot": slot}, value)
        maps["services"].set({"value": service}, {"count": len(backends)})


def outside(world: Cluster) -> Pod:
    """The outside world, as something that can be a client."""
    return Pod("outside", OUTSIDE, world.outside, world.nodes[0], "", 0)


def publish(node: Node, *backends: Pod, protocol: int = TCP, port: int = 8080) -> None:
    """NodePort PORT of the node leads to these."""
    maps = node.programs.maps
    number = SERVICE + protocol
    key = {"addr": node.address, "port": PORT, "protocol": protocol}
    maps["frontends"].set(key, {"service": number, "outside": number})
    for slot, backend in enumerate(backends):
        maps["backends"].set({"service": number, "slot": slot}, {"addr": backend.address, "port": port})
    maps["services"].set({"value": number}, {"count": len(backends)})


def too_big(node: Node, port: int, mtu: int) -> bytes:
    """A router's word about a datagram of the node's PORT to a client. Of IPv6 the kernel sums it up."""
    if ":" in node.address:
        about6 = IPerror6(src=node.address, dst=outside_address(), plen=1400) / UDPerror(
            sport=PORT, dport=port, len=1400
        )
        return bytes(ICMPv6PacketTooBig(mtu=mtu) / about6)
    about = IPerror(src=node.address, dst=outside_address(), flags="DF") / UDPerror(sport=PORT, dport=port, len=1400)
    return bytes(ICMP(type=3, code=4, nexthopmtu=mtu) / about)


def answer_to_nobody(server_at: Pod, server_port: int, client_at: Pod, address: str, port: int) -> None:
    """A server answers when its client's socket is gone: it is told so by the client's kernel, in its own words."""
    with Server(server_at, server_port, socket.SOCK_DGRAM) as server:
        with client(client_at, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (address, port))
            _, peer = receive(server.socket)
        server.socket.connect(peer)
        server.socket.send(b"late")
        with pytest.raises(ConnectionRefusedError):
            server.socket.recv(100)
