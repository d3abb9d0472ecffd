"""A mapping for the entries of maps of which there are as many as backends in the cluster. Pure."""

import struct
from collections.abc import ItemsView, Iterator, MutableMapping

_PLACE = struct.Struct("=I")
_KEY = 8
_PLACES: list[bytes] = []  # place → as it stands in keys


def places(count: int) -> list[bytes]:
    """The second halves of the keys of the places 0, 1, …: of so many, at least."""
    global _PLACES
    known = _PLACES
    if len(known) < count:
        # A new list, never one that grows: another thread may be at it.
        known = _PLACES = [_PLACE.pack(place) for place in range(max(count, 2 * len(known)))]
    return known


class Packed(MutableMapping[bytes, bytes]):
    """Behaves as a dict, in another order. Its keys are a number and a place, of 4 bytes each in the machine's order;
    its values have one size.

    The values of a number lie one behind the other, in a row for the places 0 … n-1: an entry takes the bytes of its
    value and no object. What fits into no row is kept beside, as in a dict.

    >>> packed = Packed()
    >>> packed.set_row(b"\\x01\\x00\\x00\\x00", b"onetwo", 3)
    >>> packed[b"\\x01\\x00\\x00\\x00" + places(2)[1]]
    b'two'
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | bytearray] = {}  # first half of the keys → values; bytearray once changed
        self.gaps: set[bytes] = set()  # keys within a row under which there is nothing
        self.rest: dict[bytes, bytes] = {}
        self._size = 0  # of a value
        self._count = 0

    def copy(self) -> "Packed":
        copied = Packed()
        copied.rows = {number: bytes(row) for number, row in self.rows.items()}
        copied.gaps, copied.rest = self.gaps.copy(), self.rest.copy()
        copied._size, copied._count = self._size, self._count
        return copied

    def _start(self, key: bytes) -> int | None:
        """Where in its row the entry stands; None: it is in none."""
        row = self.rows.get(key[:4])
        if row is None or len(key) != _KEY:
            return None
        start: int = _PLACE.unpack_from(key, 4)[0] * self._size
        return start if start < len(row) and key not in self.gaps else None

    def __getitem__(self, key: bytes) -> bytes:
        start = self._start(key)
        return self.rest[key] if start is None else bytes(self.rows[key[:4]][start : start + self._size])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and (self._start(key) is not None or key in self.rest)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return (key for key, _ in self.pairs())

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """What items() gives, without a look for each of the values."""
        size = self._size
        for number, row in self.rows.items():
            values = bytes(row)
            for start, place in zip(range(0, len(row), size), places(len(row) // size), strict=False):
                if number + place not in self.gaps:
                    yield number + place, values[start : start + size]
        yield from self.rest.items()

    def items(self) -> "_Items":
        return _Items(self)

    def __setitem__(self, key: bytes, value: bytes) -> None:
        start = self._start(key)
        if start is not None and len(value) == self._size:
            self._changing(key[:4])[start : start + self._size] = value
            return
        self.pop(key, None)
        self._count += 1
        if not self._enter(key, value):
            self.rest[key] = value

    def _enter(self, key: bytes, value: bytes) -> bool:
        """Puts what is nowhere into its row, if it fits there."""
        size = self._size = self._size or len(value)
        if len(key) != _KEY or len(value) != size or not size:
            return False
        start = _PLACE.unpack_from(key, 4)[0] * size
        if start > len(self.rows.get(key[:4], b"")):
            return False
        self.gaps.discard(key)
        row = self._changing(key[:4])
        row[start : start + size] = value
        while self.rest and len(following := self.rest.get(self._end(key[:4]), b"")) == size:
            del self.rest[self._end(key[:4])]
            row += following
        return True

    def _end(self, number: bytes) -> bytes:
        """The key of the first place behind the row."""
        return number + _PLACE.pack(len(self.rows[number]) // self._size)

    def _changing(self, number: bytes) -> bytearray:
        row = self.rows.get(number, b"")
        if isinstance(row, bytes):
            row = self.rows[number] = bytearray(row)
        return row

    def __delitem__(self, key: bytes) -> None:
        if self._start(key) is None:
            del self.rest[key]
            self._count -= 1
            return
        self._count -= 1
        self.gaps.add(key)
        number, size = key[:4], self._size
        row = self._changing(number)
        while row and (last := number + _PLACE.pack(len(row) // size - 1)) in self.gaps:
            self.gaps.discard(last)
            del row[-size:]
        if not row:
            del self.rows[number]

    def has_row(self, number: bytes) -> bool:
        """Whether there may be entries of the number."""
        return number in self.rows or any(key.startswith(number) for key in self.rest)

    def set_row(self, number: bytes, row: bytes, size: int) -> None:
        """Of a number that has no row: all of it at once, values of so many bytes. The very object is held."""
        self._size = size
        self.rows[number] = row
        self._count += len(row) // size

    def hand_over(self, entries: "Packed", to: "Packed") -> "Packed":
        """Rows that stand here as they do among `entries` go to `to`, where nothing is known of their number. Returns
        what of `entries` remains."""
        left = entries.copy()
        gapped = {key[:4] for key in (*self.gaps, *entries.gaps)}
        for number, row in entries.rows.items():
            if self.rows.get(number) == row and number not in gapped and not to.has_row(number):
                to.set_row(number, bytes(self.rows[number]), self._size)
                self.drop_row(number)
                left.drop_row(number)
        return left

    def drop_row(self, number: bytes) -> None:
        """Of one without gaps."""
        self._count -= len(self.rows.pop(number)) // self._size


class _Items(ItemsView[bytes, bytes]):
    _mapping: Packed

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.pairs()
