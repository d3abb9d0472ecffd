"""Sets of protocols and ports, as rules allow them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from tidegate.cli import render
from tidegate.records import Protocol, Rule

WITH_PORTS = (int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP))
OTHERS = int(Protocol.ANY)  # what has no ports, ICMP echo among it: as one port, number 0
LAST = 65535

Range = tuple[int, int]  # first and last


@dataclass(frozen=True, slots=True)
class PortSet:
    """Protocol → ranges, sorted, none next to another."""

    ranges: tuple[tuple[int, tuple[Range, ...]], ...] = ()

    def of(self, protocol: int) -> tuple[Range, ...]:
        return dict(self.ranges).get(protocol, ())

    def __and__(self, other: "PortSet") -> "PortSet":
        return of_ranges(
            (protocol, (max(a[0], b[0]), min(a[1], b[1])))
            for protocol, mine in self.ranges
            for a in mine
            for b in other.of(protocol)
            if max(a[0], b[0]) <= min(a[1], b[1])
        )

    def __sub__(self, other: "PortSet") -> "PortSet":
        left = []
        for protocol, mine in self.ranges:
            for first, last in mine:
                for taken in other.of(protocol):
                    if taken[0] <= last and taken[1] >= first:
                        left += [(protocol, (first, taken[0] - 1))] if first < taken[0] else []
                        first = taken[1] + 1
                left += [(protocol, (first, last))] if first <= last else []
        return of_ranges(left)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __str__(self) -> str:
        if self == EVERYTHING:
            return "everything"
        rest = EVERYTHING - self
        if sum(len(ranges) for _, ranges in rest.ranges) < sum(len(ranges) for _, ranges in self.ranges):
            return f"all but {rest}"
        return ", ".join(_words(protocol, each) for protocol, ranges in self.ranges for each in ranges) or "nothing"


def of_ranges(found: Iterable[tuple[int, Range]]) -> PortSet:
    merged: dict[int, list[Range]] = {}
    for protocol, (first, last) in sorted(found):
        ranges = merged.setdefault(protocol, [])
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], max(last, ranges[-1][1])
        else:
            ranges.append((first, last))
    return PortSet(tuple((protocol, tuple(ranges)) for protocol, ranges in sorted(merged.items())))


EVERYTHING = of_ranges([(OTHERS, (0, 0)), *((protocol, (0, LAST)) for protocol in WITH_PORTS)])


def of_rules(rules: Iterable[Rule]) -> PortSet:
    """What they allow together."""
    found: list[tuple[int, Range]] = []
    for rule in rules:
        if rule.protocol == Protocol.ANY:
            return EVERYTHING
        found.append((rule.protocol, (rule.port, rule.port + (1 << 16 - rule.prefix) - 1)))
    return of_ranges(found)


def _words(protocol: int, ports: Range) -> str:
    if protocol == OTHERS:
        return "ICMP and what else has no ports"
    name = render.protocol(protocol)
    if ports == (0, LAST):
        return f"{name} all ports"
    return f"{name} {ports[0]}" if ports[0] == ports[1] else f"{name} {ports[0]}-{ports[1]}"
