"""Starts of the sync services in the largest cluster (tests.scale): how long until etcd is complete, at what cost."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.model import Limit, Measurement, Result, Size, Tick
from tests.scale.syncstart import EMPTY, SERVICES, STATES, Start, measure

SECONDS, CPU, PEAK, WRITES = "until etcd is complete", "CPU", "most memory", "keys written"


@dataclass(frozen=True, slots=True)
class Starts:
    """Of all services in both states, made when they are first asked for: one needs what the other has written."""

    directory: Path
    scale: float
    found: list[Start] = field(default_factory=list)

    def of(self, service: str, state: str) -> list[Start]:
        if not self.found:
            asyncio.run(self._fill())
        return [start for start in self.found if (start.service, start.state) == (service, state)]

    async def _fill(self) -> None:
        async for start in measure(self.scale, list(SERVICES), self.directory):
            self.found.append(start)


@contextmanager
def starts(size: Size) -> Iterator[Starts]:
    with tempfile.TemporaryDirectory(prefix="tgt-bench-") as directory:
        yield Starts(Path(directory), size.scale)


def _measurement(service: str, state: str, seconds: float, megabytes: float) -> Measurement[Starts]:
    name, what = f"start-{service}-{state}", f"{service}'s start, etcd {state}"

    def run(setting: Starts, _size: Size, tick: Tick) -> Result:
        found = setting.of(service, state)
        tick()
        series = {
            SECONDS: tuple(start.seconds for start in found),
            CPU: tuple(start.cpu for start in found),
            PEAK: tuple(start.peak for start in found),
            WRITES: tuple(float(start.writes) for start in found),
        }
        limits = (
            Limit(SECONDS, at_most=seconds),
            Limit(CPU),
            Limit(PEAK, at_most=megabytes, unit="MB"),
            Limit(WRITES, at_most=None if state == EMPTY else 0, unit="keys"),
        )
        return Result(name, what, "s", series, limits=limits)

    return Measurement(name, what, lambda _size: 1, run)


# endpoint-sync's goals hold for policy-sync as well: it has less to read.
MEASUREMENTS = tuple(
    _measurement(service, state, 60 if state == EMPTY else 20, 1000) for service in SERVICES for state in STATES
)
