"""Many changes at the API server of the largest cluster: how long until etcd has them (tests.scale.steady)."""

import asyncio
from pathlib import Path

from tests.bench.model import Limit, Measurement, Result, Size, Tick
from tests.scale.fanout import percentile
from tests.scale.steady import KINDS, measure

PODS, POLICIES = 100.0, 10.0  # a second

LOST = "changes that never came"


def _run(where: Path, size: Size, tick: Tick) -> Result:
    place = where / "steady"
    place.mkdir()
    found = asyncio.run(measure(size.scale, PODS, POLICIES, size.log_milliseconds / 1000, place))
    tick()
    delays = {(kind, share): percentile(found.took[kind], share / 100) for kind in KINDS for share in (50, 99)}
    series = {f"{kind}, p{share}": delay for (kind, share), delay in delays.items()}
    cpu = {f"CPU of {name}": cores for name, cores in found.cpu.items()}
    limits = (
        *map(Limit, series),
        *(Limit(name, unit="cores") for name in cpu),
        Limit(LOST, at_most=0, unit="changes"),
    )
    series |= {**cpu, LOST: float(found.lost)}
    figures: dict[str, tuple[float, ...]] = {subject: (figure,) for subject, figure in series.items()}
    what = f"API server to etcd, {PODS:.0f} pods and {POLICIES:.0f} policies a second"
    return Result("steady-api", what, "ms", figures, limits=limits)


MEASUREMENTS = (Measurement("steady-api", "API server to etcd", lambda _size: 1, _run),)
