"""A store in memory: the same contract as etcd, and the faults of etcd on demand. For tests."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from tidegate.store.protocol import (
    MAX_OPERATIONS,
    Batch,
    Delete,
    Fence,
    FencedError,
    Operation,
    Put,
    Snapshot,
    StoreError,
    UnavailableError,
)


class MemoryTerm:
    def __init__(self, store: "MemoryStore", fence: Fence) -> None:
        self.fence = fence
        self._store = store

    async def lost(self) -> str:
        while self._store.holds(self.fence):
            await self._store.changed()
        return "the leader key is gone"

    async def resign(self) -> None:
        if self._store.holds(self.fence):
            self._store.put_now([Delete(self.fence.key)])


class MemoryStore:
    """Keys with a history. `available`, `cut`, `wipe` and `restore` do what happens to a real one."""

    def __init__(self) -> None:
        self.available = True
        self.transactions = 0
        self.operations = 0
        self._values: dict[str, tuple[bytes, int]] = {}  # value, create revision
        self._history: list[Batch] = []
        self._revision = 1
        self._incarnation = 0
        self._change = asyncio.Event()

    async def snapshot(self, prefix: str) -> Snapshot:
        self._check()
        values = {key: value for key, (value, _) in sorted(self._values.items()) if key.startswith(prefix)}
        return Snapshot(self._revision, values)

    async def follow(self, prefix: str) -> AsyncGenerator[Snapshot | Batch, None]:
        incarnation, position = -1, 0
        while True:
            if not self.available:
                await self.changed()
            elif incarnation != self._incarnation:
                snapshot = await self.snapshot(prefix)
                incarnation, position = self._incarnation, snapshot.revision
                yield snapshot
            elif position == self._revision:
                await self.changed()
            else:
                batch = next(batch for batch in self._history if batch.revision > position)
                position = batch.revision
                operations = [operation for operation in batch.operations if operation.key.startswith(prefix)]
                if operations:
                    yield Batch(batch.revision, operations)

    async def transact(self, operations: Sequence[Operation], fence: Fence | None = None) -> int:
        self._check()
        if len(operations) > MAX_OPERATIONS:
            raise StoreError(f"{len(operations)} operations in one transaction; the limit is {MAX_OPERATIONS}")
        if len({operation.key for operation in operations}) != len(operations):
            raise StoreError("a key occurs twice in one transaction")
        if fence and not self.holds(fence):
            raise FencedError(f"{fence.key} is held by another")
        await asyncio.sleep(0)
        self.transactions += 1
        self.operations += len(operations)
        return self.put_now(operations)

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
        for operation in operations:
            if isinstance(operation, Put):
                created = self._values.get(operation.key, (b"", self._revision))[1]
                self._values[operation.key] = (operation.value, created)
            else:
                self._values.pop(operation.key, None)
        self._history.append(Batch(self._revision, list(operations)))
        self._wake()
        return self._revision

    def holds(self, fence: Fence) -> bool:
        return self._values.get(fence.key, (b"", 0))[1] == fence.create_revision

    def values(self, prefix: str = "") -> dict[str, bytes]:
        return {key: value for key, (value, _) in self._values.items() if key.startswith(prefix)}

    def cut(self) -> None:
        """All followers lose their place (as after a compaction)."""
        self._incarnation += 1
        self._wake()

    def wipe(self) -> None:
        self.restore({})

    def restore(self, values: dict[str, bytes]) -> None:
        self._values = {key: (value, 1) for key, value in values.items()}
        self._history.clear()
        self._revision = 1
        self.cut()

    def set_available(self, available: bool) -> None:
        self.available = available
        self._wake()

    async def changed(self) -> None:
        await self._change.wait()

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _check(self) -> None:
        if not self.available:
            raise UnavailableError("the store in memory is switched off")
