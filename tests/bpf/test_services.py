"""Services on the wire, for what passes no socket hook."""

import socket

import pytest
from tests.bpf.topology import Cluster
from tests.bpf.traffic import (
    UDP,
    Server,
    answer_to_nobody,
    client,
    exchange_tcp,
    exchange_udp,
    no_drops,
    pod,
    send_all,
    serve,
    vip,
)

pytestmark = pytest.mark.root


@pytest.mark.parametrize("target", ["b", "c"])
def test_service_without_a_socket_hook(world: Cluster, target: str) -> None:
    a, backend = pod(world, "a"), pod(world, target)
    serve(world, 80, [(backend, 8080)])
    serve(world, 53, [(backend, 5353)], UDP)
    assert exchange_tcp(a, backend, vip(), 80, server_port=8080)[0] == a.address
    exchange_udp(a, backend, vip(), 53, server_port=5353)
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
                connection.connect((vip(), 80))
                for name, server in (("b", one), ("c", other)):
                    try:
                        server.socket.accept()[0].close()
                        answered[name] += 1
                    except BlockingIOError:
                        continue
    assert sum(answered.values()) == 40
    assert min(answered.values()) > 5, answered


def test_port_unreachable_comes_back_through_a_service(world: Cluster) -> None:
    a = pod(world, "a")
    for target in ("b", "c"):
        serve(world, 5300, [(pod(world, target), 5301)], UDP)
        with client(a, socket.SOCK_DGRAM) as sender:
            sender.connect((vip(), 5300))
            sender.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                sender.recv(100)


def test_error_of_a_services_client_reaches_the_backend(world: Cluster) -> None:
    a = pod(world, "a")
    for target in ("b", "c"):
        backend = pod(world, target)
        serve(world, 5300, [(backend, 5301)], UDP)
        answer_to_nobody(backend, 5301, a, vip(), 5300)


@pytest.mark.parametrize("size", [3000, 100_000])
def test_bulk_through_a_service_keeps_checksums_right(world: Cluster, size: int) -> None:
    """Left to the device by the pod, summed up by the pod, and left open by the pod but summed up on the way out."""
    a, c = pod(world, "a"), pod(world, "c")
    serve(world, 80, [(c, 8080)])
    data = bytes(index % 251 for index in range(size))
    ends = [a.namespace, c.namespace]
    uplinks = [node.namespace for node in world.nodes]
    for summing in ([], ends, uplinks):
        for namespace in summing:
            namespace.run("ethtool", "-K", "eth0", "tx", "off")
        with Server(c, 8080) as server, client(a) as connection:
            connection.connect((vip(), 80))
            with server.accept() as accepted:
                send_all(connection, accepted, data)
                send_all(accepted, connection, data)
        for namespace in summing:
            namespace.run("ethtool", "-K", "eth0", "tx", "on")
