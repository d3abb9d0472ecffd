"""Sockets of a pod and of the node whose backend goes: ended by a real agent, and no others."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bpf.kernel import Loaded
from tests.leftovers import cgroup2
from tests.node_agent.netns import Namespace, Network, until
from tests.node_agent.test_agent import World
from tests.node_agent.world import KEYS, MARKS, OWN, Values, backend, backends, judged, node, pod, pod_key, puts

from node_agent.maps import Maps
from node_agent.namespaces import enter, open_namespaces, open_own, processes
from node_agent.sockdiag import connected, open_diag
from playground.supervisor import confined
from tidegate.records import Service, ServicePort, encode
from tidegate.records.addresses import pack_address
from tidegate.store import Delete

pytestmark = pytest.mark.root

ONE, TWO, VIP = "10.202.2.2", "10.202.2.3", "10.96.0.1"
WEB = 1001
PORTS = (
    ServicePort(id=5080, name="http", protocol=6, port=80),
    ServicePort(id=5053, name="dns", protocol=17, port=53),
)


def both(*addresses: str) -> Values:
    found = [backend(address) for address in addresses]
    ports = {"http": 8080, "dns": 5353}
    return backends("shop", 0, *(type(b)(address=b.address, ports=ports, serving=b.serving) for b in found))


START: Values = {
    **node(OWN, Network.NODE, cidrs=("10.202.1.0/24",)),
    **node("n2", "172.31.2.12", cidrs=("10.202.2.0/24",)),
    **judged(WEB),
    **pod("web", WEB, Network.POD),
    **pod("one", WEB, ONE, node="n2"),
    KEYS.service("default", "shop"): encode(Service(cluster_ips=(pack_address(VIP),), ports=PORTS)),
    **both(ONE),
}
GONE = [*puts(both(TWO)), Delete(pod_key("one"))]

Run = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture
def run(network: Network, loaded: Loaded, cgroup: Path) -> Iterator[Run]:
    """Runs a test's coroutine in the node's network namespace. In the pod something is running."""
    (cgroup / "pod").mkdir()
    # Packets to the other node go into the void, and nothing says so.
    network.node.ip("neigh", "replace", "172.31.2.12", "lladdr", "02:00:00:00:00:12", "dev", "eth0")
    with network.pod.entered():
        inmate = subprocess.Popen(["sleep", "infinity"])
    (cgroup / "pod" / "cgroup.procs").write_text(str(inmate.pid))

    def start(work: Callable[[World], Awaitable[None]]) -> None:
        async def inside() -> None:
            await work(World(network, loaded, cgroup))

        network.node.runs(inside)

    try:
        yield start
    finally:
        inmate.kill()
        inmate.wait()
        (cgroup / "pod").rmdir()


@contextmanager
def inside(cgroup: Path) -> Iterator[None]:
    home = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (cgroup2() / home.removeprefix("0::/") / "cgroup.procs").write_text(str(os.getpid()))


class Client:
    """A socket of the pod's or the node's, in the cgroup."""

    def __init__(self, world: World, at: Namespace, kind: int, family: int = socket.AF_INET) -> None:
        with inside(world.settings.cgroup), at.entered():
            self.socket = socket.socket(family, kind)
        self.socket.setblocking(False)

    def connect(self, address: str, port: int) -> "Client":
        assert self.socket.connect_ex((address, port)) in (0, errno.EINPROGRESS)
        return self

    @property
    def ended(self) -> bool:
        """Once, where it has been."""
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert error in (0, errno.ECONNABORTED)
        return error != 0


STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@contextmanager
def visitor(world: World, cgroup: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own for the agent's visits, with the rights that it has in a cluster."""
    program = [sys.executable, "-m", "node_agent.visitor", f"--visitor={path}", f"--cgroup={cgroup}"]
    process = subprocess.Popen(confined("visitor", program))
    world.settings = replace(world.settings, visitor=path)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sent", [False, True], ids=["in person", "by the visitor"])
