"""The table of Services (tests/choice), in the kernel: packets through the programs, and sockets that connect."""

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from errno import ECONNREFUSED
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet
from tests.bpf.kernel import Loaded, Map, attached_to_cgroup, run_program
from tests.bpf.packets import IFINDEX, NOWHERE, REDIRECT, SHOT, frame
from tests.bpf.test_sockets import inside
from tests.bpf.topology import Namespace
from tests.chi_square import is_even
from tests.choice.pure import ADDRESSES, NodeAgent, pods_by_address, records, source
from tests.choice.rows import NUMBERS, ROWS
from tests.choice.table import DROPPED, IPV4, NODES, PASSED, PODS, REFUSED, Probe, probes
from tests.leftovers import cgroup2

from node_agent.maps import Maps

pytestmark = pytest.mark.root

# At least so many connections, to see who else is chosen; at most so many, until all have been.
FEWEST, MOST, BATCH = 32, 300, 32
FIRST_PORT = 20000
REASONS = {
    "NO_BACKEND": REFUSED,
    "NO_SERVICE_PORT": REFUSED,
    "NO_LOCAL_BACKEND": DROPPED,
    "SOURCE_RANGE": DROPPED,
}
CONNECTIONS = ("connections", "connections_new", "translations", "masquerades", "masqueraded", "affinities")
SO_COOKIE, SO_NETNS_COOKIE = 57, 71
SETTING_OWN_PACKETS, SETTING_NODE_NAMESPACE = 2, 7  # types.h
# Which program sees the packets of a client.
HOOKS = {"pods": "from_pod", "nodes": "to_network", "outside": "from_network", "elsewhere": "from_network"}
TRANSPORTS: Mapping[str, Packet] = {
    "TCP": TCP(sport=FIRST_PORT, flags="S"),
    "UDP": UDP(sport=FIRST_PORT),
    "SCTP": SCTP(sport=FIRST_PORT) / SCTPChunkInit(init_tag=7, n_out_streams=1, n_in_streams=1),
}


@dataclass
class Place:
    """A node whose maps hold all rows; its client pod is behind the device of test_run."""

    node: str
    loaded: Loaded
    fds: dict[str, int]
    cgroup: Path
    namespace: Namespace


@pytest.fixture(scope="module")
def values() -> dict[str, bytes]:
    return asyncio.run(records())


@pytest.fixture(scope="module")
def somewhere() -> Iterator[Namespace]:
    """A namespace without a route: what a socket has got is in the maps before that is found out."""
    made = Namespace("rows")
    yield made
    made.remove()


@pytest.fixture(scope="module", params=NODES)
def place(
    request: pytest.FixtureRequest, both_loaded: list[Loaded], values: dict[str, bytes], somewhere: Namespace
) -> Iterator[Place]:
    node, loaded = str(request.param), both_loaded[0]
    loaded.clear()
    agent = NodeAgent(node, {pod: IFINDEX if pod.startswith("c") else NOWHERE for pod in PODS})
    agent.snapshot(values)
    maps = Maps(loaded.manifest.maps)
    for name, entries in agent.kernel.items():
        assert maps[name].update_all(entries) == len(entries)
    maps.close()
    ipv4, ipv6 = ADDRESSES.nodes[node].values()
    for index in (0, IFINDEX):
        loaded.maps["devices"].set({"value": index}, {"flags": bool(index), "addr": ipv4, "addr6": ipv6})
    loaded.maps["settings"].set({"value": SETTING_OWN_PACKETS}, {"value": 1})
    names = [f"{name}{suffix}" for name in HOOKS.values() for suffix in ("", "6")]
    cgroup = cgroup2() / f"tgt-bpf-{os.getpid()}-rows"
    cgroup.mkdir()
    fds = {name: loaded.open_program(name) for name in names}
    try:
        with attached_to_cgroup(loaded, cgroup):
            yield Place(node, loaded, fds, cgroup, somewhere)
    finally:
        cgroup.rmdir()
        for fd in fds.values():
            os.close(fd)
        loaded.clear()


def forget(place: Place) -> None:
    for name in CONNECTIONS:
        place.loaded.maps[name].clear()


def packet(probe: Probe) -> bytes:
    layer = IP if probe.family == IPV4 else IPv6
    transport = TRANSPORTS[probe.protocol].copy()
    transport.dport = probe.port
    return bytes(frame(layer(src=source(probe.client, probe.node, probe.family), dst=probe.address), transport))


