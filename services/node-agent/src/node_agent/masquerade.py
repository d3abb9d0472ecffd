"""What pods send out of the cluster: to whom under their own addresses, and else by which ports of the node.

Pure, but for reading the kernel's port range.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from node_agent.entries import PRESENT, Entries
from node_agent.sysctl import SYSCTL
from node_agent.table import Tables
from tidegate.records import Masquerade, Node

Range = tuple[bytes, int]

FIRST_PORT, LAST_PORT = 1024, 65535


class MasqueradeView:
    """The Masquerade record, and the nodes' pod CIDRs: a pod that is not known yet is a pod all the same."""

    def __init__(self, tables: Tables, entries: Entries) -> None:
        self._tables = tables
        self._entries = entries
        self._wanted: Counter[Range] = Counter()  # how often each range is wanted
        self._sources: dict[str, tuple[Range, ...]] = {}
        self.enabled = False

    def set_config(self, record: Masquerade | None) -> None:
        self.enabled = record is not None
        self._set("", record.non_masquerade if record else ())

    def set_node(self, name: str, record: Node | None) -> None:
        self._set(name, record.pod_cidrs if record else ())

    def _set(self, source: str, ranges: tuple[Range, ...]) -> None:
        before = self._sources.pop(source, ())
        if ranges:
            self._sources[source] = ranges
        self._wanted.update(ranges)
        self._wanted.subtract(before)
        for item in {*before, *ranges}:
            if self._wanted[item] <= 0:
                del self._wanted[item]
            key = self._entries.non_masquerade(*item)
            self._tables.want("non_masquerade", key, PRESENT if item in self._wanted else None)


def read_local_ports(root: Path = SYSCTL) -> range:
    """The ports that the kernel gives to sockets by itself (ip_local_port_range). Raises OSError."""
    first, last = (root / "ipv4/ip_local_port_range").read_text().split()
    return range(int(first), int(last) + 1)


def free_blocks(*taken: range) -> tuple[tuple[int, int], ...]:
    """First and last of each block of ports that is in none of these ranges."""
    blocks, first = [], FIRST_PORT
    for ports in sorted(taken, key=lambda ports: ports.start):
        if first < ports.start:
            blocks.append((first, min(ports.start - 1, LAST_PORT)))
        first = max(first, ports.stop)
    if first <= LAST_PORT:
        blocks.append((first, LAST_PORT))
    return tuple(blocks)


def settings_of(blocks: Iterable[tuple[int, int]], count: int) -> list[int]:
    """`count` values of the map `settings`: first << 16 | number of ports, 0 for no block."""
    values = [first << 16 | last - first + 1 for first, last in blocks]
    return [*values, *[0] * (count - len(values))]


def parse_ports(text: str) -> range:
    """`30000-32767`. Raises ValueError."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= LAST_PORT):
        raise ValueError(f"{text!r} is no range of ports: write first-last, as 30000-32767")
    return range(int(first), int(last) + 1)
