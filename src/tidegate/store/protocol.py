"""What the services need of a store. etcd is one (store.etcd), a dictionary in memory another (store.memory)."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec


# Structs, because a watch makes one of these for each event: a frozen dataclass costs five times as much.
class Put(msgspec.Struct, frozen=True, gc=False):
    key: str
    value: bytes


class Delete(msgspec.Struct, frozen=True, gc=False):
    key: str


Operation = Put | Delete

# etcd's default limit of operations in one transaction (--max-txn-ops).
MAX_OPERATIONS = 128


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of leadership: a transaction holds only while `key` exists with this create revision."""

    key: str
    create_revision: int


@dataclass(frozen=True, slots=True)
class Guard:
    """Makes the transactions of one writer a chain: each holds only if the one before it was the last.

    A transaction with a guard compares that `key` was last written at `revision` (0: never) and writes `token` there.
    So a transaction that was delayed on its way cannot overwrite a later one, one whose answer was lost is not applied
    twice, and a store that was restored from an older copy is noticed. Tokens must differ from one transaction to the
    next; the revision that `transact` returns belongs into the next guard.
    """

    key: str
    revision: int
    token: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of a prefix at one revision. What a reader knew before and does not find here is gone.

    `regressed`: the store has lost something that a follower saw in it: it was wiped, or replaced by an older copy.
    """

    revision: int
    values: dict[str, bytes]
    regressed: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """All changes of one revision under the prefix, whole: never a part of a transaction."""

    revision: int
    operations: Sequence[Operation]


def value_of(change: Snapshot | Batch, key: str) -> bytes | None:
    """What lies under `key` after the change, for one who follows that key alone; None: nothing."""
    if isinstance(change, Snapshot):
        return change.values.get(key)
    for operation in reversed(change.operations):
        if operation.key == key:
            return operation.value if isinstance(operation, Put) else None
    return None


class StoreError(Exception):
    """The store did not do it. The text says what, where, and what to do."""


class FencedError(StoreError):
    """The writer is no longer the leader; nothing of the transaction was applied."""


class StaleError(FencedError):
    """The store is not as this writer left it (a Guard did not hold); nothing was applied. Read it anew."""


class UnavailableError(StoreError):
    """The store cannot be reached, or did not answer in time. Whether a write was applied is not known."""


class Store(Protocol):
    async def snapshot(self, prefix: str) -> Snapshot:
        """The prefix at one revision, read in pages. Raises UnavailableError."""
        ...

    def follow(self, prefix: str) -> AsyncGenerator[Snapshot | Batch, None]:
        """The prefix from now on: a Snapshot, then Batches in order, and a Snapshot anew whenever continuity is lost.

        Never ends and never raises for trouble of the store (unreachable, compacted, wiped, restored, member
        replaced): it retries with jitter and yields a fresh Snapshot where it could not resume. No event is lost or
        given twice between two Snapshots. Close it (contextlib.aclosing) when you leave it early.
        """
        ...

    async def transact(
        self, operations: Sequence[Operation], fence: Fence | None = None, guard: Guard | None = None
    ) -> int:
        """Applies all operations or none, each key at most once; returns the revision.

        At most MAX_OPERATIONS of them, one less with a guard. Retries a few times; an UnavailableError may be repeated
        by the caller: with the same guard, what was applied already is recognised, not applied anew. Raises
        FencedError, StaleError, UnavailableError, and StoreError for what no repetition can help.
        """
        ...

    async def campaign(self, key: str, holder: str, ttl: int) -> "Term":
        """Waits until `key` could be created for `holder`; the term ends when its lease cannot be kept alive.

        `ttl` in seconds: how long after the death of the holder another can follow. Never raises for trouble of the
        store; cancel it to give up.
        """
        ...

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be followed at the moment, for people; None while it can."""
        ...

    async def close(self) -> None: ...


class Term(Protocol):
    """A time of leadership."""

    @property
    def fence(self) -> Fence: ...

    async def lost(self) -> str:
        """Returns, with the reason, once leadership is over: before another can have it, by the local clock.

        It is what keeps the lease alive: without it the term ends by itself.
        """
        ...

    async def resign(self) -> None:
        """Gives the key back at once. Does nothing where the store cannot be reached: then the lease runs out."""
        ...
