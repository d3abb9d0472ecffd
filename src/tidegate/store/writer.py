"""Bringing a store to a desired state by writing the difference, in an order that readers can rely on."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping

from tidegate.records import LastWrite, encode
from tidegate.store.protocol import MAX_OPERATIONS, Delete, Fence, Guard, Operation, Put, Store

# etcd refuses requests over 1.5 MiB (--max-request-bytes).
MAX_BYTES = 1_000_000
CHUNK = MAX_OPERATIONS - 1  # the guard is an operation, too

Rank = Callable[[str], int]


class Writer:
    """What a service wants under its keys, and what the store has there.

    `rank` orders keys: puts go out in ascending rank, then deletes in descending rank, so that a reader that applies
    revision by revision never meets a reference to something that is not there yet, or any more.
    """

    def __init__(self, store: Store, prefixes: Iterable[str], rank: Rank, guard_key: str | None = None) -> None:
        """`guard_key` is written with each transaction, which holds only if no other was last to write it."""
        self._store = store
        self._prefixes = tuple(prefixes)
        self._rank = rank
        self._wanted: dict[str, bytes] = {}
        # Where the store holds something else than what is wanted: what (None: nothing). All else is held once.
        self._due: dict[str, bytes | None] = {}
        self._guard_key = guard_key
        self._last: int | None = None  # revision of the guard's last write
        self._sequence = 0
        self._underway: tuple[list[Operation], Guard | None] | None = None
        self._doubtful = False  # a load has begun and not ended: what the store holds is not known

    @property
    def stored(self) -> Mapping[str, bytes]:
        """What the store holds, as far as is known: from `load`, and from what was written since."""
        return _Stored(self._wanted, self._due)

    @property
    def wanted(self) -> Mapping[str, bytes]:
        return self._wanted

    async def load(self, fence: Fence | None = None) -> None:
        """Reads what the store holds under the prefixes; every difference to what is wanted is due again.

        With a fence, the chain of guarded transactions begins here: first, so that nothing can come in between.
        Raises FencedError, UnavailableError.
        """
        self._underway, self._last, self._doubtful = None, None, True
        if fence is not None:
            await self._begin_chain(fence)
        stored: dict[str, bytes] = {}
        for prefix in self._prefixes:
            stored.update((await self._store.snapshot(prefix)).values)
        self._due = {key: value for key, value in stored.items() if value != self._wanted.get(key)}
        self._due.update((key, None) for key in self._wanted.keys() - stored.keys())
        self._doubtful = False

    def want(self, key: str, value: bytes | None) -> None:
        """`value` is to lie under `key`, or nothing (None)."""
        held = self._due[key] if key in self._due else self._wanted.get(key)
        if held == value:
            self._due.pop(key, None)
            value = held  # not a copy of it
        else:
            self._due[key] = held
        if value is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = value

    @property
    def pending(self) -> int:
        """Number of keys that differ."""
        return len(self._due)

    async def flush(self, fence: Fence | None) -> int:
        """Writes the difference; returns how many keys it wrote. Raises FencedError, UnavailableError.

        After an error the rest is still due; a transaction whose fate is unknown is repeated as a whole, first. A load
        that failed is made up for.
        Only one flush at a time.
        """
        written = 0
        if self._doubtful:
            await self.load(fence)
        if self._last is None and fence is not None:
            await self._begin_chain(fence)
        if self._underway is not None:
            written += await self._transact(*self._underway, fence)
        for operations in self._transactions():
            written += await self._transact(operations, self._guard(), fence)
        return written

    async def _transact(self, operations: list[Operation], guard: Guard | None, fence: Fence | None) -> int:
        # Kept until it is known to be applied: repeated with the same guard, it is applied once at most.
        self._underway = operations, guard
        revision = await self._store.transact(operations, fence, guard)
        self._underway = None
        if guard is not None:
            self._last = revision
        for operation in operations:
            self._settle(operation)
        return len(operations)

    async def _begin_chain(self, fence: Fence) -> None:
        if self._guard_key is not None:
            self._sequence = 0
            self._last = await self._store.transact([Put(self._guard_key, self._token())], fence)

    def _guard(self) -> Guard | None:
        if self._guard_key is None or self._last is None:
            return None
        return Guard(self._guard_key, self._last, self._token())

    def _token(self) -> bytes:
        self._sequence += 1
        return encode(LastWrite(sequence=self._sequence, token=secrets.token_bytes(8)))

    def _settle(self, operation: Operation) -> None:
        value = operation.value if isinstance(operation, Put) else None
        # It may have been wanted otherwise while the transaction was under way: then it is due again, also where
        # `want` took it for stored because it went back to what was there before.
        if self._wanted.get(operation.key) == value:
            self._due.pop(operation.key, None)
        else:
            self._due[operation.key] = value

    def _transactions(self) -> Iterator[list[Operation]]:
        puts = sorted((key for key in self._due if key in self._wanted), key=lambda key: (self._rank(key), key))
        deletes = sorted((key for key in self._due if key not in self._wanted), key=lambda key: (-self._rank(key), key))
        operations: list[Operation] = [Put(key, self._wanted[key]) for key in puts]
        operations += [Delete(key) for key in deletes]
        chunk: list[Operation] = []
        size = 0
        for operation in operations:
            cost = len(operation.key) + (len(operation.value) if isinstance(operation, Put) else 0)
            if chunk and (len(chunk) == CHUNK or size + cost > MAX_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(operation)
            size += cost
        if chunk:
            yield chunk


class _Stored(Mapping[str, bytes]):
    """What is wanted, but for what is due: there what the store holds."""

    def __init__(self, wanted: Mapping[str, bytes], due: Mapping[str, bytes | None]) -> None:
        self._wanted = wanted
        self._due = due

    def __getitem__(self, key: str) -> bytes:
        value = self._due[key] if key in self._due else self._wanted.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self._wanted if key not in self._due)
        yield from (key for key, value in self._due.items() if value is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
