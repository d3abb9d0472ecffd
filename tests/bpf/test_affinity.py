"""sessionAffinity: ClientIP: a client stays with its backend, for packets, for sockets and for clients outside."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.bpf.test_sockets import hooked, inside  # noqa: F401  # a fixture
from tests.bpf.topology import Cluster, Node, Pod
from tests.bpf.traffic import PORT, SERVICE, TCP, Server, client, outside, pod, vip, wait_for

pytestmark = pytest.mark.root

NUMBER = SERVICE + TCP
TIMEOUT = 1000


def publish(node: Node, *backends: Pod, timeout: int = TIMEOUT) -> None:
    """vip():80 and the node's own PORT lead to these; clients stay with theirs."""
    maps = node.programs.maps
    maps["frontends"].set({"addr": vip()}, {})
    for address, port in ((vip(), 80), (node.address, PORT)):
        maps["frontends"].set({"addr": address, "port": port, "protocol": TCP}, {"service": NUMBER, "outside": NUMBER})
    maps["slots"].clear()
    for slot, backend in enumerate(backends):
        maps["backends"].set({"service": NUMBER, "slot": slot}, {"addr": backend.address, "port": 8080})
        maps["slots"].set({"service": NUMBER, "addr": backend.address, "port": 8080}, {"value": slot})
    maps["services"].set({"value": NUMBER}, {"count": len(backends), "affinity_seconds": timeout})


def asked(source: Pod, address: str, port: int, count: int, servers: dict[str, Server]) -> set[str]:
    """Which of the servers got the connections."""
    found = set()
    for _ in range(count):
        with client(source) as connection:
            connection.connect((address, port))
            for name, server in servers.items():
                try:
                    server.socket.accept()[0].close()
                    found.add(name)
                except BlockingIOError:
                    continue
    return found


@pytest.fixture
def servers(tcx_world: Cluster) -> Iterator[dict[str, Server]]:
    opened = {name: Server(pod(tcx_world, name), 8080) for name in "bcd"}
    for server in opened.values():
        server.socket.setblocking(False)
    yield opened
    for server in opened.values():
        server.socket.close()


Ask = Callable[[int], set[str]]


@pytest.fixture(params=["packets", "outside"])
def ask(request: pytest.FixtureRequest, tcx_world: Cluster, servers: dict[str, Server]) -> Ask:
    node = tcx_world.nodes[0]
    if request.param == "packets":
        return lambda count: asked(pod(tcx_world, "a"), vip(), 80, count, servers)
    return lambda count: asked(outside(tcx_world), node.address, PORT, count, servers)


def test_without_affinity_clients_are_spread(tcx_world: Cluster, ask: Ask) -> None:
    publish(tcx_world.nodes[0], *(pod(tcx_world, name) for name in "bcd"), timeout=0)
    assert ask(60) == {"b", "c", "d"}


def test_a_client_stays_with_its_backend_also_where_that_moves_to_another_slot(tcx_world: Cluster, ask: Ask) -> None:
    node = tcx_world.nodes[0]
    publish(node, *(pod(tcx_world, name) for name in "bcd"))
    (first,) = ask(20)
    for order in ("bcd", "dcb", "cdb"):
        publish(node, *(pod(tcx_world, name) for name in order))
        assert ask(10) == {first}


def test_when_its_backend_is_gone_it_stays_with_another(tcx_world: Cluster, ask: Ask) -> None:
    node = tcx_world.nodes[0]
    publish(node, *(pod(tcx_world, name) for name in "bcd"))
    (first,) = ask(5)
    others = "".join(sorted(set("bcd") - {first}))
    publish(node, *(pod(tcx_world, name) for name in others))
    (second,) = ask(20)
    assert second in others
    publish(node, *(pod(tcx_world, name) for name in "bcd"))
    assert ask(20) == {second}


def test_the_time_runs_from_the_last_connection(tcx_world: Cluster, ask: Ask) -> None:
    node = tcx_world.nodes[0]
    publish(node, *(pod(tcx_world, name) for name in "bcd"))
    ask(1)
    affinities = node.programs.maps["affinities"]
    ((key, value),) = affinities.items()
    assert TIMEOUT - 5 < value["expires"] - time.monotonic() <= TIMEOUT + 1
    (first,) = ask(1)
    # Soon over: a connection renews it. Over: anybody.
    affinities.set(key, {**value, "expires": int(time.monotonic()) + 3})
    assert ask(1) == {first}
    assert affinities.items()[0][1]["expires"] - time.monotonic() > TIMEOUT - 5
    seen = set()
    for _ in range(40):
        affinities.set(key, {**value, "expires": 1})
        seen |= ask(1)
    assert seen == {"b", "c", "d"}


def test_at_the_socket(tcx_world: Cluster, hooked: Path, servers: dict[str, Server]) -> None:  # noqa: F811
    node = tcx_world.nodes[0]
    publish(node, *(pod(tcx_world, name) for name in "bcd"))
    with inside(hooked):
        (first,) = asked(pod(tcx_world, "a"), vip(), 80, 20, servers)
        publish(node, *(pod(tcx_world, name) for name in "dcb"))
        assert asked(pod(tcx_world, "a"), vip(), 80, 20, servers) == {first}
        # Each pod for itself: among twenty others' choices some differ.
        affinities = node.programs.maps["affinities"]
        assert [key["client"].endswith("ffff:ffff") for key, _ in affinities.items()] == [True]
        seen = set()
        for _ in range(30):
            affinities.clear()
            seen |= asked(pod(tcx_world, "a"), vip(), 80, 1, servers)
        assert seen == {"b", "c", "d"}
    wait_for("nothing was translated on the wire", lambda: node.programs.maps["translations"].items() == [])
