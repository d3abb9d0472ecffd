"""What is given out is complete: never a part, never an older copy that the writers have not looked at."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from tidegate.records import Keyspace, Node, Subject, Synced, encode
from tidegate.runtime.http import Health
from tidegate.store import Batch, Delete, Incomplete, Put, Snapshot, Store, follow_marked
from tidegate.store.memory import MemoryStore
from tidegate.store.publisher import Publisher

KEYS = Keyspace("c")
MARK = KEYS.synced("a")
OTHER = KEYS.synced("b")
ONE = KEYS.node("one")
TWO = KEYS.node("two")
Change = Snapshot | Batch | Incomplete


def mark(key: str, loaded: int) -> Put:
    return Put(key, encode(Synced(loaded=loaded)))


class Reader:
    """What a reader has been given, in order."""

    def __init__(self) -> None:
        self.changes: asyncio.Queue[Change] = asyncio.Queue()

    async def next(self) -> Change:
        async with asyncio.timeout(60):
            return await self.changes.get()

    async def quiet(self) -> None:
        """Nothing more comes."""
        for _ in range(20):
            await asyncio.sleep(0)
        assert self.changes.empty(), self.changes.get_nowait()


@asynccontextmanager
async def reading(store: Store, *marks: str) -> AsyncIterator[Reader]:
    reader = Reader()

    async def read() -> None:
        async with aclosing(follow_marked(store, KEYS.prefix, marks)) as changes:
            async for change in changes:
                reader.changes.put_nowait(change)

    task = asyncio.create_task(read())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def values(change: Change) -> set[str]:
    assert isinstance(change, Snapshot), change
    return set(change.values)


async def test_nothing_before_all_marks() -> None:
    store = MemoryStore()
    store.put_now([Put(ONE, b"1"), mark(MARK, 1)])
    async with reading(store, MARK, OTHER) as reader:
        assert await reader.next() == Incomplete((OTHER,))
        store.put_now([Put(TWO, b"2")])
        assert await reader.next() == Incomplete((OTHER,))
        store.put_now([Delete(ONE), mark(OTHER, 1)])
        assert values(await reader.next()) == {TWO, MARK, OTHER}
        store.put_now([Put(ONE, b"1")])
        assert isinstance(await reader.next(), Batch)


async def test_a_store_that_is_emptied_is_not_followed() -> None:
    store = MemoryStore()
    store.put_now([Put(ONE, b"1"), Put(TWO, b"2"), mark(MARK, 1)])
    async with reading(store, MARK) as reader:
        assert values(await reader.next()) == {ONE, TWO, MARK}
        store.put_now([Delete(ONE), Delete(TWO), Delete(MARK)])
        assert await reader.next() == Incomplete((MARK,))
        assert await reader.next() == Incomplete((MARK,))
        store.put_now([Put(TWO, b"2")])
        assert await reader.next() == Incomplete((MARK,))
        store.put_now([Put(ONE, b"1"), mark(MARK, 2)])
        assert values(await reader.next()) == {ONE, TWO, MARK}


async def test_an_older_copy_counts_once_it_is_marked_anew() -> None:
    store = MemoryStore()
    store.put_now([Put(ONE, b"1"), mark(MARK, 1)])
    copy = store.copy()
    store.put_now([Put(TWO, b"2")])
    async with reading(store, MARK) as reader:
        assert values(await reader.next()) == {ONE, TWO, MARK}
        store.restore(copy)
        assert await reader.next() == Incomplete((MARK,))
        store.put_now([Put(TWO, b"2")])
        assert await reader.next() == Incomplete((MARK,))
        store.compact()
        store.put_now([mark(MARK, 2)])
        assert values(await reader.next()) == {ONE, TWO, MARK}


async def test_an_older_copy_is_told_by_its_mark_alone() -> None:
    """The reader was away while the copy was put in place and another leader had come meanwhile."""
    store = MemoryStore()
    store.put_now([Put(ONE, b"1"), mark(MARK, 1)])
    copy = store.copy()
    store.put_now([mark(MARK, 2)])
    async with reading(store, MARK) as reader:
        assert isinstance(await reader.next(), Snapshot)
        store.restore(copy)
        assert await reader.next() == Incomplete((MARK,))


async def test_what_was_marked_before_the_reader_is_back_counts_at_once() -> None:
    store = MemoryStore()
    store.put_now([Put(ONE, b"1"), mark(MARK, 1)])
    async with reading(store, MARK) as reader:
        assert isinstance(await reader.next(), Snapshot)
        store.wipe()
        store.put_now([Put(ONE, b"1"), mark(MARK, 2)])
        assert values(await reader.next()) == {ONE, MARK}


async def test_a_compaction_asks_for_no_new_mark() -> None:
    store = MemoryStore()
    store.put_now([Put(ONE, b"1"), mark(MARK, 1)])
    async with reading(store, MARK) as reader:
        assert isinstance(await reader.next(), Snapshot)
        store.put_now([Put(TWO, b"2")])
        store.put_now([Put(ONE, b"3")])
        store.compact()
        assert values(await reader.next()) == {ONE, TWO, MARK}
        await reader.quiet()


async def test_a_mark_that_cannot_be_read_is_one() -> None:
    store = MemoryStore()
    store.put_now([Put(MARK, b"\xc1")])
    async with reading(store, MARK) as reader:
        assert values(await reader.next()) == {MARK}


async def test_a_writer_marks_anew_whatever_was_done_to_its_store() -> None:
    """Publisher and reader together: after each fault the reader gets the whole, and nothing less before."""
    store = MemoryStore()
    publisher = Publisher(store, KEYS, "a", {"nodes/": 1, "subjects/": 2}, (), Health("store"), ())
    for number in range(300):
        publisher.put(KEYS.subject(number), Subject(policy=number))
    whole = {KEYS.subject(number) for number in range(300)} | {MARK}
    task = asyncio.create_task(publisher.run("one", 2))
    try:
        async with reading(store, MARK) as reader:

            async def given() -> set[str]:
                while not isinstance(change := await reader.next(), Snapshot):
                    assert isinstance(change, Incomplete) or len(change.operations) < 3, change
                return set(change.values) - {KEYS.last_write("a")}

            publisher.changed()
            assert await given() == whole
            copy = store.copy()
            publisher.put(ONE, Node(zone="z"))
            publisher.changed()
            while not isinstance(change := await reader.next(), Batch) or Put(ONE, encode(Node(zone="z"))) not in (
                change.operations
            ):
                pass
            store.restore(copy)
            assert await given() == {*whole, ONE}
            store.put_now([Delete(key) for key in store.values(KEYS.prefix)])
            assert await given() == {*whole, ONE}
            store.wipe()
            assert await given() == {*whole, ONE}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
