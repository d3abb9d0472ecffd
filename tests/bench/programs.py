"""Nanoseconds a packet of each tc program on its usual paths, in the maps and at the devices of a node at work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from tests.bench.model import Measurement, Result, Size, Tick
from tests.bench.stand import EMPTY, ONE_LOOKUP, Hop, Stand
from tests.bench.worlds import EMPTY as EMPTY_SERVICE
from tests.bench.worlds import FAR, NEAR, NODE_PORTS, PORT, VIPS, Worlds
from tests.bpf.families import either, using
from tests.bpf.packets import REDIRECT, UNSPEC
from tests.bpf.topology import Cluster, outside_address
from tests.bpf.traffic import pod

CLIENT_PORT = 40000
PATHS = 16
DATA = 100  # bytes behind the headers of what is no SYN

Go = Callable[[str], Hop]  # TCP flags → a packet of one of the two ends


class PathError(Exception):
    """A packet did not take the path that was to be measured."""


@dataclass(frozen=True, slots=True)
class Path:
    """First the packets `before`, one after the other; then the one that is measured, which may depend on the frame
    that came of the last of them. `fresh`: each run of it is a new connection."""

    name: str
    measured: Callable[[bytes], Hop]
    before: tuple[Hop, ...] = ()
    action: int = REDIRECT
    fresh: bool = False


def go(program: str, device: str, source: tuple[str, int], destination: tuple[str, int]) -> Go:
    def hop(flags: str) -> Hop:
        ip: Packet = either(IP, IPv6)(src=source[0], dst=destination[0])
        packet = ip / TCP(sport=source[1], dport=destination[1], flags=flags)
        return Hop(either(program, f"{program}6"), device, packet if "S" in flags else packet / Raw(bytes(DATA)))

    return hop


def established(name: str, there: Go, back: Go, *, action: int = REDIRECT) -> Path:
    return Path(name, lambda _: there("A"), (there("S"), back("SA"), there("A")), action)


def new(name: str, there: Go) -> Path:
    return Path(name, lambda _: there("S"), fresh=True)


def paths(cluster: Cluster) -> Iterator[Path]:
    """Of the family in use."""
    node = cluster.nodes[0]
    a, b, c = (pod(cluster, name) for name in "abc")
    client, world = (a.address, CLIENT_PORT), (outside_address(), CLIENT_PORT)
    near, far = (b.address, PORT), (c.address, PORT)
    vips = {name: (addresses[node.address.count(":") > 0], 80) for name, addresses in VIPS.items()}
    to_near, from_near = go("from_pod", a.veth, client, near), go("from_pod", b.veth, near, client)
    to_far, from_far = go("from_pod", a.veth, client, far), go("from_network", "eth0", far, client)
    yield established("from_pod: to a pod of the node, established", to_near, from_near)
    yield new("from_pod: to a pod of the node, new", to_near)
    yield established("from_pod: to a pod elsewhere, established", to_far, from_far)
    yield new("from_pod: to a pod elsewhere, new", to_far)
    to_vip = go("from_pod", a.veth, client, vips[NEAR])
    handshake = (to_vip("S"), from_near("SA"), to_vip("A"))
    yield established("from_pod: to a Service, established", to_vip, from_near)
    yield new("from_pod: to a Service, new", to_vip)
    yield Path("from_pod: reply to a Service's client on the node", lambda _: from_near("A"), handshake)
    refused = go("from_pod", a.veth, client, vips[EMPTY_SERVICE])
    yield Path("from_pod: to a Service without backends, answered", lambda _: refused("S"))
    own = (node.address, CLIENT_PORT)
    from_node, to_node = go("to_pod", a.veth, own, (a.address, PORT)), go("from_pod", a.veth, (a.address, PORT), own)
    yield established("to_pod: from the node, established", from_node, to_node, action=UNSPEC)
    from_c, to_c = (
        go("from_network", "eth0", (c.address, CLIENT_PORT), near),
        go("from_pod", b.veth, near, (c.address, CLIENT_PORT)),
    )
    yield established("from_network: to a pod, established", from_c, to_c)
    yield new("from_network: to a pod, new", from_c)
    local = go("from_network", "eth0", world, (node.address, NODE_PORTS[NEAR]))
    yield established("from_network: NodePort, backend here, established", local, go("from_pod", b.veth, near, world))
    yield new("from_network: NodePort, backend here, new", local)
    remote = go("from_network", "eth0", world, (node.address, NODE_PORTS[FAR]))
    yield Path("from_network: NodePort, backend elsewhere, established", lambda _: remote("A"), (remote("S"),))
    yield new("from_network: NodePort, backend elsewhere, new", remote)

    def reply(forwarded: bytes) -> Hop:
        port = Ether(forwarded)[TCP].sport
        return go("from_network", "eth0", far, (node.address, port))("A")

    yield Path("from_network: reply of a backend elsewhere", reply, (remote("S"),))


def measure(stand: Stand, path: Path, size: Size, tick: Tick) -> tuple[float, ...]:
    """Nanoseconds a run, without those that the harness takes. Raises PathError."""
    samples = []
    for _ in range(size.batches):
        stand.forget()
        out = b""
        for hop in path.before:
            _, out = stand.send(hop)
        hop = path.measured(out)
        action, _ = stand.send(hop)
        if action != path.action:
            raise PathError(f"{path.name}: action {action}, not {path.action}: {hop.packet.summary()}")
        whole = stand.time(hop, size.repeats, fresh=path.fresh)
        samples.append(float(whole - stand.time(hop, size.repeats, fresh=path.fresh, program=EMPTY)))
        tick()
    return tuple(samples)


def measure_yardsticks(stand: Stand, hop: Hop, size: Size) -> dict[str, tuple[float, ...]]:
    """What the other figures stand beside."""
    batches = range(size.batches)
    alone = [stand.time_alone(EMPTY, hop, size.repeats) for _ in batches]
    looking = [stand.time_alone(ONE_LOOKUP, hop, size.repeats) for _ in batches]
    return {
        "an empty program": tuple(map(float, alone)),
        "a program of one hash lookup": tuple(map(float, looking)),
    }


@contextmanager
def stand_on(worlds: Worlds) -> Iterator[Stand]:
    stand = Stand(worlds.ours.nodes[0], worlds.load.cpu, worlds.harness)
    try:
        yield stand
    finally:
        stand.close()


def _measurement(version: int) -> Measurement[Worlds]:
    name, what = f"programs-ipv{version}", f"tc programs, IPv{version}"

    def run(worlds: Worlds, size: Size, tick: Tick) -> Result:
        with using(version), stand_on(worlds) as stand:
            listed = list(paths(worlds.ours))
            series = measure_yardsticks(stand, listed[0].measured(b""), size)
            for path in listed:
                series[path.name] = measure(stand, path, size, tick)
        return Result(name, what, "ns a packet", series)

    return Measurement(name, what, lambda size: size.batches * PATHS, run)


MEASUREMENTS = tuple(map(_measurement, (4, 6)))
