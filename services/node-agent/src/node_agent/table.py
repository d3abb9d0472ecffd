"""What the agent's maps should hold, what they do hold, and the way from one to the other. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

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


# Of these, entries go when nothing leads to them any more, but for members that leave a set which is in use.
RETIRED = ("members", "peer_blocks", "rules", "subjects")


@dataclass(frozen=True, slots=True)
class Step:
    """Entries of one map to write, or keys to remove. Never both. `retired`: nothing led to these keys any more."""

    map: str
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()
    retired: bool = False


class Table(Mapping[bytes, bytes]):
    """One map: what it should hold, and as a mapping what it does hold.

    Nothing is kept twice: the kernel holds what is wanted, but for the keys in `differing`.
    """

    def __init__(self, found: Mapping[bytes, bytes]) -> None:
        self.want: dict[bytes, bytes] = {}
        self.differing: dict[bytes, bytes | None] = {}  # key → what the kernel holds instead (None: nothing)
        self.found = dict(found)  # what the kernel held at the start, of what nobody has said anything about yet
        self.to_come = 0  # keys that are wanted and not there
        self._held = len(self.found)

    def get(self, key: bytes, default: T = None) -> bytes | T:  # type: ignore[assignment]
        value = self.differing[key] if key in self.differing else self.want.get(key)
        if value is None and self.found:
            value = self.found.get(key)
        return default if value is None else value

    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.get(key) is not None

    def __len__(self) -> int:
        return self._held

    def __iter__(self) -> Iterator[bytes]:
        yield from self.found
        yield from (key for key in self.want if self.differing.get(key, key) is not None)
        yield from (key for key, there in self.differing.items() if there is not None and key not in self.want)

    def set(self, key: bytes, value: bytes | None) -> None:
        """Under `key` there is to be `value`, or nothing (None)."""
        wanted = self.want.get(key)
        if self.found and key in self.found:
            there: bytes | None = self.found.pop(key)
        elif key in self.differing:
            there = self.differing[key]
        else:
            there = wanted
        if there is None:
            self.to_come += (value is not None) - (wanted is not None)
        if value is None:
            self.want.pop(key, None)
        else:
            self.want[key] = value
        self._compare(key, there, value)

    def written(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        want, differing = self.want, self.differing
        for key, value in entries:
            wanted = want.get(key)
            if (differing[key] if key in differing else wanted or self.found.get(key)) is None:
                self._held += 1
                self.to_come -= wanted is not None
            if wanted == value:
                differing.pop(key, None)
            else:
                differing[key] = value
        if not differing:
            self.differing = {}  # a dictionary keeps the room that it once had

    def removed(self, key: bytes) -> bool:
        """Whether there was such an entry."""
        was = self.get(key) is not None
        wanted = self.want.get(key)
        self.found.pop(key, None)
        self._held -= was
        self.to_come += was and wanted is not None
        self._compare(key, None, wanted)
        return was

    def _compare(self, key: bytes, there: bytes | None, wanted: bytes | None) -> None:
        if there == wanted:
            self.differing.pop(key, None)
        else:
            self.differing[key] = there

    def adopt(self) -> list[bytes]:
        """What nobody has said anything about is not wanted."""
        unwanted = [*self.found]
        self.differing.update(self.found)
        self.found = {}
        return unwanted


class Tables:
    """`want` says what should be; `plan` gives the steps; `done` says that a step was carried out.

    What a program may still come to that has begun before the last write is not taken away with `want` but retired: it
    goes with the first plan after `expire` has been told that these programs have ended.
    """

    def __init__(self, have: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """`have`: map → entries, as read from the kernel."""
        self._tables = {name: Table(have.get(name, {})) for name in ORDER}
        self.removals = 0  # entries removed so far
        self._retired: dict[str, dict[bytes, int]] = {name: {} for name in RETIRED}  # key → round
        self._round = 0  # of plans
        self._expired = -1

    def have(self, name: str) -> Mapping[bytes, bytes]:
        return self._tables[name]

    def wanted(self, name: str) -> Mapping[bytes, bytes]:
        return self._tables[name].want

    def want(self, name: str, key: bytes, value: bytes | None) -> None:
        """Under `key` there is to be `value`, or nothing (None)."""
        if value is not None and name in self._retired:
            self._retired[name].pop(key, None)
        self._tables[name].set(key, value)

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
        return len(self._tables[name]) + self._tables[name].to_come

    @property
    def pending(self) -> int:
        return sum(len(table.differing) for table in self._tables.values())

    def plan(self) -> list[Step]:
        """Steps from have to want, in the order in which they are to be done. What is retired later on waits for the
        next plan at least."""
        self._round += 1
        steps = []
        for name, table in self._tables.items():
            # What replaces an entry needs no room: first, as all that follows what finds none is left undone.
            due = [key for key, there in table.differing.items() if there is not None and key in table.want]
            due += [key for key, there in table.differing.items() if there is None and key in table.want]
            if due:
                steps.append(Step(name, puts=tuple((key, table.want[key]) for key in due)))
        for name, table in reversed(self._tables.items()):
            retired = self._retired.get(name, {})
            unwanted = sorted(key for key in table.differing if key not in table.want)
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
        return any(table.get(key, value) != value for key, value in step.puts) or any(k in table for k in step.deletes)

    def done(self, name: str, puts: Iterable[tuple[bytes, bytes]] = (), deletes: Iterable[bytes] = ()) -> None:
        """The kernel holds this now. What has been wanted otherwise meanwhile, withdrawals included, is due."""
        table = self._tables[name]
        table.written(puts)
        for key in deletes:
            if name in self._retired:
                self._retired[name].pop(key, None)
            self.removals += table.removed(key)
