"""An agent gives way to one with other programs, other maps and other fields in them, and that one to the first again.

Under running connections of a pod, through Services that its packets are translated for, and under the node's address:
each depends on entries of half a dozen maps, which all have another layout in the other version.
"""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf.conftest import run_loader
from tests.bpf.kernel import Loaded
from tests.node_agent.netns import Network, until
from tests.node_agent.test_agent import RECORDS, WEB, World
from tests.node_agent.test_attach import filters, number_of
from tests.node_agent.test_resize import Stream
from tests.node_agent.world import KEYS, MARKS, addresses, masquerade, puts, rules, subject

from node_agent import links
from node_agent.attach import POD_PROGRAMS
from node_agent.loader import Manifest, read_manifest, unfilled
from node_agent.loader.pins import possible_cpus
from node_agent.loader.source import find_source
from tidegate.records import Backend, BackendShard, Protocol, Service, ServicePort, encode
from tidegate.records.addresses import pack_address

pytestmark = pytest.mark.root

VIP, STREAMS, DATAGRAMS = "10.96.0.9", 6, 4
# Backends, each an address of its own: one that was forgotten would be another one, most times.
LISTENING = tuple((f"172.31.2.{number}", 4000 + number) for number in range(241, 247))

# In types.h: a field in the middle of what connections, Services, backends, policies and pods are, and of keys.
FIELDS = {
    "struct connection": "__u32 generation;",
    "struct translation": "__u32 service;",
    "struct translation_key": "struct addr client;",
    "struct masqueraded": "struct addr client;",
    "struct endpoint": "__u32 identity;",
    "struct service": "__u32 count;",
    "struct backend": "struct addr addr;",
    "struct backend_key": "__u32 service;",
    "struct frontend": "__u32 service;",
    "struct subject": "__u32 policy;",
    "struct rule": "__u32 sets[RULE_SETS];",
    "struct rule_key": "__u32 policy;",
    "struct counter": "__u64 packets;",
}
CHANGED = {"endpoints", "services", "backends", "frontends", "subjects", "rules"}  # of the agent's
CONSTANT = ("#define LIFETIME_UDP 180", "#define LIFETIME_UDP 200")
ANOTHER_MAP = "#ifndef SIZE_newcomers\n#define SIZE_newcomers 64\n#endif\nMAP_HASH(newcomers, u32, u32);\n"


def write_next_version(directory: Path) -> None:
    """The programs' source with all of that. A field that is new has a number, so that it is none of padding."""
    shutil.copytree(find_source(), directory)
    types, maps, lifetimes = (directory / "include" / name for name in ("types.h", "maps.h", "conntrack.h"))
    text = types.read_text()
    for kind, field in FIELDS.items():
        start = text.index(f"{kind} {{")
        place = text.index(field, start) + len(field)
        assert "}" not in text[start:place], f"{kind} has no {field}"
        text = f"{text[:place]} __u32 later;{text[place:]}"
    types.write_text(text)
    assert CONSTANT[0] in lifetimes.read_text()
    lifetimes.write_text(lifetimes.read_text().replace(*CONSTANT))
    before = "MAP_LRU(connections,"
    maps.write_text(maps.read_text().replace(before, ANOTHER_MAP + before))


class Exchange:
    """A UDP socket of the pod that asks through the Service, and is answered by whoever was chosen at first."""

    def __init__(self, network: Network) -> None:
        self._socket = network.pod.udp(socket.AF_INET)
        self._socket.settimeout(10)
        with network.pod.entered():
            self._socket.connect((VIP, 53))
        self._count = 0
        self._backend = self._ask()

    def _ask(self) -> bytes:
        self._count += 1
        self._socket.send(str(self._count).encode())
        number, backend = self._socket.recv(100).split(b" ")
        assert int(number) == self._count, "an answer was lost"
        return backend

    def exchange(self) -> None:
        assert self._ask() == self._backend, "another backend than before"

    def close(self) -> None:
        self._socket.close()


