"""Bringing a store to a desired state by writing the difference, in an order that readers can rely on."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from tidegate.store.protocol import MAX_OPERATIONS, Delete, Fence, Operation, Put, Store, UnavailableError

# etcd refuses requests over 1.5 MiB (--max-request-bytes).
MAX_BYTES = 1_000_000

Rank = Callable[[str], int]

# Stands for the value of a key after a transaction of unknown fate: equal to no record, so the key stays due.
_UNKNOWN = b"\0unknown"


class Writer:
    """What a service wants under its keys, and what the store has there.

    `rank` orders keys: puts go out in ascending rank, then deletes in descending rank, so that a reader that applies
    revision by revision never meets a reference to something that is not there yet, or any more.
    """

    def __init__(self, store: Store, prefixes: Iterable[str], rank: Rank) -> None:
        self._store = store
        self._prefixes = tuple(prefixes)
        self._rank = rank
        self._stored: dict[str, bytes] = {}
        self._wanted: dict[str, bytes] = {}
        self._dirty: set[str] = set()

    @property
    def stored(self) -> Mapping[str, bytes]:
        """What the store holds, as far as is known: from `load`, and from what was written since."""
        return self._stored

    @property
    def wanted(self) -> Mapping[str, bytes]:
        return self._wanted

    async def load(self) -> None:
        """Reads what the store holds under the prefixes; every difference to what is wanted is due again."""
        stored: dict[str, bytes] = {}
        for prefix in self._prefixes:
            stored.update((await self._store.snapshot(prefix)).values)
        self._stored = stored
        self._dirty = {key for key in stored.keys() | self._wanted.keys() if stored.get(key) != self._wanted.get(key)}

    def want(self, key: str, value: bytes | None) -> None:
        """`value` is to lie under `key`, or nothing (None)."""
        if value is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = value
        if self._stored.get(key) == value:
            self._dirty.discard(key)
        else:
            self._dirty.add(key)

    @property
    def pending(self) -> int:
        """Number of keys that differ."""
        return len(self._dirty)

    async def flush(self, fence: Fence | None) -> int:
        """Writes the difference; returns how many keys it wrote. Raises FencedError, UnavailableError.

        After an error the rest is still due; a transaction whose fate is unknown is repeated as a whole.
        """
        written = 0
        for operations in self._transactions():
            try:
                await self._store.transact(operations, fence)
            except UnavailableError:
                for operation in operations:
                    self._stored[operation.key] = _UNKNOWN
                raise
            for operation in operations:
                self._settle(operation)
            written += len(operations)
        return written

    def _settle(self, operation: Operation) -> None:
        value = operation.value if isinstance(operation, Put) else None
        if value is None:
            self._stored.pop(operation.key, None)
        else:
            self._stored[operation.key] = value
        # It may have been wanted otherwise while the transaction was under way: then it stays due.
        if self._wanted.get(operation.key) == value:
            self._dirty.discard(operation.key)

    def _transactions(self) -> Iterator[list[Operation]]:
        puts = sorted((key for key in self._dirty if key in self._wanted), key=lambda key: (self._rank(key), key))
        deletes = sorted(
            (key for key in self._dirty if key not in self._wanted), key=lambda key: (-self._rank(key), key)
        )
        operations: list[Operation] = [Put(key, self._wanted[key]) for key in puts]
        operations += [Delete(key) for key in deletes]
        chunk: list[Operation] = []
        size = 0
        for operation in operations:
            cost = len(operation.key) + (len(operation.value) if isinstance(operation, Put) else 0)
            if chunk and (len(chunk) == MAX_OPERATIONS or size + cost > MAX_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(operation)
            size += cost
        if chunk:
            yield chunk
