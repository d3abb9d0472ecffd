"""Selections of backends and the frontends that lead to them, as entries of maps: who wants what. Pure."""

from collections.abc import Iterable, Iterator, Set

from node_agent.entries import Entries
from node_agent.frontends import Frontend
from node_agent.loader.carry import cut
from node_agent.ring import Address, Ring
from node_agent.table import Tables

Owner = tuple[str, ...]

FEW = 8  # backends that are looked for one by one, and not in a look at all slots


class Slots:
    """The backends of one service port, in the slots 0 … n-1 without a gap: as values of the map.

    >>> slots = Slots([b"a", b"b", b"c"])
    >>> sorted(slots.exchange({b"a"}, set()).items())
    [(0, b'c'), (2, None)]
    """

    __slots__ = ("_packed", "size")

    def __init__(self, values: Iterable[bytes] = ()) -> None:
        self.size = 0  # of a value
        # One behind the other, as there are as many as backends in the cluster; bytearray once changed.
        self._packed: bytes | bytearray = b""
        self._append(list(values))

    def __len__(self) -> int:
        return len(self._packed) // self.size if self.size else 0

    @property
    def packed(self) -> bytes:
        return bytes(self._packed)

    @property
    def values(self) -> list[bytes]:
        return cut(self.packed, self.size) if self._packed else []

    def _append(self, values: list[bytes]) -> None:
        if values:
            self.size = len(values[0])
            self._packed += b"".join(values)

    def _changing(self) -> bytearray:
        if isinstance(self._packed, bytes):
            self._packed = bytearray(self._packed)
        return self._packed

    def find(self, values: Set[bytes]) -> list[int]:
        """In which slots these stand, of those that do."""
        if len(values) > FEW:
            return [slot for slot, value in enumerate(self.values) if value in values]
        return sorted(slot for value in values for slot in self._places(value))

    def _places(self, value: bytes) -> Iterator[int]:
        at = self._packed.find(value)
        while at >= 0:
            if at % self.size == 0:
                yield at // self.size
            at = self._packed.find(value, at + 1)

    def exchange(self, gone: set[bytes], come: set[bytes]) -> dict[int, bytes | None]:
        """Which go, of those that are there, and which others come. Changes as few slots as possible; returns what each
        changed slot holds now (None: nothing).

        A removed backend's slot is taken by a new one, else by the last.
        """
        new = sorted(come)
        changed: dict[int, bytes | None] = {}
        for slot in reversed(self.find(gone)):
            if new:
                changed[slot] = self._put(slot, new.pop())
                continue
            last = bytes(self._packed[-self.size :])
            del self._changing()[-self.size :]
            changed[len(self)] = None
            if slot < len(self):
                changed[slot] = self._put(slot, last)
        changed.update(enumerate(new, len(self)))
        self._append(new)
        return changed

    def _put(self, slot: int, value: bytes) -> bytes:
        self._changing()[slot * self.size : (slot + 1) * self.size] = value
        return value


