"""Medians and how far they can be trusted. Pure."""

from collections.abc import Sequence
from math import comb
from statistics import median
from typing import NamedTuple

CONFIDENCE = 0.95
ENOUGH = 6  # samples; of fewer all together hold the median with less confidence


class Estimate(NamedTuple):
    """A median, and the interval in which it lies with a probability of 95 % or more, whatever the distribution."""

    value: float
    low: float
    high: float


def estimate(samples: Sequence[float], each: int = 1) -> Estimate:
    """The interval goes from one order statistic to another; of fewer than ENOUGH samples it is all of them, and
    the confidence is lower. `each` so many samples in a row count as one, their median."""
    ordered = sorted(median(samples[at : at + each]) for at in range(0, len(samples), each))
    cut = _cut(len(ordered))
    return Estimate(median(ordered), ordered[cut], ordered[-1 - cut])


def _cut(count: int) -> int:
    """How many samples may be left out at each end: below or above the median lies each with one half."""
    cut, outside = 0, 2
    while cut < (count - 1) // 2:
        outside += 2 * comb(count, cut + 1)
        if outside / 2**count > 1 - CONFIDENCE:
            break
        cut += 1
    return cut


def ratio(subject: Sequence[float], against: Sequence[float], each: int = 1) -> Estimate:
    """Of the quotients of pairs: what slows the whole machine down for a while slows both."""
    return estimate([one / other for one, other in zip(subject, against, strict=True)], each)


def difference(subject: Sequence[float], against: Sequence[float] | None = None) -> Estimate:
    """Of the differences of pairs; without `against`, of the samples themselves."""
    if against is None:
        return estimate(subject)
    return estimate([one - other for one, other in zip(subject, against, strict=True)])


def verdict(found: Estimate, goal: float) -> str:
    """A goal is met, or missed, where the whole interval says so."""
    if found.low >= goal:
        return "met"
    return "missed" if found.high < goal else "open"


def verdict_below(found: Estimate, goal: float) -> str:
    """The same for what is to be at most so much."""
    if found.high <= goal:
        return "met"
    return "missed" if found.low > goal else "open"
