"""A store in memory: the same contract as etcd, and the faults of etcd on demand. For tests."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from tidegate.store.protocol import (
    MAX_OPERATIONS,
    Batch,
    Delete,
    Fence,
    FencedError,
    Guard,
    Operation,
    Put,
    Snapshot,
    StaleError,
    StoreError,
    UnavailableError,
)


class Item(NamedTuple):
    value: bytes
    created: int  # revision
    modified: int  # revision


class Copy(NamedTuple):
    """All that a store holds, as `MemoryStore.copy` takes it and `restore` puts it back."""

    values: dict[str, Item]
    revision: int


class MemoryTerm:
    """See store.protocol.Term. It has no clock: it ends when its key goes, or by `expire`."""

    def __init__(self, store: "MemoryStore", fence: Fence) -> None:
        self.fence = fence
        self._store = store

    async def lost(self) -> str:
        while self._store.holds(self.fence):
            await self._store.changed()
        return "the leader key is gone"

    async def resign(self) -> None:
        self._store.expire(self.fence.key, self.fence.create_revision)


class MemoryStore:
    """Keys with a history. What happens to a real store is done to it by `cut`, `compact`, `wipe`, `restore`,
    `set_available`, `lose_answer` and `expire`."""

    def __init__(self) -> None:
        self.available = True
        self.transactions = 0  # applied ones
        self.operations = 0  # in them
        self.relists = 0  # snapshots that followers were given after their first
        self._values: dict[str, Item] = {}
        self._history: list[Batch] = []
        self._revision = 1
        self._compacted = 0
        self._incarnation = 0
        self._cuts = 0
        self._lost_answers: deque[bool] = deque()
        self._change = asyncio.Event()

    @property
    def trouble(self) -> str | None:
        return None if self.available else "the store in memory is switched off"

    @property
    def revision(self) -> int:
        return self._revision

    async def snapshot(self, prefix: str) -> Snapshot:
        self._check()
        return Snapshot(self._revision, self.values(prefix))

    async def follow(self, prefix: str) -> AsyncGenerator[Snapshot | Batch, None]:
        incarnation, position, cuts = -1, 0, self._cuts
        while True:
            if not self.available:
                await self.changed()
                continue
            if incarnation == -1 or incarnation != self._incarnation or position < self._compacted - 1:
                self.relists += incarnation != -1
                regressed = incarnation not in (-1, self._incarnation)
                incarnation, position = self._incarnation, self._revision
                yield Snapshot(position, self.values(prefix), regressed)
                continue
            # A cut stream goes on at its position; in between, other tasks have their turn, as with a real one.
            if cuts != self._cuts:
                cuts = self._cuts
                await asyncio.sleep(0)
                continue
            if position == self._revision:
                await self.changed()
                continue
            # Revisions are consecutive, and a follower behind the first one was given a snapshot above.
            batch = self._history[position + 1 - self._history[0].revision]
            position = batch.revision
            operations = [operation for operation in batch.operations if operation.key.startswith(prefix)]
            if operations:
                yield Batch(batch.revision, operations)

    async def transact(
        self, operations: Sequence[Operation], fence: Fence | None = None, guard: Guard | None = None
    ) -> int:
        await asyncio.sleep(0)
        self._check()
        if len(operations) + (guard is not None) > MAX_OPERATIONS:
            raise StoreError(f"{len(operations)} operations in one transaction; the limit is {MAX_OPERATIONS}")
        if len({operation.key for operation in operations}) != len(operations):
            raise StoreError("a key occurs twice in one transaction")
        lost_answer = self._lost_answers.popleft() if self._lost_answers else None
        if lost_answer is False:
            raise UnavailableError("the transaction was lost on its way")
        revision = self._apply(operations, fence, guard)
        if lost_answer is True:
            raise UnavailableError("the answer to the transaction was lost")
        return revision

    def _apply(self, operations: Sequence[Operation], fence: Fence | None, guard: Guard | None) -> int:
        guarded = self._values.get(guard.key) if guard is not None else None
        fits = guard is None or (guarded.modified if guarded else 0) == guard.revision
        if fits and (fence is None or self.holds(fence)):
            self.transactions += 1
            self.operations += len(operations)
            return self.put_now([*operations, Put(guard.key, guard.token)] if guard else operations)
        if guard is not None and guarded is not None and guarded.value == guard.token:
            return guarded.modified
        if fence is not None and not self.holds(fence):
            raise FencedError(f"{fence.key}: this process is not the leader any more")
        raise StaleError("the store is not as this writer left it")

    async def campaign(self, key: str, holder: str, ttl: int) -> MemoryTerm:
        del ttl
        while key in self._values or not self.available:
            await self.changed()
        revision = self.put_now([Put(key, holder.encode())])
        return MemoryTerm(self, Fence(key, revision))

    async def close(self) -> None:
        return

    def put_now(self, operations: Sequence[Operation]) -> int:
        """Like `transact`, at once and past every fault."""
        self._revision += 1
        effective: list[Operation] = []
        for operation in operations:
            known = self._values.get(operation.key)
            if isinstance(operation, Put):
                created = known.created if known else self._revision
                self._values[operation.key] = Item(operation.value, created, self._revision)
            elif known is None:
                continue  # etcd tells nobody of the removal of what was not there
            else:
                del self._values[operation.key]
            effective.append(operation)
        if not effective:
            self._revision -= 1
            return self._revision
        self._history.append(Batch(self._revision, effective))
        self._wake()
        return self._revision

    def holds(self, fence: Fence) -> bool:
        item = self._values.get(fence.key)
        return item is not None and item.created == fence.create_revision

    def values(self, prefix: str = "") -> dict[str, bytes]:
        """What lies under the prefix, in the order of the keys."""
        return {key: item.value for key, item in sorted(self._values.items()) if key.startswith(prefix)}

    def cut(self) -> None:
        """All streams break; followers go on where they were, unless that was compacted."""
        self._cuts += 1
        self._wake()

    def compact(self) -> None:
        """Forgets the history: followers that are behind, or are cut while behind, must read everything again."""
        self._compacted = self._revision + 1
        self._history.clear()
        self._wake()

    def wipe(self) -> None:
        """As if its data directory had been removed."""
        self.restore(Copy({}, 1))

    def copy(self) -> Copy:
        return Copy(dict(self._values), self._revision)

    def restore(self, copy: Copy) -> None:
        """As if its data directory had been replaced by an older copy."""
        self._values, self._revision = dict(copy.values), copy.revision
        self._history.clear()
        self._compacted = 0
        self._incarnation += 1
        self._wake()

    def set_available(self, available: bool) -> None:
        self.available = available
        self._wake()

    def lose_answer(self, applied: bool) -> None:
        """The next transaction raises UnavailableError, applied or not. May be called several times in advance."""
        self._lost_answers.append(applied)

    def expire(self, key: str, created: int | None = None) -> None:
        """The lease of a leader key runs out (with `created`: only if the key is still that one)."""
        item = self._values.get(key)
        if item is not None and created in (None, item.created):
            self.put_now([Delete(key)])

    async def changed(self) -> None:
        await self._change.wait()

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _check(self) -> None:
        if not self.available:
            raise UnavailableError("the store in memory is switched off")
