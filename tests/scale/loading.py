"""Filling an etcd with many keys, as fast as it takes them."""

import asyncio
from collections.abc import Iterable
from itertools import islice

from tidegate.store import Put, Store
from tidegate.store.protocol import MAX_OPERATIONS

AT_ONCE = 8  # transactions under way


async def fill(store: Store, items: Iterable[tuple[str, bytes]]) -> int:
    """Writes all items, in no order; returns their number. Raises StoreError."""
    left = iter(items)
    written = 0

    async def write() -> None:
        nonlocal written
        while operations := [Put(key, value) for key, value in islice(left, MAX_OPERATIONS)]:
            await store.transact(operations)
            written += len(operations)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(write())
    return written