@pytest.mark.parametrize("where", ["pod", "node"])
def test_sockets_of_a_backend_that_is_gone_are_ended_and_no_others(
    run: Run, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, sent: bool
) -> None:
    monkeypatch.setattr("node_agent.release.AGAIN", 0.05)

    async def work(world: World) -> None:
        with visitor(world, cgroup, tmp_path / "visitor.sock") if sent else nullcontext():
            await ends_them(world)

    async def ends_them(world: World) -> None:
        at: Namespace = getattr(world.network, where)
        peers = world.loaded.maps["socket_peers"]
        world.store.put_now(puts({**MARKS, **START}))
        with ExitStack() as stack:
            async with world.agent() as (agent, health):
                await world.settled(agent, health)

                def client(kind: int, address: str, port: int, family: int = socket.AF_INET) -> Client:
                    made = Client(world, at, kind, family).connect(address, port)
                    stack.callback(made.socket.close)
                    return made

                stuck = [
                    client(STREAM, VIP, 80),
                    client(DATAGRAM, VIP, 53),
                    client(STREAM, f"::ffff:{VIP}", 80, socket.AF_INET6),
                    client(DATAGRAM, f"::ffff:{VIP}", 53, socket.AF_INET6),
                ]
                direct = [client(STREAM, ONE, 8080), client(DATAGRAM, ONE, 5353)]
                unconnected = Client(world, at, DATAGRAM)
                stack.callback(unconnected.socket.close)
                unconnected.socket.sendto(b"x", (VIP, 53))
                world.store.put_now(puts(both(ONE, TWO)))
                await world.settled(agent, health)
                assert not any(each.ended for each in stuck)
                world.store.put_now(GONE)
                for each in stuck:
                    await until("the end of a stuck socket", lambda each=each: each.ended)  # type: ignore[misc]
                # They are counted once all have ended.
                await until("their number", lambda: agent.releaser.freed == len(stuck))
                assert not any(each.ended for each in (*direct, unconnected))
                unconnected.socket.sendto(b"x", (VIP, 53))
                client(DATAGRAM, VIP, 53)
                await until("the end of what was remembered", lambda: reverse(peers, ONE) == 1)  # the unconnected one's
                assert reverse(peers, TWO) == 2

    run(work)


