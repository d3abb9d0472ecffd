"""What the agent's maps should hold, what they do hold, and the way from one to the other. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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

# Changes in these may change verdicts: connections are judged anew after them.
POLICY = frozenset({"members", "peer_blocks", "rules", "subjects", "endpoints"})


# Of these, entries go when nothing leads to them any more, but for members that leave a set which is in use.
RETIRED = ("members", "peer_blocks", "rules", "subjects")


@dataclass(frozen=True, slots=True)
class Step:
    """Entries of one map to write, or keys to remove. Never both. `retired`: nothing led to these keys any more."""

    map: str
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()
    retired: bool = False


class Tables:
    """`want` says what should be; `plan` gives the steps; `done` says that a step was carried out.

    What a program may still come to that has begun before the last write is not taken away with `want` but retired: it
    goes with the first plan after `expire` has been told that these programs have ended.
    """

    def __init__(self, have: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """`have`: map → entries, as read from the kernel."""
        self._have: dict[str, dict[bytes, bytes]] = {name: dict(have.get(name, {})) for name in ORDER}
        self._want: dict[str, dict[bytes, bytes]] = {name: {} for name in ORDER}
        self._dirty: dict[str, set[bytes]] = {name: set() for name in ORDER}
        self._to_come: dict[str, int] = dict.fromkeys(ORDER, 0)  # keys that are wanted and not there
        self.removals = 0  # entries removed so far
        self._retired: dict[str, dict[bytes, int]] = {name: {} for name in RETIRED}  # key → round
        self._round = 0  # of plans
        self._expired = -1

    def have(self, name: str) -> Mapping[bytes, bytes]:
        return self._have[name]

    def wanted(self, name: str) -> Mapping[bytes, bytes]:
        return self._want[name]

    def want(self, name: str, key: bytes, value: bytes | None) -> None:
        """Under `key` there is to be `value`, or nothing (None)."""
        known = key in self._want[name]
        if value is not None and name in self._retired:
            self._retired[name].pop(key, None)
        if value is None:
            self._want[name].pop(key, None)
        else:
            self._want[name][key] = value
        if key not in self._have[name]:
            self._to_come[name] += (value is not None) - known
        if self._have[name].get(key) == value:
            self._dirty[name].discard(key)
        else:
            self._dirty[name].add(key)

    def retire(self, name: str, key: bytes) -> None:
        """Nobody wants it, and once what is wanted now has been written nothing leads to it."""
        self.want(name, key, None)
        if key in self._have[name]:
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
        for name in ORDER:
            unwanted = {key for key in self._have[name] if key not in self._want[name]}
            self._dirty[name] |= unwanted
            if name in self._retired:
                self._retired[name].update(dict.fromkeys(unwanted, self._round))

    def occupied(self, name: str) -> int:
        """Entries that are there, and those that come before any of them goes."""
        return len(self._have[name]) + self._to_come[name]

    @property
    def pending(self) -> int:
        return sum(map(len, self._dirty.values()))

    def plan(self) -> list[Step]:
        """Steps from have to want, in the order in which they are to be done. What is retired later on waits for the
        next plan at least."""
        self._round += 1
        steps = []
        for name in ORDER:
            want = self._want[name]
            # What replaces an entry needs no room: first, as all that follows what finds none is left undone.
            due = sorted((key not in self._have[name], key) for key in self._dirty[name] if key in want)
            puts = tuple((key, want[key]) for _, key in due)
            if puts:
                steps.append(Step(name, puts=puts))
        for name in reversed(ORDER):
            retired = self._retired.get(name, {})
            unwanted = [key for key in sorted(self._dirty[name]) if key not in self._want[name]]
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
        have = self._have[step.map]
        return any(have.get(key, value) != value for key, value in step.puts) or any(k in have for k in step.deletes)

    def done(self, name: str, puts: Iterable[tuple[bytes, bytes]] = (), deletes: Iterable[bytes] = ()) -> None:
        """The kernel holds this now. What has been wanted otherwise meanwhile, withdrawals included, is due."""
        have, want, dirty = self._have[name], self._want[name], self._dirty[name]
        for key, value in puts:
            if key not in have and key in want:
                self._to_come[name] -= 1
            have[key] = value
            if want.get(key) == value:
                dirty.discard(key)
            else:
                dirty.add(key)
        for key in deletes:
            if name in self._retired:
                self._retired[name].pop(key, None)
            if have.pop(key, None) is not None:
                self.removals += 1
                self._to_come[name] += key in want
            if key in want:
                dirty.add(key)
            else:
                dirty.discard(key)
