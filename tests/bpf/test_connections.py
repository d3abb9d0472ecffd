"""What is remembered of connections, and when it is judged anew."""

import socket
import time

import pytest
from tests.bpf.topology import IDENTITIES, Cluster
from tests.bpf.traffic import (
    INGRESS,
    PAIRS,
    PATIENCE,
    TCP,
    Server,
    allow,
    client,
    exchange_tcp,
    isolate,
    pod,
    raise_generation,
    wait_for,
)

pytestmark = pytest.mark.root


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
        connections.set(key, {**entry, "expires": 1})
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
