"""Many changes at the API server of the largest cluster: how long until etcd and an agent's maps have them
(tests.scale.steady)."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.fanout import directory
from tests.bench.model import Limit, Measurement, Result, Size, Tick
from tests.scale.delays import KINDS
from tests.scale.fanout import percentile
from tests.scale.steady import AGENT, MAPS, PLACES, measure

from node_agent.loader import CACHE

PODS, POLICIES = 100.0, 10.0  # a second
SECONDS = 5.5  # for each second that the policy log is measured: 500 changes of policies and more

LOST = "changes that never came"
MOST = {50: 10.0, 99: 50.0}  # of the changes that came to the maps, percent → milliseconds
CORES = 0.15  # of the agent


@dataclass(frozen=True, slots=True)
class Where:
    """A directory for what is written, and the agents' compiled programs."""

    directory: Path
    cache: Path


@contextmanager
def place(size: Size, cache: Path = CACHE) -> Iterator[Where]:
    with directory(size) as made:
        yield Where(made, cache)


def _run(where: Where, size: Size, tick: Tick) -> Result:
    seconds = SECONDS * size.log_milliseconds / 1000
    found = asyncio.run(measure(size.scale, (PODS, POLICIES), seconds, where.directory, where.cache))
    tick()
    series: dict[str, float] = {}
    limits = []
    for at in PLACES:
        for kind in KINDS:
            for share, most in MOST.items():
                name = f"{kind} → {at}, p{share}"
                series[name] = percentile(found.took(at, kind), share / 100)
                limits.append(Limit(name, at_most=most if at == MAPS else None))
    for name, cores in found.cpu.items():
        series[f"CPU of {name}"] = cores
        limits.append(Limit(f"CPU of {name}", at_most=CORES if name == AGENT else None, unit="cores"))
    series[LOST] = float(sum(found.lost.values()))
    limits.append(Limit(LOST, at_most=0, unit="changes"))
    what = f"from the API server's event, {PODS:.0f} pods and {POLICIES:.0f} policies a second"
    figures: dict[str, tuple[float, ...]] = {subject: (figure,) for subject, figure in series.items()}
    return Result("steady-change", what, "ms", figures, limits=tuple(limits))


MEASUREMENTS = (Measurement("steady-change", "API server to etcd and to the maps", lambda _size: 1, _run),)