def test_a_visitor_that_is_not_there_is_told_of_and_waited_for(
    run: Run, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.release.AGAIN", 0.05)

    async def work(world: World) -> None:
        path = tmp_path / "visitor.sock"
        world.settings = replace(world.settings, visitor=path)
        world.store.put_now(puts({**MARKS, **START}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            datagram = Client(world, world.network.pod, DATAGRAM).connect(VIP, 53)
            world.store.put_now(GONE)
            await until("a word about it", lambda: agent.host_problems)
            assert f"no answer from tidegate-node-visitor at {path}" in agent.host_problems["stuck sockets"]
            with visitor(world, cgroup, path):
                await until("the end of a stuck socket", lambda: datagram.ended)
                await until("silence", lambda: not agent.host_problems)
            datagram.socket.close()

    run(work)


def reverse(peers: Any, address: str) -> int:
    return sum(key["addr"] == address and key["reverse"] for key, _ in peers.items())


@pytest.mark.parametrize("how", ["at rest", "killed before it was done"])
def test_what_went_while_the_agent_was_away(run: Run, how: str) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **START}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            clients = [
                Client(world, world.network.pod, STREAM).connect(VIP, 80),
                Client(world, world.network.pod, DATAGRAM).connect(VIP, 53),
            ]
            if how != "at rest":
                agent.releaser.look = lambda: None  # type: ignore[method-assign]
                world.store.put_now(GONE)
                await until("the end of the pod", lambda: world.identity(ONE) is None)
        world.store.put_now(GONE)
        assert not any(each.ended for each in clients)
        async with world.agent():
            for each in clients:
                await until("the end of a stuck socket", lambda each=each: each.ended)  # type: ignore[misc]
                each.socket.close()

    run(work)


def test_terminating_and_serving_keeps_its_sockets(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **START, **both(ONE)}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            datagram = Client(world, world.network.pod, DATAGRAM).connect(VIP, 53)
            passes = 0
            attend = agent.releaser._attend

            async def counted(departed: Any) -> None:
                nonlocal passes
                await attend(departed)
                passes += 1

            agent.releaser._attend = counted  # type: ignore[method-assign]
            kept = backends(
                "shop",
                0,
                type(backend(ONE))(
                    address=pack_address(ONE), ports={"http": 8080, "dns": 5353}, ready=False, terminating=True
                ),
            )
            world.store.put_now(puts(kept))
            world.store.put_now([Delete(KEYS.backends("default", "other", 0))])
            # Something else goes, so that sockets are looked at.
            world.store.put_now(puts({**pod("gone", WEB, TWO, node="n2")}))
            world.store.put_now([Delete(pod_key("gone"))])
            await until("a look at the sockets", lambda: passes)
            assert not datagram.ended
            world.store.put_now(puts(both(TWO)))
            await until("the end of a stuck socket", lambda: datagram.ended)
            datagram.socket.close()

    run(work)


def test_processes_that_cannot_be_seen_are_told_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **START}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            datagram = Client(world, world.network.pod, DATAGRAM).connect(VIP, 53)
            monkeypatch.setattr("node_agent.visits.processes", lambda _: iter([0, 0]))
            world.store.put_now(GONE)
            await until("a word about it", lambda: agent.host_problems)
            assert "2 processes of the pods cannot be seen" in agent.host_problems["stuck sockets"]
            assert "hostPID" in agent.host_problems["stuck sockets"]
            datagram.socket.close()

    run(work)


def test_what_the_kernel_refuses_is_told_and_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **START}))
        monkeypatch.setattr("node_agent.release.AGAIN", 0.05)
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            datagram = Client(world, world.network.pod, DATAGRAM).connect(VIP, 53)

            def refuse(_: int) -> None:
                raise PermissionError(errno.EPERM, "enter a network namespace: Operation not permitted")

            with monkeypatch.context() as broken:
                broken.setattr("node_agent.visits.enter", refuse)
                world.store.put_now(GONE)
                await until("a word about it", lambda: agent.host_problems)
                assert "Operation not permitted" in agent.host_problems["stuck sockets"]
                assert not datagram.ended
            await until("the end of a stuck socket", lambda: datagram.ended)
            await until("silence", lambda: not agent.host_problems)
            datagram.socket.close()

    run(work)


def test_namespaces_of_a_cgroup(run: Run, network: Network, cgroup: Path) -> None:
    """Each once, by the processes in the cgroup and below it."""

    async def work(_: World) -> None:
        with inside(cgroup):
            pids = list(processes(cgroup))
            assert os.getpid() in pids
            own = open_own()
            found = [os.fstat(fd).st_ino for fd in open_namespaces(own, [*pids, *pids, 1 << 22])]
            os.close(own)
        pod, node = (Path(f"/run/netns/{at.name}").stat().st_ino for at in (network.pod, network.node))
        home = Path("/proc/self/ns/net").stat().st_ino  # where this process lives, whatever its threads enter
        assert found[0] == node
        assert sorted(found) == sorted([pod, node, home])

    run(work)


def test_sockets_are_listed_in_the_namespace_that_was_entered(network: Network) -> None:
    with network.pod.udp(socket.AF_INET) as theirs:
        theirs.connect((Network.GATEWAY, 9))
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{network.pod.name}", os.O_RDONLY)
        try:
            enter(there)
            with open_diag() as diag:
                (found,) = connected(diag, 17)
            assert (found.peer, found.port) == (pack_address(Network.GATEWAY), 9)
        finally:
            enter(home)
            os.close(home)
            os.close(there)


def test_entries_by_a_field_of_their_key(loaded: Loaded) -> None:
    peers = loaded.maps["socket_peers"]
    for cookie in range(1, 5001):
        address = ONE if cookie % 1000 == 0 else TWO
        peers.set({"cookie": cookie, "addr": address, "port": 53, "protocol": 17, "reverse": 1}, {"service": 7})
    maps = Maps({"socket_peers": peers.entry})
    try:
        found = maps["socket_peers"].having("addr", {pack_address(ONE)})
        cookies = sorted(maps["socket_peers"].key.unpack(key)["cookie"] for key in found)
        assert cookies == [1000, 2000, 3000, 4000, 5000]
    finally:
        maps.close()
