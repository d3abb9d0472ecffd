"""Connections and requests a second through the clusters, all subjects of a measurement in turn, round by round."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.load import Kind, Place
from tests.bench.model import Comparison, Measurement, Result, Size, Tick
from tests.bench.worlds import BACKENDS, FAR, NEAR, NODE_PORTS, PORT, VIPS, Worlds, client_inside, client_outside
from tests.bpf.topology import Cluster
from tests.bpf.traffic import pod

PLAIN, PROXY, OURS, ON_VETH = "plain", "nftables", "tidegate", "tidegate, no socket hook"
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


def subjects(worlds: Worlds, path: Path) -> list[Subject]:
    service = path.service

    def client(cluster: Cluster) -> Place:
        return Place((client_outside if path.from_outside else client_inside)(cluster).namespace)

    target = pod(worlds.plain, BACKENDS[service]).address
    plain = Subject(PLAIN, client(worlds.plain), target, PORT)
    if path.from_outside:
        at = worlds.ours.nodes[0].address, NODE_PORTS[service]
        return [plain, Subject(PROXY, client(worlds.proxied), *at), Subject(OURS, client(worlds.ours), *at)]
    at = VIPS[service][0], VIP_PORT
    inside = client(worlds.ours)
    return [
        plain,
        Subject(PROXY, client(worlds.proxied), *at),
        Subject(OURS, Place(inside.namespace, worlds.cgroup), *at),
        Subject(ON_VETH, inside, *at),
    ]


def comparisons(path: Path, kind: Kind) -> Iterator[Comparison]:
    ours = [OURS] if path.from_outside else [OURS, ON_VETH]
    for subject in ours:
        goal = path.goals[kind] if path.goals and subject == OURS else None
        yield Comparison(subject, PLAIN, goal)
        yield Comparison(subject, PROXY, 1.0 if path.goals is None else None)
    yield Comparison(PROXY, PLAIN)


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

    width = 3 if path.from_outside else 4
    return Measurement(f"{kind}-{path.name}", path.what, lambda size: size.rounds * width, run)


MEASUREMENTS = tuple(_measurement(path, kind) for path in PATHS for kind in KINDS)
