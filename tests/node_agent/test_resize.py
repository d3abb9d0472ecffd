"""Maps of another size under running connections: an agent with other settings takes over from one that was killed."""

import asyncio
import os
import selectors
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.bpf.conftest import run_loader
from tests.bpf.kernel import Loaded
from tests.node_agent.netns import Network
from tests.node_agent.test_agent import RECORDS, WEB, World
from tests.node_agent.world import MARKS, puts, rules, subject

from node_agent import relink
from node_agent.loader import read_manifest

pytestmark = pytest.mark.root

SMALL = ("--size=endpoints=64", "--size=backends=512", "--size=connections=1024", "--size=connections_new=1024")
LARGE = ("--size=endpoints=128", "--size=backends=1024", "--size=connections=4096", "--size=connections_new=2048")


class Killed(Exception):
    """The agent ends here."""


class Place:
    """A node of which every loader has settings of its own, and a pod that may send, and get what belongs to it."""

    def __init__(self, network: Network, bpffs: Path, state: Path, cgroup: Path) -> None:
        self.network, self.bpffs, self.state, self.cgroup = network, bpffs, state, cgroup
        self.loaded: list[Loaded] = []

    def load(self, *options: str) -> World:
        result = run_loader(self.bpffs, self.state, *options)
        assert result.returncode == 0, result.stderr
        manifest = read_manifest(self.state)
        assert manifest is not None
        self.loaded.append(Loaded(manifest, self.bpffs, self.state))
        world = World(self.network, self.loaded[-1], self.cgroup)
        isolated = {**RECORDS, **subject(WEB, 6), **rules(6)}
        world.store.put_now(puts({**MARKS, **isolated}))
        return world


@pytest.fixture
def place(network: Network, bpffs: Path, tmp_path: Path, cgroup: Path) -> Iterator[Place]:
    directory = bpffs / "resized"
    made = Place(network, directory, tmp_path, cgroup)
    yield made
    for loaded in made.loaded:
        loaded.close()
    shutil.rmtree(directory)


class Stream:
    """A connection of the pod to one of these ends outside, on which both send in turn. `to`: what it addresses."""

    def __init__(self, network: Network, *ends: tuple[str, int], to: tuple[str, int] | None = None) -> None:
        with network.outside.entered():
            servers = [socket.create_server(end) for end in ends]
        with network.pod.entered():
            self._client = socket.create_connection(to or ends[0], 10)
        with selectors.DefaultSelector() as selector:
            for server in servers:
                selector.register(server, selectors.EVENT_READ, server)
            ((reached, _),) = selector.select(10)
        self._server, _ = reached.data.accept()
        for server in servers:
            server.close()
        for end in (self._client, self._server):
            end.settimeout(10)
        self.exchange()

    def exchange(self) -> None:
        for one, other in ((self._client, self._server), (self._server, self._client)):
            one.sendall(b"x" * 1000)
            left = 1000
            while left:
                left -= len(other.recv(left))

    def retransmitted(self) -> int:
        """Segments that either end sent again (struct tcp_info, tcpi_total_retrans)."""
        infos = [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104) for end in (self._client, self._server)]
        return sum(int.from_bytes(info[100:104], "little") for info in infos)

    def close(self) -> None:
        self._client.close()
        self._server.close()


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_connections_outlive_maps_of_another_size(place: Place, killed: bool) -> None:
    streams: list[Stream] = []

    async def work() -> None:
        world = place.load(*SMALL)
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            streams.append(Stream(place.network, (Network.OUTSIDE, 4001)))
        before = world.kernel()
        later = place.load(*LARGE)
        assert later.kernel() == before, "full before any program looks into them"
        # The programs that are attached know nothing of the new maps.
        streams.append(Stream(place.network, (Network.OUTSIDE, 4002)))
        if killed:
            await start_and_die(later)
            # All programs have the new maps, so that new connections are made without an agent.
            streams.append(Stream(place.network, (Network.OUTSIDE, 4003)))
            for stream in streams:
                stream.exchange()
        async with later.agent() as (agent, health):
            ends = asyncio.Event()
            traffic = asyncio.create_task(asyncio.to_thread(busy, streams, ends))
            await later.settled(agent, health)
            ends.set()
            await traffic
            assert agent.written.total() == 0
            assert not (place.bpffs / "replaced").exists()
            for stream in streams:
                stream.exchange()
            assert [stream.retransmitted() for stream in streams] == [0] * len(streams)
            assert later.loaded.drops() == {}
            assert later.loaded.maps["connections"].entry.max_entries == 4096
            assert len(later.loaded.maps["connections"].items()) == len(streams)

    try:
        place.network.node.runs(work)
    finally:
        for stream in streams:
            stream.close()


def busy(streams: list[Stream], ends: asyncio.Event) -> None:
    while not ends.is_set():
        for stream in streams:
            stream.exchange()


async def start_and_die(world: World) -> None:
    """An agent that is killed while its links are being moved."""
    left: list[subprocess.Popen[str]] = []

    def die(moving: subprocess.Popen[str]) -> None:
        left.append(moving)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(relink, "finish", die)
        async with world.agent():
            raise AssertionError("it lives")
    (moving,) = left
    assert os.getsid(moving.pid) == moving.pid, "a signal to the agent's group does not reach it"
    assert moving.communicate()[1] == ""
