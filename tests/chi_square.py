"""Whether choices are spread evenly (Pearson's chi-square test)."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

# A false alarm in about 10^6 runs.
QUANTILE = 4.75


def is_even(chosen: Sequence[Hashable], among: int) -> bool:
    """Whether so many choices `among` that many could well have been made by equal chance."""
    expected = len(chosen) / among
    counts = list(Counter(chosen).values())
    counts += [0] * (among - len(counts))
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    freedom = among - 1
    # The distribution's quantile by Wilson and Hilferty's approximation.
    spread = 2 / (9 * freedom)
    return len(counts) == among and statistic <= freedom * (1 - spread + QUANTILE * math.sqrt(spread)) ** 3
