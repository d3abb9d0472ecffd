"""What the services need of a store. etcd is one (store.etcd), a dictionary in memory another (store.memory)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
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
class Snapshot:
    """All of a prefix at one revision. What a reader knew before and does not find here is gone."""

    revision: int
    values: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Batch:
    """All changes of one revision under the prefix, whole: never a part of a transaction."""

    revision: int
    operations: Sequence[Operation]


class StoreError(Exception):
    """The store did not do it. The text says what, where, and what to do."""


class FencedError(StoreError):
    """The writer is no longer the leader; nothing of the transaction was applied."""


class UnavailableError(StoreError):
    """The store cannot be reached, or did not answer in time. Whether a write was applied is not known."""


class Store(Protocol):
    async def snapshot(self, prefix: str) -> Snapshot:
        """The prefix at one revision, read in pages. Raises UnavailableError."""
        ...

    def follow(self, prefix: str) -> AsyncIterator[Snapshot | Batch]:
        """The prefix from now on: a Snapshot, then Batches in order, and a Snapshot anew whenever continuity is lost.

        Never ends and never raises for trouble of the store (unreachable, compacted, wiped, restored, member
        replaced): it retries with jitter and yields a fresh Snapshot where it could not resume. No event is lost or
        given twice between two Snapshots.
        """
        ...

    async def transact(self, operations: Sequence[Operation], fence: Fence | None = None) -> int:
        """Applies all operations or none, at most MAX_OPERATIONS of them; returns the revision.

        Retries only what is safe to repeat (puts and deletes are). Raises FencedError, UnavailableError.
        """
        ...

    async def close(self) -> None: ...