class Answering:
    """Outside, each backend of the UDP port in a thread of its own: it says the question again, and its port."""

    def __init__(self, network: Network) -> None:
        for address, _ in LISTENING:
            network.outside.ip("addr", "add", f"{address}/24", "dev", "eth0")
        self._sockets = [network.outside.udp(socket.AF_INET) for _ in LISTENING]
        for opened, end in zip(self._sockets, LISTENING, strict=True):
            opened.bind(end)
        self._threads = [threading.Thread(target=self._answer, args=(opened,)) for opened in self._sockets]
        for thread in self._threads:
            thread.start()

    def _answer(self, opened: socket.socket) -> None:
        while (asked := opened.recvfrom(100))[0] != b"end":
            opened.sendto(asked[0] + b" %d" % opened.getsockname()[1], asked[1])

    def close(self) -> None:
        for opened, thread in zip(self._sockets, self._threads, strict=True):
            opened.sendto(b"end", opened.getsockname())
            thread.join()
            opened.close()


class Traffic:
    """Streams and datagrams that go on, one after the other, until they are told to end."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._stack = ExitStack()
        self._stack.callback(Answering(network).close)
        self.streams: list[Stream] = []
        self._exchanges: list[Exchange] = []
        self._ends = threading.Event()
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._lock = threading.Lock()
        self.rounds = 0

    def add(self, streams: int, exchanges: int) -> None:
        with self._lock:
            for _ in range(streams):
                stream = Stream(self._network, *LISTENING, to=(VIP, 80))
                self._stack.callback(stream.close)
                self.streams.append(stream)
            for _ in range(exchanges):
                exchange = Exchange(self._network)
                self._stack.callback(exchange.close)
                self._exchanges.append(exchange)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ends.is_set():
                with self._lock:
                    for stream in self.streams:
                        stream.exchange()
                    for exchange in self._exchanges:
                        exchange.exchange()
                self.rounds += 1
        except BaseException as error:  # it is raised again in the test's own thread
            self._failures.append(error)

    async def goes_on(self) -> None:
        """Everybody has sent and got something, from begin to end after this was called."""
        before = self.rounds
        await until("traffic", lambda: self.rounds > before + 1 or self._failures)
        if self._failures:
            raise self._failures[0]

    def close(self) -> None:
        self._ends.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._stack.close()


class Place:
    """A node whose agents have one source of programs or the other, and whose pod speaks under the node's address."""

    def __init__(self, network: Network, bpffs: Path, state: Path, cgroup: Path, attach: str) -> None:
        self.network, self.bpffs, self.state, self.cgroup, self.attach = network, bpffs, state, cgroup, attach
        self.loaded: list[Loaded] = []

    def load(self, source: Path, marks: bool = True) -> World:
        sizes = ("endpoints=64", "backends=512", "connections=1024", "connections_new=1024")
        result = run_loader(self.bpffs, self.state, f"--source={source}", *(f"--size={size}" for size in sizes))
        assert result.returncode == 0, result.stderr
        manifest = read_manifest(self.state)
        assert manifest is not None
        self.loaded.append(Loaded(manifest, self.bpffs, self.state))
        world = World(self.network, self.loaded[-1], self.cgroup)
        world.settings = replace(world.settings, attach=self.attach)
        # The pod may send, and get what belongs to it, and nothing else.
        isolated = {**RECORDS, **subject(WEB, 6), **rules(6), **masquerade("192.0.2.0/24")}
        world.store.put_now(puts({**isolated, **outside(), **(MARKS if marks else {})}))
        return world


def outside() -> dict[str, bytes]:
    """A Service whose backends are out of the cluster."""
    ports = (("tcp", Protocol.TCP, 80), ("udp", Protocol.UDP, 53))
    listed = tuple(ServicePort(id=7000 + port, name=name, protocol=kind, port=port) for name, kind, port in ports)
    shard = BackendShard(
        backends=tuple(
            Backend(address=pack_address(address), ports={"tcp": port, "udp": port}) for address, port in LISTENING
        )
    )
    return {
        KEYS.service("default", "outside"): encode(Service(cluster_ips=addresses(VIP), ports=listed)),
        KEYS.backends("default", "outside", 0): encode(shard),
    }


@pytest.fixture(params=["tcx", "clsact"])
def place(
    request: pytest.FixtureRequest, network: Network, bpffs: Path, tmp_path: Path, cgroup: Path
) -> Iterator[Place]:
    made = Place(network, bpffs / "upgraded", tmp_path, cgroup, request.param)
    yield made
    for loaded in made.loaded:
        loaded.close()
    shutil.rmtree(made.bpffs)


