"""What a measurement is and what comes of it: a list of named ones, each over a setting that several may share."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

S = TypeVar("S")

Tick = Callable[[], None]  # to be called after each step of a measurement


class Comparison(msgspec.Struct, frozen=True):
    """`subject` ÷ `against`, names of series whose samples of equal index were taken next to each other."""

    subject: str
    against: str
    goal: float | None = None  # at least


class Limit(msgspec.Struct, frozen=True):
    """`subject` is a series; less `against`, where there is one: of samples of equal index, taken next to each other.

    Without a goal it is a figure beside those that have one.
    """

    subject: str
    against: str = ""
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""  # where it is not that of the result


class Result(msgspec.Struct, frozen=True):
    """`series`: what was measured → its samples, in the order of time. There are comparisons, or limits, or neither.

    `each`: so many samples in a row were taken in one setting. Those of another setting differ by more than theirs
    among themselves, so comparisons count settings.
    """

    name: str
    what: str
    unit: str
    series: dict[str, tuple[float, ...]]
    comparisons: tuple[Comparison, ...] = ()
    limits: tuple[Limit, ...] = ()
    each: int = 1


class Run(msgspec.Struct, frozen=True):
    when: str  # ISO 8601, UTC
    size: str
    machine: dict[str, str]
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: `services` present, clusters made `settings` times, in each of them `rounds` of all subjects
    in turn, each for `milliseconds`, and of programs `batches` of so many `repeats`; of the policy log and of agents'
    starts `runs`, logging for `log_milliseconds`; `scale` of the population (tests.scale); `watches` of nodes, which
    are told of changes for as long as is logged."""

    name: str
    services: int
    settings: int
    rounds: int
    milliseconds: int
    batches: int
    repeats: int
    runs: int
    log_milliseconds: int
    scale: float
    watches: int


SIZES = {
    size.name: size
    for size in (
        Size(
            "smoke",
            services=20,
            settings=2,
            rounds=1,
            milliseconds=10,
            batches=1,
            repeats=100,
            runs=1,
            log_milliseconds=200,
            scale=1 / 250,
            watches=10,
        ),
        Size(
            "quick",
            services=10_000,
            settings=6,
            rounds=2,
            milliseconds=200,
            batches=2,
            repeats=5000,
            runs=2,
            log_milliseconds=5000,
            scale=1,
            watches=1000,
        ),
        Size(
            "full",
            services=10_000,
            settings=12,
            rounds=5,
            milliseconds=300,
            batches=3,
            repeats=10_000,
            runs=6,
            log_milliseconds=10_000,
            scale=1,
            watches=2000,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Measurement(Generic[S]):
    name: str
    what: str
    steps: Callable[[Size], int]  # how often it will tick
    run: Callable[[S, Size, Tick], Result]


@dataclass(frozen=True, slots=True)
class Suite(Generic[S]):
    """Measurements over one setting, which is built and taken down afterwards, `Size.settings` times where it is made
    `often`.

    A quick run has those of `long` suites only where they are asked for.
    """

    name: str
    setting: Callable[[Size], AbstractContextManager[S]]
    measurements: tuple[Measurement[S], ...]
    long: bool = False
    often: bool = False