class SelectionTable:
    """The `services`, `backends`, `slots` and `ring` maps, by number of the selection."""

    def __init__(self, tables: Tables, entries: Entries) -> None:
        self._tables = tables
        self._entries = entries
        self._slots: dict[int, Slots] = {}
        self._affine: set[int] = set()  # selections whose backends' slots can be looked up
        self._rings: dict[int, Ring] = {}
        self._stored = self._read()

    def _read(self) -> dict[int, list[bytes]]:
        """The slots that the maps hold, so that a restart moves no backend. One that stands in two of them, as while
        another one's place was being filled, is wanted in the first."""
        found: dict[int, dict[int, bytes]] = {}
        for key, value in self._tables.have("backends").items():
            service, slot = self._entries.backend_slot(key)
            found.setdefault(service, {})[slot] = value
        return {
            service: list(dict.fromkeys(slots[i] for i in range(len(slots))))
            for service, slots in found.items()
            if set(slots) == set(range(len(slots)))
        }

    def fill(
        self, number: int, wanted: set[Address], dropping: bool = False, affinity: int = 0, consistent: bool = False
    ) -> None:
        """The selection has these backends. `dropping`: without any its clients get no answer. `affinity`: seconds.

        `consistent`: clients outside the cluster get them by consistent hashing.
        """
        slots = self._slots.get(number)
        if slots is None:
            slots = self._slots[number] = Slots(self._stored.pop(number, ()))
            self._place(number, enumerate(slots.values))
        values = {self._entries.backend(*address) for address in wanted}
        held = set(slots.values)
        self._exchange(number, held - values, values - held, dropping, affinity, consistent)

    def exchange(
        self, number: int, gone: set[Address], come: set[Address], affinity: int = 0, consistent: bool = False
    ) -> None:
        """As `fill`, where the selection has backends, and will have: which of them go, and which others come. Costs
        what changes, but for a pass over the slots."""
        backend = self._entries.backend
        out, new = {backend(*address) for address in gone}, {backend(*address) for address in come}
        self._exchange(number, out, new, False, affinity, consistent)

    def count(self, number: int) -> int:
        """Backends of the selection."""
        slots = self._slots.get(number)
        return len(slots) if slots else 0

    def has(self, number: int, backends: set[Address]) -> int:
        """How many of these the selection has."""
        slots = self._slots.get(number)
        return len(slots.find({self._entries.backend(*address) for address in backends})) if slots else 0

    def _exchange(
        self, number: int, gone: set[bytes], come: set[bytes], dropping: bool, affinity: int, consistent: bool
    ) -> None:
        slots = self._slots[number]
        was_empty = not len(slots)
        changed = slots.exchange(gone, come)
        if was_empty and changed:
            self._tables.want_row("backends", self._entries.service_key(number), slots.packed, slots.size)
        else:
            self._place(number, changed.items())
        self._find_slots(number, slots, changed, gone, affinity > 0)
        self._turn(number, slots, changed, gone, come, consistent and len(slots) > 1)
        ring = self._rings.get(number)
        service = self._entries.service(len(slots), dropping, affinity, ring.size if ring else 0)
        self._tables.want("services", self._entries.service_key(number), service)

    def empty(self, number: int) -> None:
        """There is no such selection any more. Another Service with the same number may have ended it already."""
        slots = self._slots.pop(number, None)
        if slots is None:
            return
        self._find_slots(number, slots, {}, set(), False)
        self._turn(number, slots, {}, set(), set(), False)
        self._place(number, ((index, None) for index in reversed(range(len(slots)))))
        self._tables.want("services", self._entries.service_key(number), None)

    def _find_slots(
        self, number: int, slots: Slots, changed: dict[int, bytes | None], gone: set[bytes], wanted: bool
    ) -> None:
        """Where a backend stands is looked up for clients that stay with theirs, and only then."""
        if not wanted:
            if number in self._affine:
                self._affine.discard(number)
                self._forget_slots(number, gone.union(slots.values))
            return
        placed = changed if number in self._affine else dict(enumerate(slots.values))
        self._affine.add(number)
        self._forget_slots(number, gone)
        for index, value in placed.items():
            if value is not None:
                address = self._entries.backend_address(value)
                self._tables.want("slots", *self._entries.slot(number, *address, index))

    def _forget_slots(self, number: int, values: Iterable[bytes]) -> None:
        for address in map(self._entries.backend_address, values):
            self._tables.want("slots", self._entries.slot(number, *address, 0)[0], None)

    def _turn(
        self,
        number: int,
        slots: Slots,
        changed: dict[int, bytes | None],
        gone: set[bytes],
        come: set[bytes],
        wanted: bool,
    ) -> None:
        """The selection's ring, where it is to have one: who stands there, and in which slots those are."""
        address = self._entries.backend_address
        ring = self._rings.get(number)
        if wanted and ring is not None:
            moved = ring.exchange(set(map(address, gone)), set(map(address, come)))
        elif wanted:
            ring = self._rings[number] = Ring()
            moved = ring.replace(set(map(address, slots.values)))
        elif ring is not None:
            del self._rings[number]
            moved = ring.replace(set())
        else:
            return
        moved |= ring.find(address(value) for value in changed.values() if value is not None)
        at = {value: index for index, value in enumerate(slots.values)} if moved else {}
        for position, backend in moved.items():
            entry = self._entries.ring(number, position, at[self._entries.backend(*backend)] if backend else 0)
            self._tables.want("ring", entry[0], entry[1] if backend else None)

    def _place(self, number: int, placed: Iterable[tuple[int, bytes | None]]) -> None:
        for index, value in placed:
            self._tables.want("backends", self._entries.backend_key(number, index), value)


class FrontendTable:
    """The `frontends` map. Where several want the same frontend the latest has it, and after it the one before."""

    def __init__(self, tables: Tables, entries: Entries) -> None:
        self._tables = tables
        self._entries = entries
        self._wanted: dict[Owner, dict[bytes, bytes]] = {}
        self._claims: dict[bytes, tuple[Owner, ...]] = {}  # frontend → who wants it, the latest last

    def set(self, owner: Owner, frontends: Iterable[Frontend]) -> None:
        """These are the owner's frontends now."""
        self._set(owner, dict(map(self._entry, frontends)))

    def _set(self, owner: Owner, wanted: dict[bytes, bytes]) -> None:
        before = self._wanted.pop(owner, {})
        if wanted:
            self._wanted[owner] = wanted
        alone = (owner,)
        for frontend in before.keys() - wanted.keys():
            self._claims[frontend] = tuple(each for each in self._claims[frontend] if each != owner)
            if not self._claims[frontend]:
                del self._claims[frontend]
            self._publish(frontend)
        for frontend, value in wanted.items():
            if before.get(frontend) != value:
                claims = self._claims.setdefault(frontend, alone)
                if owner not in claims:
                    self._claims[frontend] = (*claims, owner)
                self._publish(frontend)

    def keep(self, owner: Owner, raw: dict[bytes, bytes]) -> None:
        """These entries are the owner's, as they were found in the map."""
        self._set(owner, raw)

    def _publish(self, frontend: bytes) -> None:
        claims = self._claims.get(frontend)
        self._tables.want("frontends", frontend, self._wanted[claims[-1]][frontend] if claims else None)

    def _entry(self, frontend: Frontend) -> tuple[bytes, bytes]:
        key = self._entries.frontend_key(frontend.address, frontend.port, frontend.protocol)
        value = self._entries.frontend(frontend.service, frontend.outside, frontend.open, frontend.ranges)
        return key, value
