"""Connections and requests a second through the clusters, all subjects of a measurement in turn, round by round."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.load import Kind, Place
from tests.bench.model import Comparison, Measurement, Result, Size, Tick
from tests.bench.worlds import BACKENDS, FAR, NEAR, NODE_PORTS, PORT, VIPS, Worlds, client_inside, client_outside
from tests.bpf.traffic import pod

PLAIN, PROXY, OURS, ON_VETH, BARE = "plain", "nftables", "tidegate", "tidegate, no socket hook", "bare redirect"
VIP_PORT = 80


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured, and what its client connects to."""

    name: str
    place: Place
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Path:
    """`goals`: of `tidegate` for each kind, against plain forwarding; None: against nftables, at least as much."""

    name: str
    what: str
    service: str
    from_outside: bool
    goals: dict[Kind, float] | None


PATHS = (
    Path(
        "one-node",
        "pod to a ClusterIP, the backend on the same node",
        NEAR,
        False,
        {"connections": 1.05, "requests": 1.3},
    ),
    Path(
        "across-nodes",
        "pod to a ClusterIP, the backend on another node",
        FAR,
        False,
        {"connections": 1.0, "requests": 1.0},
    ),
    Path("outside-local", "client outside to a NodePort, the backend on that node", NEAR, True, None),
    Path("outside-remote", "client outside to a NodePort, the backend on another node", FAR, True, None),
)
KINDS: dict[Kind, str] = {"connections": "connections/s", "requests": "requests/s"}


def who(path: Path) -> tuple[str, ...]:
    """The subjects of a path, by name."""
    if path.from_outside:
        return PLAIN, PROXY, OURS
    # A redirect knows no way to another node.
    return (PLAIN, PROXY, OURS, ON_VETH) if path.service == FAR else (PLAIN, PROXY, OURS, ON_VETH, BARE)


def subjects(worlds: Worlds, path: Path) -> list[Subject]:
    clusters = {PLAIN: worlds.plain, PROXY: worlds.proxied, BARE: worlds.bare}
    clients = client_outside if path.from_outside else client_inside
    found = []
    for name in who(path):
        cluster = clusters.get(name, worlds.ours)
        place = Place(clients(cluster).namespace, worlds.cgroup if name == OURS and not path.from_outside else None)
        if name in (PLAIN, BARE):
            at = pod(cluster, BACKENDS[path.service]).address, PORT
        elif path.from_outside:
            at = cluster.nodes[0].address, NODE_PORTS[path.service]
        else:
            at = VIPS[path.service][0], VIP_PORT
        found.append(Subject(name, place, *at))
    return found


def comparisons(path: Path, kind: Kind) -> Iterator[Comparison]:
    for subject in who(path):
        if subject in (OURS, ON_VETH):
            yield Comparison(subject, PLAIN, path.goals[kind] if path.goals and subject == OURS else None)
            yield Comparison(subject, PROXY, 1.0 if path.goals is None else None)
        elif subject != PLAIN:
            yield Comparison(subject, PLAIN)


def _measurement(path: Path, kind: Kind) -> Measurement[Worlds]:
    def run(worlds: Worlds, size: Size, tick: Tick) -> Result:
        present = subjects(worlds, path)
        samples: dict[str, list[float]] = {subject.name: [] for subject in present}
        for index in range(size.rounds):
            # Nobody always comes after the same one.
            start = index % len(present)
            for subject in present[start:] + present[:start]:
                rate = worlds.load.rate(kind, subject.place, subject.address, subject.port, size.milliseconds)
                samples[subject.name].append(rate)
                tick()
        series = {name: tuple(rates) for name, rates in samples.items()}
        return Result(f"{kind}-{path.name}", path.what, KINDS[kind], series, tuple(comparisons(path, kind)))

    return Measurement(f"{kind}-{path.name}", path.what, lambda size: size.rounds * len(who(path)), run)


MEASUREMENTS = tuple(_measurement(path, kind) for path in PATHS for kind in KINDS)
