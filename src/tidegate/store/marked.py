"""Following a prefix of which a part must never be taken for the whole.

A writer ends each complete write with a mark (records.Synced). Where a mark is missing, what lies there is a part: the
writer is not done, or the store is being emptied. Where the store was replaced by an older copy, its marks are old
as well: what it holds counts again once the writers, who notice it too, have marked it anew.
"""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from tidegate.records import RecordError, Synced, decode
from tidegate.runtime.logging import get_logger
from tidegate.store.protocol import Batch, Delete, Operation, Put, Snapshot, Store


@dataclass(frozen=True, slots=True)
class Incomplete:
    """What was given out last stays in force; these marks are waited for."""

    marks: tuple[str, ...]


class Marks:
    """Which marks stand, and whether they are news."""

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = tuple(keys)
        self._taken: dict[str, int] = {}  # mark → when it was made, in what was given out last
        self._stale: set[str] = set()  # must be made anew

    def replaced(self, values: Mapping[str, bytes], regressed: bool) -> None:
        """The store holds `values` now; `regressed`: it has lost something that it had."""
        before, self._stale = self._stale, set()
        for key in self._taken.keys() & values.keys():
            age = self._taken[key] - made(values[key])
            if age > 0 or (age == 0 and (regressed or key in before)):
                self._stale.add(key)

    def written(self, operations: Sequence[Operation]) -> None:
        self._stale -= {operation.key for operation in operations if isinstance(operation, Put)}

    def withdrawn(self, operations: Sequence[Operation]) -> bool:
        return any(isinstance(operation, Delete) and operation.key in self._keys for operation in operations)

    def missing(self, values: Mapping[str, bytes]) -> tuple[str, ...]:
        return tuple(key for key in self._keys if key not in values or key in self._stale)

    def take(self, values: Mapping[str, bytes]) -> None:
        """`values` is given out."""
        self._taken.update({key: made(values[key]) for key in self._keys if key in values})


def made(mark: bytes | None) -> int:
    """When the mark was made (Synced.loaded); 0 where there is none, or it cannot be read."""
    try:
        return decode(Synced, mark).loaded if mark is not None else 0
    except RecordError:
        return 0


async def follow_marked(
    store: Store, prefix: str, marks: Collection[str]
) -> AsyncGenerator[Snapshot | Batch | Incomplete, None]:
    """Like Store.follow, of complete states only; `marks` are keys below `prefix`. Incomplete says what is waited for.

    Every Snapshot given out is complete, and so is what the Batches after it make of it.
    """
    state = Marks(marks)
    while True:
        async with aclosing(_follow_until_withdrawn(store, prefix, state)) as changes:
            async for change in changes:
                yield change
                del change  # see below
        get_logger().warning("the store is being emptied; all stays as it is until it is complete again", prefix=prefix)


async def _follow_until_withdrawn(
    store: Store, prefix: str, marks: Marks
) -> AsyncGenerator[Snapshot | Batch | Incomplete, None]:
    waiting: dict[str, bytes] | None = None
    async with aclosing(store.follow(prefix)) as changes:
        async for change in changes:
            if isinstance(change, Snapshot):
                waiting = change.values
                marks.replaced(waiting, change.regressed)
            elif waiting is not None:
                _apply(waiting, change.operations)
                marks.written(change.operations)
            elif marks.withdrawn(change.operations):
                yield Incomplete(marks.missing({}))
                return
            else:
                marks.take({o.key: o.value for o in change.operations if isinstance(o, Put)})
                yield change
                continue
            missing = marks.missing(waiting)
            if missing:
                yield Incomplete(missing)
                continue
            marks.take(waiting)
            yield Snapshot(change.revision, waiting)
            waiting = None
            del change  # what is given out is not held until the next one comes


def _apply(values: dict[str, bytes], operations: Sequence[Operation]) -> None:
    for operation in operations:
        if isinstance(operation, Put):
            values[operation.key] = operation.value
        else:
            values.pop(operation.key, None)
