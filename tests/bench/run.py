"""All suites, and running those of their measurements that are asked for."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from msgspec import structs
from tests.bench import coldstart, fanout, policylog, programs, steady, syncstart, traffic
from tests.bench.machine import describe
from tests.bench.model import Measurement, Result, Run, Size, Suite, Tick
from tests.bench.worlds import worlds

SUITES: tuple[Suite[Any], ...] = (
    Suite("datapath", worlds, (*traffic.MEASUREMENTS, *programs.MEASUREMENTS), often=True),
    Suite("policy log", policylog.stand, policylog.MEASUREMENTS),
    Suite("cold start", coldstart.filled, coldstart.MEASUREMENTS),
    Suite("start of the services", syncstart.starts, syncstart.MEASUREMENTS, long=True),
    Suite("steady change", steady.place, steady.MEASUREMENTS, long=True),
    Suite("fan-out", fanout.directory, fanout.MEASUREMENTS, long=True),
)

Began = Callable[[str, int], Tick]  # a stage with so many steps begins; returns what is to be called after each of them


def names() -> list[str]:
    return [measurement.name for suite in SUITES for measurement in suite.measurements]


def chosen(suite: Suite[Any], patterns: Sequence[str], size: Size) -> list[Measurement[Any]]:
    """Those whose names match one of the shell patterns; without patterns all that a run of the size has."""
    if not patterns and suite.long and size.name == "quick":
        return []
    return [
        measurement
        for measurement in suite.measurements
        if not patterns or any(fnmatch.fnmatch(measurement.name, pattern) for pattern in patterns)
    ]


def run(size: Size, patterns: Sequence[str], began: Began) -> Run:
    """Raises what the settings and measurements raise: a run is complete or it is none."""
    machine = describe()
    found = [result for suite in SUITES for result in results(suite, size, chosen(suite, patterns, size), began)]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(when, size.name, machine, tuple(found))


def in_a_row(results: Sequence[Result]) -> Result:
    """What one measurement found in several settings, in each of them as many samples of all that it measures."""
    first = results[0]
    (each,) = {len(samples) for result in results for samples in result.series.values()}
    series = {name: tuple(chain.from_iterable(one.series[name] for one in results)) for name in first.series}
    return structs.replace(first, series=series, each=each)


def results(suite: Suite[Any], size: Size, measurements: Sequence[Measurement[Any]], began: Began) -> Iterator[Result]:
    if not measurements:
        return
    settings = size.settings if suite.often else 1
    ready = began(f"setting up: {suite.name}", settings)
    ticks = [began(measurement.name, measurement.steps(size) * settings) for measurement in measurements]
    found: list[list[Result]] = [[] for _ in measurements]
    for _ in range(settings):
        with suite.setting(size) as setting:
            ready()
            for measurement, tick, of_it in zip(measurements, ticks, found, strict=True):
                of_it.append(measurement.run(setting, size, tick))
    yield from map(in_a_row, found) if suite.often else chain.from_iterable(found)