def send(place: Place, probe: Probe, fewest: int = FEWEST, most: int = MOST) -> tuple[frozenset[str], list[str]]:
    """What the packets of new connections meet: the answer, and the backends in the order in which they were chosen."""
    forget(place)
    fd = place.fds[f"{HOOKS[probe.client]}{'' if probe.family == IPV4 else '6'}"]
    raw, at = packet(probe), 14 + (20 if probe.family == IPV4 else 40)
    before, actions, chosen = place.loaded.drops(), set(), dict[int, str]()
    for count in range(0, most, BATCH):
        for port in range(FIRST_PORT + count, FIRST_PORT + count + BATCH):
            action, _, _ = run_program(fd, raw[:at] + port.to_bytes(2, "big") + raw[at + 2 :])
            actions.add(action)
        chosen = _translations(place.loaded.maps["translations"])
        if not chosen or (probe.answer <= set(chosen.values()) and count + BATCH >= fewest) or probe.sticky:
            break
    if chosen:
        return frozenset(chosen.values()), [chosen[port] for port in sorted(chosen)]
    after = place.loaded.drops()
    ends = {REASONS[reason] for reason in after if after[reason] != before.get(reason, 0) and reason in REASONS}
    assert ends != {REFUSED} or actions == {REDIRECT}, "not answered"
    assert ends != {DROPPED} or actions == {SHOT}
    return frozenset(ends or {PASSED}), []


def _translations(entries: Map) -> dict[int, str]:
    return {key["client_port"]: pods_by_address()[value["backend"]] for key, value in entries.items()}


def connect(place: Place, probe: Probe, count: int) -> tuple[frozenset[str], list[str]]:
    """What sockets hold that have connected; PASSED where they have been left alone."""
    peers = place.loaded.maps["socket_peers"]
    peers.clear()
    place.loaded.maps["affinities"].clear()
    cookie = namespace_cookie(place.namespace) if probe.client == "nodes" else 0
    place.loaded.maps["settings"].set({"value": SETTING_NODE_NAMESPACE}, {"value": cookie})
    family = socket.AF_INET if probe.family == IPV4 else socket.AF_INET6
    errors, cookies = set(), []
    for _ in range(count):
        with place.namespace.socket(
            family, socket.SOCK_DGRAM if probe.protocol == "UDP" else socket.SOCK_STREAM
        ) as one:
            one.setblocking(False)
            errors.add(one.connect_ex((probe.address, probe.port)))
            cookies.append(int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little"))
    held = {key["cookie"]: pods_by_address()[key["addr"]] for key, _ in peers.items() if key["reverse"]}
    if held:
        assert set(held) == set(cookies)
        return frozenset(held.values()), [held[cookie] for cookie in cookies]
    return frozenset({REFUSED} if errors == {ECONNREFUSED} else {PASSED}), []


def namespace_cookie(namespace: Namespace) -> int:
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


def matches(probe: Probe, found: frozenset[str]) -> bool:
    if probe.sticky and probe.chosen:
        return len(found) == 1 and found <= probe.answer
    return found == probe.answer


def of_row(name: str, node: str) -> list[Probe]:
    return [probe for probe in probes({name: ROWS[name]}, NUMBERS, ADDRESSES) if probe.node == node]


@pytest.mark.parametrize("name", ROWS)
def test_packets(place: Place, name: str) -> None:
    wrong = []
    for probe in of_row(name, place.node):
        # What a node's socket has got, or was refused, is no packet any more.
        if probe.client != "nodes" or probe.answer <= {DROPPED, PASSED}:
            found, _ = send(place, probe)
            if not matches(probe, found):
                wrong.append(f"{probe.text}: {sorted(found)}, not {sorted(probe.answer)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ROWS)
def test_sockets(place: Place, name: str) -> None:
    """What sockets leave alone is decided by their packets: drops, and source ranges for pods."""
    wrong, ranges = [], "loadBalancerSourceRanges" in ROWS[name].spec
    with inside(place.cgroup):
        for probe in of_row(name, place.node):
            if probe.client not in ("pods", "nodes") or probe.protocol == "SCTP":
                continue
            found, _ = connect(place, probe, FEWEST)
            if found < probe.answer:
                found, _ = connect(place, probe, MOST)
            left = found == {PASSED} and (probe.answer == {DROPPED} or (ranges and probe.client == "pods"))
            if not left and not matches(probe, found):
                wrong.append(f"{probe.text}: {sorted(found)}, not {sorted(probe.answer)}")
    assert not wrong, "\n".join(wrong)


CHOICES = 1500


@pytest.mark.parametrize("client", ["pods", "outside", "sockets"])
def test_backends_are_chosen_evenly(place: Place, client: str) -> None:
    wanted = "pods" if client == "sockets" else client
    probe = next(one for one in of_row("ClusterIP", place.node) if one.client == wanted and one.chosen)
    if client == "sockets":
        with inside(place.cgroup):
            _, chosen = connect(place, probe, CHOICES)
    else:
        _, chosen = send(place, probe, CHOICES, CHOICES)
    assert len(chosen) >= CHOICES
    assert is_even(chosen, len(probe.answer))
