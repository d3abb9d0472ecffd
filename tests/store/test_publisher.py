"""A writer service as a whole: nothing before all is known, and an etcd that lost something is made whole again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tidegate.records import Keyspace, Node, Problem, Subject, Synced, decode, encode
from tidegate.runtime.http import Health
from tidegate.store import Put, Store, UnavailableError
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess
from tidegate.store.memory import MemoryStore
from tidegate.store.publisher import Publisher

PATIENCE = 60.0
KEYS = Keyspace("c")


def publisher_for(store: Store, *sources: str) -> Publisher:
    return Publisher(store, KEYS, "w", {"nodes/": 1, "subjects/": 2}, sources, Health("store"))


@asynccontextmanager
async def running(publisher: Publisher, holder: str = "one") -> AsyncIterator[None]:
    task = asyncio.create_task(publisher.run(holder, 2))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(store: Store, condition: Callable[[dict[str, bytes]], bool]) -> dict[str, bytes]:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                values = dict((await store.snapshot(KEYS.prefix)).values)
                if condition(values):
                    return values
            except UnavailableError:
                pass
            await asyncio.sleep(0.02)


def has(key: str) -> Callable[[dict[str, bytes]], bool]:
    return lambda values: key in values


async def test_nothing_is_removed_until_every_source_was_listed() -> None:
    store = MemoryStore()
    store.put_now([Put(KEYS.node("old"), b"x"), Put(KEYS.rules(1), b"another's")])
    publisher = publisher_for(store, "nodes", "pods")
    publisher.put(KEYS.node("new"), Node(zone="z"))
    async with running(publisher):
        publisher.listed("nodes")
        await asyncio.sleep(0.1)
        assert KEYS.node("new") not in store.values()
        publisher.listed("pods")
        values = await until(store, has(KEYS.synced("w")))
    assert KEYS.node("old") not in values
    assert decode(Node, values[KEYS.node("new")]).zone == "z"
    assert values[KEYS.rules(1)] == b"another's"
    leading = decode(Synced, values[KEYS.synced("w")])
    assert leading.epoch > 0


async def test_a_problem_is_stored_while_it_lasts() -> None:
    store = MemoryStore()
    publisher = publisher_for(store)
    key = KEYS.problem("w", "Pod", "ns", "p")
    async with running(publisher):
        publisher.problem("Pod", "ns", "p", "no such operator")
        publisher.changed()
        values = await until(store, has(key))
        assert decode(Problem, values[key]).reason == "no such operator"
        publisher.problem("Pod", "ns", "p", None)
        publisher.changed()
        await until(store, lambda values: key not in values)


async def test_a_record_that_no_transaction_holds_costs_itself_alone() -> None:
    store = MemoryStore()
    publisher = publisher_for(store)
    large = Node(zone="z" * 1_000_000)
    async with running(publisher):
        publisher.put(KEYS.node("a"), Node(zone="1"))
        publisher.changed()
        await until(store, has(KEYS.node("a")))
        publisher.put(KEYS.node("a"), large)
        publisher.put(KEYS.node("b"), large)
        publisher.put(KEYS.node("c"), Node(zone="2"))
        publisher.changed()
        values = await until(store, has(KEYS.node("c")))
        assert decode(Node, values[KEYS.node("a")]).zone == "1", "its previous state stays"
        assert KEYS.node("b") not in values
        assert "at most" in decode(Problem, values[KEYS.problem("w", "nodes", "", "a")]).reason
        publisher.put(KEYS.node("a"), Node(zone="3"))
        publisher.put(KEYS.node("b"), None)
        publisher.changed()
        values = await until(store, lambda values: KEYS.problem("w", "nodes", "", "b") not in values)
        assert decode(Node, values[KEYS.node("a")]).zone == "3"
        assert not any("meta/problems" in key for key in values)


async def test_a_record_too_large_from_the_start_leaves_the_stored_one() -> None:
    store = MemoryStore()
    store.put_now([Put(KEYS.node("a"), encode(Node(zone="1")))])
    publisher = publisher_for(store)
    await publisher.writer.load()
    async with running(publisher):
        publisher.put(KEYS.node("a"), Node(zone="z" * 1_000_000))
        publisher.changed()
        values = await until(store, has(KEYS.synced("w")))
        assert decode(Node, values[KEYS.node("a")]).zone == "1"


async def test_who_waits_to_lead_is_ready_once_it_knows_everything() -> None:
    store = MemoryStore()
    first, second = publisher_for(store, "nodes"), publisher_for(store, "nodes")
    async with running(first, "one"):
        first.listed("nodes")
        await until(store, has(KEYS.synced("w")))
        assert first.health.is_ready
        async with running(second, "two"):
            assert not second.health.is_ready
            second.listed("nodes")
            assert second.health.is_ready


async def test_an_idle_leader_notices_that_etcd_was_restored(
    own_etcd: EtcdProcess, open_store: Callable[..., EtcdStore], tmp_path: Path
) -> None:
    """Nothing changes at the API server, and yet what the older copy lacks comes back."""
    await own_etcd.start()
    store = open_store(own_etcd.endpoint)
    publisher = publisher_for(store)
    publisher.put(KEYS.node("a"), Node(zone="1"))
    async with running(publisher):
        publisher.changed()
        await until(store, has(KEYS.synced("w")))
        own_etcd.stop()
        own_etcd.copy_data(tmp_path / "copy")
        await own_etcd.start()
        for number in range(30):
            publisher.put(KEYS.subject(number), Subject(policy=number))
            publisher.changed()
            await until(store, has(KEYS.subject(number)))
        own_etcd.kill()
        own_etcd.restore_data(tmp_path / "copy")
        await own_etcd.start()
        values = await until(store, has(KEYS.subject(29)))
    assert all(KEYS.subject(number) in values for number in range(30))


async def test_a_wiped_etcd_is_filled_again(own_etcd: EtcdProcess, open_store: Callable[..., EtcdStore]) -> None:
    await own_etcd.start()
    store = open_store(own_etcd.endpoint)
    publisher = publisher_for(store)
    for number in range(300):
        publisher.put(KEYS.subject(number), Subject(policy=number))
    async with running(publisher):
        publisher.changed()
        before = await until(store, has(KEYS.synced("w")))
        own_etcd.kill()
        own_etcd.wipe()
        await own_etcd.start()
        after = await until(store, has(KEYS.synced("w")))
    different = {KEYS.synced("w"), KEYS.last_write("w")}
    assert {key: after[key] for key in after if key not in different} == {
        key: before[key] for key in before if key not in different
    }
    assert len(after) == 302
