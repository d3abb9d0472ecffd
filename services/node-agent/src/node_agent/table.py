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


@dataclass(frozen=True, slots=True)
class Step:
    """Entries of one map to write, or keys to remove. Never both."""

    map: str
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()


class Tables:
    """`want` says what should be; `plan` gives the steps; `done` says that a step was carried out."""

    def __init__(self, have: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """`have`: map → entries, as read from the kernel."""
        self._have: dict[str, dict[bytes, bytes]] = {name: dict(have.get(name, {})) for name in ORDER}
        self._want: dict[str, dict[bytes, bytes]] = {name: {} for name in ORDER}
        self._dirty: dict[str, set[bytes]] = {name: set() for name in ORDER}
        self._to_come: dict[str, int] = dict.fromkeys(ORDER, 0)  # keys that are wanted and not there
        self.removals = 0  # entries removed so far

    def have(self, name: str) -> Mapping[bytes, bytes]:
        return self._have[name]

    def wanted(self, name: str) -> Mapping[bytes, bytes]:
        return self._want[name]

    def want(self, name: str, key: bytes, value: bytes | None) -> None:
        """Under `key` there is to be `value`, or nothing (None)."""
        known = key in self._want[name]
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

    def adopt(self) -> None:
        """From now on everything that nobody wants is to go: called once all that is known has been wanted."""
        for name in ORDER:
            self._dirty[name] |= {key for key in self._have[name] if key not in self._want[name]}

    def occupied(self, name: str) -> int:
        """Entries that are there, and those that come before any of them goes."""
        return len(self._have[name]) + self._to_come[name]

    @property
    def pending(self) -> int:
        return sum(map(len, self._dirty.values()))

    def plan(self) -> list[Step]:
        """Steps from have to want, in the order in which they are to be done."""
        steps = []
        for name in ORDER:
            want = self._want[name]
            # What replaces an entry needs no room: first, as all that follows what finds none is left undone.
            due = sorted((key not in self._have[name], key) for key in self._dirty[name] if key in want)
            puts = tuple((key, want[key]) for _, key in due)
            if puts:
                steps.append(Step(name, puts=puts))
        for name in reversed(ORDER):
            deletes = tuple(key for key in sorted(self._dirty[name]) if key not in self._want[name])
            if deletes:
                steps.append(Step(name, deletes=deletes))
        return steps

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
            if have.pop(key, None) is not None:
                self.removals += 1
                self._to_come[name] += key in want
            if key in want:
                dirty.add(key)
            else:
                dirty.discard(key)
