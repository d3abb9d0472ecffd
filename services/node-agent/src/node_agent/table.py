"""What the agent's maps should hold, what they do hold, and the way from one to the other. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import TypeVar

from node_agent.packed import Packed, places

T = TypeVar("T")

# Adds go in this order and removals in the reverse one, all removals after all adds: at no moment does an entry that is
# looked up first lead to one that is not there.
ORDER = (
    "members",
    "peer_blocks",
    "rules",
    "backends",
    "slots",
    "ring",
    "services",
    "source_ranges",
    "frontends",
    "subjects",
    "non_masquerade",
    "devices",
    "endpoints",
)

# From which maps a packet comes to an entry, and so what must not be written while it is missing, and what must be
# written before it may go.
REACHED_FROM: dict[str, frozenset[str]] = {
    "members": frozenset({"peer_blocks", "rules", "subjects", "endpoints"}),
    "peer_blocks": frozenset({"rules", "subjects", "endpoints"}),
    "rules": frozenset({"subjects", "endpoints"}),
    "backends": frozenset({"services", "frontends"}),
    "slots": frozenset(),
    "ring": frozenset(),
    "services": frozenset({"frontends"}),
    "source_ranges": frozenset({"frontends"}),
    "frontends": frozenset(),
    "subjects": frozenset({"endpoints"}),
    # Where a range found no room, some packets have the node's address; without devices all would be dropped.
    "non_masquerade": frozenset(),
    "devices": frozenset(),
    "endpoints": frozenset(),
}

# Changes in these may change verdicts, or where packets go: connections are judged anew after them.
POLICY = frozenset({"members", "peer_blocks", "rules", "subjects", "endpoints", "frontends"})


# Of these there are as many as backends in the cluster; their keys are a number and a place.
PACKED = frozenset({"backends"})

# Of these, entries go when nothing leads to them any more, but for members that leave a set which is in use.
RETIRED = ("members", "peer_blocks", "rules", "subjects")


@dataclass(frozen=True, slots=True)
class Step:
    """Entries of one map to write, or keys to remove. Never both. `retired`: nothing led to these keys any more."""

    map: str
    puts: Mapping[bytes, bytes] = field(default_factory=dict)
    deletes: tuple[bytes, ...] = ()
    retired: bool = False


class Table(Mapping[bytes, bytes]):
    """One map: what it should hold, and as a mapping what it does hold.

    Nothing is kept twice. What is wanted is in `settled` where the kernel holds just that, in `new` where it holds
    nothing, and in `changed` where it holds something else. What else it holds is in `other`, or still in `found`.
    """

    def __init__(self, found: Mapping[bytes, bytes]) -> None:
        self.settled: dict[bytes, bytes] | Packed = {}
        self.new: dict[bytes, bytes] | Packed = {}
        self.changed: dict[bytes, bytes] = {}  # its keys are in `other`, too
        self.other: dict[bytes, bytes] = {}
        self.found = dict(found)  # what the kernel held at the start, of what nobody has said anything about yet

    def get(self, key: bytes, default: T = None) -> bytes | T:  # type: ignore[assignment]
        for entries in (self.settled, self.other, self.found):
            value = entries.get(key)
            if value is not None:
                return value
        return default

    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self.settled or key in self.other or key in self.found

    def __len__(self) -> int:
        return len(self.settled) + len(self.other) + len(self.found)

    def __iter__(self) -> Iterator[bytes]:
        return chain(self.found, self.settled, self.other)

    def set(self, key: bytes, value: bytes | None) -> None:
        """Under `key` there is to be `value`, or nothing (None)."""
        there = self.settled.get(key)
        if there is not None:
            if there == value:
                return
            del self.settled[key]
        else:
            there = self.other.pop(key, None) if self.other else None
            if there is None and self.found:
                there = self.found.pop(key, None)
        if there is not None:
            self._wants(key, there, value)
        elif value is not None:
            self.new[key] = value
        else:
            self.new.pop(key, None)

    def set_row(self, number: bytes, row: bytes, size: int) -> None:
        """`set` for the places 0 … n-1 of a number (Packed): values of so many bytes."""
        for start, place in zip(range(0, len(row), size), places(len(row) // size), strict=False):
            self.set(number + place, row[start : start + size])

    def due(self) -> Mapping[bytes, bytes]:
        """What is to be written, as it is now. What replaces an entry needs no room: first, as all that follows what
        finds none is left undone."""
        return {**self.changed, **self.new} if self.changed else self.new.copy()

    def _wants(self, key: bytes, there: bytes, value: bytes | None) -> None:
        """The kernel holds `there`, which is noted nowhere, and is to hold `value`."""
        self.changed.pop(key, None)
        if there == value:
            self.settled[key] = there
            return
        self.other[key] = there
        if value is not None:
            self.changed[key] = value

    def written(self, entries: Mapping[bytes, bytes]) -> None:
        """The kernel holds these now."""
        for key, value in self._settle_at_once(entries).items():
            self._wants(key, value, self._forget(key))

    def _settle_at_once(self, entries: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        """Of what was new and has been written what can be, as after a start: there may be hundreds of thousands.
        Returns what remains."""
        if entries != self.new:
            return entries
        if self.settled:
            self.settled.update(self.new)
        else:
            self.settled = self.new
        self.new = {}
        return {}

    def removed(self, key: bytes) -> bool:
        """Whether there was such an entry."""
        was = key in self
        wanted = self._forget(key)
        if wanted is not None:
            self.new[key] = wanted
        return was

    def _forget(self, key: bytes) -> bytes | None:
        """What is noted of the key is not, any more; returns what is wanted there."""
        self.other.pop(key, None)
        self.found.pop(key, None)
        wanted = (entries.pop(key, None) for entries in (self.settled, self.new, self.changed))
        return next((value for value in [*wanted] if value is not None), None)

    def adopt(self) -> list[bytes]:
        """What nobody has said anything about is not wanted."""
        unwanted = [*self.found]
        self.other.update(self.found)
        self.found = {}
        return unwanted


class PackedTable(Table):
    """One whose keys are numbers and places, with rows that are taken, written and known as a whole."""

    settled: Packed
    new: Packed

    def __init__(self, found: Mapping[bytes, bytes]) -> None:
        super().__init__(found)
        self.settled, self.new = Packed(), Packed()

    def set_row(self, number: bytes, row: bytes, size: int) -> None:
        if self.other or self.found or self.settled.has_row(number) or self.new.has_row(number):
            super().set_row(number, row, size)
        else:
            self.new.set_row(number, row, size)

    def _settle_at_once(self, entries: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        return self.new.hand_over(entries, self.settled) if isinstance(entries, Packed) else entries


class Wanted(Mapping[bytes, bytes]):
    """What a map should hold."""

    def __init__(self, table: Table) -> None:
        self._table = table

    @property
    def _parts(self) -> tuple[Mapping[bytes, bytes], ...]:
        return self._table.settled, self._table.new, self._table.changed

    def __getitem__(self, key: bytes) -> bytes:
        for entries in self._parts:
            if key in entries:
                return entries[key]
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return any(key in entries for entries in self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[bytes]:
        return chain(*self._parts)


class Tables:
    """`want` says what should be; `plan` gives the steps; `done` says that a step was carried out.

    What a program may still come to that has begun before the last write is not taken away with `want` but retired: it
    goes with the first plan after `expire` has been told that these programs have ended.
    """

    def __init__(self, have: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """`have`: map → entries, as read from the kernel."""
        self._tables = {name: (PackedTable if name in PACKED else Table)(have.get(name, {})) for name in ORDER}
        self.removals = 0  # entries removed so far
        self._retired: dict[str, dict[bytes, int]] = {name: {} for name in RETIRED}  # key → round
        self._round = 0  # of plans
        self._expired = -1

    def have(self, name: str) -> Mapping[bytes, bytes]:
        return self._tables[name]

    def wanted(self, name: str) -> Mapping[bytes, bytes]:
        return Wanted(self._tables[name])

    def want(self, name: str, key: bytes, value: bytes | None) -> None:
        """Under `key` there is to be `value`, or nothing (None)."""
        if value is not None and name in self._retired:
            self._retired[name].pop(key, None)
        self._tables[name].set(key, value)

    def want_row(self, name: str, number: bytes, row: bytes, size: int) -> None:
        """`want` for the places 0 … n-1 of a number (Packed): values of so many bytes."""
        self._tables[name].set_row(number, row, size)

    def retire(self, name: str, key: bytes) -> None:
        """Nobody wants it, and once what is wanted now has been written nothing leads to it."""
        self.want(name, key, None)
        if key in self._tables[name]:
            self._retired[name][key] = self._round

    def retiring(self) -> int | None:
        """The round of the last plan, if something was retired before it that has not expired."""
        last = self._round - 1
        waiting = any(self._expired < number <= last for keys in self._retired.values() for number in keys.values())
        return last if waiting else None

    def expire(self, number: int) -> None:
        """All programs have ended that began before the entries of that round's plan had been written."""
        self._expired = max(self._expired, number)

    def adopt(self) -> None:
        """From now on everything that nobody wants is to go: called once all that is known has been wanted."""
        for name, table in self._tables.items():
            unwanted = table.adopt()
            if name in self._retired:
                self._retired[name].update(dict.fromkeys(unwanted, self._round))

    def occupied(self, name: str) -> int:
        """Entries that are there, and those that come before any of them goes."""
        return len(self._tables[name]) + len(self._tables[name].new)

    @property
    def pending(self) -> int:
        return sum(len(table.new) + len(table.other) for table in self._tables.values())

    def plan(self) -> list[Step]:
        """Steps from have to want, in the order in which they are to be done. What is retired later on waits for the
        next plan at least."""
        self._round += 1
        steps = []
        for name, table in self._tables.items():
            if puts := table.due():
                steps.append(Step(name, puts=puts))
        for name, table in reversed(self._tables.items()):
            if not table.other:
                continue
            retired = self._retired.get(name, {})
            unwanted = sorted(table.other.keys() - table.changed.keys())
            for is_retired in (False, True):
                deletes = tuple(
                    key for key in unwanted if (key in retired) == is_retired and self._may_go(retired, key)
                )
                if deletes:
                    steps.append(Step(name, deletes=deletes, retired=is_retired))
        return steps

    def _may_go(self, retired: Mapping[bytes, int], key: bytes) -> bool:
        return retired.get(key, self._expired) <= self._expired

    def outdated(self, step: Step) -> bool:
        """Whether the kernel holds an entry that the step would still replace or remove."""
        table = self._tables[step.map]
        unreplaced = any(table.get(key, value) != value for key, value in step.puts.items())
        return unreplaced or any(key in table for key in step.deletes)

    def done(
        self, name: str, puts: Mapping[bytes, bytes] = MappingProxyType({}), deletes: Iterable[bytes] = ()
    ) -> None:
        """The kernel holds this now. What has been wanted otherwise meanwhile, withdrawals included, is due."""
        table = self._tables[name]
        if puts:
            table.written(puts)
        for key in deletes:
            if name in self._retired:
                self._retired[name].pop(key, None)
            self.removals += table.removed(key)