@pytest.fixture(scope="session")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("next") / "bpf"
    write_next_version(directory)
    return directory


@pytest.fixture
def traffic(network: Network) -> Iterator[Traffic]:
    made = Traffic(network)
    yield made
    made.close()


def attached(place: Place) -> dict[str, int]:
    """Hook of the pod's device → number of the program there."""
    if place.attach == "clsact":
        listed = [entry for hook in ("ingress", "egress") for entry in filters(place.network.node, "vethpod", hook)]
        return {str(entry["name"]).removeprefix("tidegate_"): int(entry["id"]) for entry in listed}
    found = {}
    for program in POD_PROGRAMS:
        link = links.open_pin(place.bpffs / "links" / f"tcx_{place.network.node.ifindex('vethpod')}_{program}")
        found[program] = links.program_of(link)
        os.close(link)
    return found


def programs(manifest: Manifest) -> dict[str, int]:
    return {name: number_of(manifest, name) for name in POD_PROGRAMS}


def count_drops(loaded: Loaded, packets: int) -> None:
    """As if so many had been dropped, on each CPU."""
    value = packets.to_bytes(8, "little").ljust(loaded.maps["counters"].entry.value.size, b"\0")
    loaded.maps["counters"].set_raw({"value": loaded.reasons["CLOSED"]}, value * possible_cpus())


async def begin(place: Place, traffic: Traffic) -> World:
    """An agent of this version has been here, and traffic goes on."""
    first = place.load(find_source())
    async with first.agent() as (agent, health):
        await first.settled(agent, health)
        traffic.add(streams=STREAMS, exchanges=DATAGRAMS)
        traffic.start()
        await traffic.goes_on()
    return first


def test_another_version_takes_over_and_the_first_one_again(place: Place, next_version: Path, traffic: Traffic) -> None:
    async def takes_over(world: World, before: dict[str, dict[str, object]] | None = None) -> None:
        """While traffic goes on, which has begun before or between its maps and its programs."""
        traffic.add(streams=1, exchanges=1)
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            await traffic.goes_on()
            assert attached(place) == programs(world.loaded.manifest)
        await traffic.goes_on()
        assert sum(stream.retransmitted() for stream in traffic.streams) == 0
        assert world.loaded.drops() == {"CLOSED": 3 * possible_cpus()}
        assert {path.name for path in (place.bpffs / "maps").iterdir()} == set(world.loaded.manifest.maps)
        assert not any((place.bpffs / name).exists() for name in ("replaced", "moving"))
        assert unfilled(place.state, world.loaded.manifest.maps) == []

    async def work() -> None:
        first = await begin(place, traffic)
        count_drops(first.loaded, 3)
        for source, new in ((next_version, {"newcomers"}), (find_source(), set[str]())):
            world = place.load(source)
            assert set(unfilled(place.state, world.loaded.manifest.maps)) == CHANGED | new
            await takes_over(world)
            # As much as there was, and not yet what the first one had made of the streams.
            assert len(world.loaded.maps["connections"].items()) >= len(traffic.streams)

    place.network.node.runs(work)


def test_earlier_programs_stay_until_the_maps_of_the_next_ones_are_filled(
    place: Place, next_version: Path, traffic: Traffic
) -> None:
    """Also those of an agent that is killed meanwhile, and what comes in between."""

    async def work() -> None:
        first = await begin(place, traffic)
        later = place.load(next_version, marks=False)
        for _ in range(2):
            async with later.agent() as (agent, health):
                await until("the reason", lambda: "are filled: endpoints" in health.report()["programs"])
                await traffic.goes_on()
                traffic.add(streams=1, exchanges=1)
                assert attached(place) == programs(first.loaded.manifest)
        async with later.agent() as (agent, health):
            later.store.put_now(puts(MARKS))
            await later.settled(agent, health)
            assert attached(place) == programs(later.loaded.manifest)
        await traffic.goes_on()
        assert sum(stream.retransmitted() for stream in traffic.streams) == 0
        assert later.loaded.drops() == {}

    place.network.node.runs(work)
