"""What etcd says, read from the agent's first moment on: also while the programs are still being loaded."""

import asyncio
from collections.abc import AsyncGenerator, Collection

from tidegate.records import Keyspace
from tidegate.runtime.logging import get_logger
from tidegate.store import Batch, Incomplete, Snapshot, Store, follow_marked

WRITERS = ("endpoint-sync", "policy-sync")

log = get_logger()

Change = Snapshot | Batch | Incomplete


class Reading:
    """The records of one cluster, complete states only. `begin` before `changes`, where there is time for it."""

    def __init__(self, store: Store, keys: Keyspace) -> None:
        self._store = store
        self._writers = {keys.synced(writer): writer for writer in WRITERS}
        self._changes = follow_marked(store, keys.prefix, self._writers)
        self._first: asyncio.Task[Change] | None = None

    def begin(self) -> None:
        """Reads the first snapshot, which then waits for who wants the changes. Needs a running event loop."""
        self._first = asyncio.create_task(self._next())

    async def changes(self) -> AsyncGenerator[Change, None]:
        """What follow_marked gives; never ends. Nothing of it is held here once it has been given."""
        if self._first is not None:
            first, self._first = self._first, None
            yield await first
            del first
        while True:
            yield await self._next()

    async def _next(self) -> Change:
        change = await anext(self._changes)
        if isinstance(change, Snapshot):
            log.info("snapshot read", revision=change.revision, keys=len(change.values))
        return change

    def missing(self, marks: Collection[str]) -> str:
        """Whose marks these are, for people."""
        return ", ".join(self._writers[mark] for mark in marks)

    @property
    def trouble(self) -> str | None:
        """Why etcd cannot be followed at the moment, for people; None while it can."""
        return self._store.trouble

    async def close(self) -> None:
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._changes.aclose()
