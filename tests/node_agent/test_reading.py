"""What is read while the programs are still being loaded."""

import asyncio

from tests.node_agent.world import KEYS, MARKS, node, puts

from node_agent.reading import Reading
from tidegate.store import Incomplete, Snapshot
from tidegate.store.memory import MemoryStore


async def until_read(reading: Reading) -> None:
    """The store in memory answers at once."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_there_at_the_beginning_is_read_then_and_what_comes_follows() -> None:
    store = MemoryStore()
    first, second = node("n1", "172.31.2.11"), node("n2", "172.31.2.12")
    await store.transact(puts({**first, **MARKS}))
    reading = Reading(store, KEYS)
    reading.begin()
    await until_read(reading)
    await store.transact(puts(second))
    changes = reading.changes()
    snapshot = await anext(changes)
    assert isinstance(snapshot, Snapshot)
    assert snapshot.values.keys() == {**first, **MARKS}.keys(), "read before the second came"
    batch = await anext(changes)
    assert not isinstance(batch, Snapshot | Incomplete)
    assert [operation.key for operation in batch.operations] == [*second]
    await changes.aclose()
    await reading.close()


async def test_without_a_beginning_it_is_read_when_it_is_wanted() -> None:
    store = MemoryStore()
    reading = Reading(store, KEYS)
    changes = reading.changes()
    incomplete = await anext(changes)
    assert isinstance(incomplete, Incomplete)
    assert reading.missing(incomplete.marks) == "endpoint-sync, policy-sync"
    await changes.aclose()
    await reading.close()


async def test_it_can_be_given_up_while_it_is_read() -> None:
    store = MemoryStore()
    store.set_available(False)
    reading = Reading(store, KEYS)
    reading.begin()
    await until_read(reading)
    assert reading.trouble
    await reading.close()
    assert len(asyncio.all_tasks()) == 1, "nothing goes on reading"
