"""What every store does: the one in memory is a double only as long as it passes the same tests as etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from tidegate.store import MAX_OPERATIONS, Batch, Delete, Fence, FencedError, Put, Snapshot, Store, StoreError
from tidegate.store.memory import MemoryStore
from tidegate.store.protocol import Guard, StaleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.store.etcd import EtcdStore
    from tidegate.store.local import EtcdProcess

PATIENCE = 30.0


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    etcd: EtcdProcess = request.getfixturevalue("etcd")
    open_store: Callable[..., EtcdStore] = request.getfixturevalue("open_store")
    return open_store(etcd.endpoint)


async def following(changes: AsyncIterator[Snapshot | Batch]) -> Snapshot | Batch:
    async with asyncio.timeout(PATIENCE):
        return await anext(changes)


async def test_a_snapshot_holds_the_prefix_and_nothing_else(store: Store, prefix: str) -> None:
    assert (await store.snapshot(prefix)).values == {}
    revision = await store.transact([Put(f"{prefix}b", b"2"), Put(f"{prefix}a", b"1"), Put(f"{prefix[:-1]}0", b"x")])
    snapshot = await store.snapshot(prefix)
    assert dict(snapshot.values) == {f"{prefix}a": b"1", f"{prefix}b": b"2"}
    assert list(snapshot.values) == sorted(snapshot.values)
    assert snapshot.revision == revision


async def test_following_gives_whole_revisions_in_order(store: Store, prefix: str) -> None:
    await store.transact([Put(f"{prefix}a", b"0")])
    async with aclosing(store.follow(prefix)) as changes:
        first = await following(changes)
        assert isinstance(first, Snapshot)
        assert dict(first.values) == {f"{prefix}a": b"0"}
        written: list[list[Put | Delete]] = [
            [Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"1")],
            [Delete(f"{prefix}a"), Put(f"{prefix}c", b"")],
            [Put(f"{prefix}a", b"2")],
        ]
        revisions = [await store.transact(operations) for operations in written]
        await store.transact([Put(f"/elsewhere{prefix}", b"")])
        last = await store.transact([Put(f"{prefix}last", b"")])
        got = [await following(changes) for _ in range(4)]
    assert all(isinstance(batch, Batch) for batch in got)
    assert [(batch.revision, list(batch.operations)) for batch in got if isinstance(batch, Batch)] == [
        *zip(revisions, written, strict=True),
        (last, [Put(f"{prefix}last", b"")]),
    ]


async def test_two_followers_see_the_same(store: Store, prefix: str) -> None:
    async with aclosing(store.follow(prefix)) as one, aclosing(store.follow(prefix)) as other:
        await following(one)
        await following(other)
        await store.transact([Put(f"{prefix}a", b"1")])
        assert await following(one) == await following(other)


async def test_removing_what_is_not_there_changes_nothing(store: Store, prefix: str) -> None:
    before = await store.transact([Put(f"{prefix}a", b"1")])
    assert await store.transact([Delete(f"{prefix}none")]) == before
    assert (await store.snapshot(prefix)).revision == before


async def test_a_transaction_is_refused_as_a_whole(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError):
        await store.transact([Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"1"), Put(f"{prefix}a", b"2")])
    with pytest.raises(StoreError, match=str(MAX_OPERATIONS)):
        await store.transact([Put(f"{prefix}{i}", b"") for i in range(MAX_OPERATIONS + 1)])
    with pytest.raises(StoreError, match=str(MAX_OPERATIONS)):
        await store.transact([Put(f"{prefix}{i}", b"") for i in range(MAX_OPERATIONS)], guard=Guard("/g", 0, b"t"))
    assert (await store.snapshot(prefix)).values == {}


async def test_a_fence_holds_only_for_the_leader(store: Store, prefix: str) -> None:
    term = await store.campaign(f"{prefix}leader", "one", 5)
    await store.transact([Put(f"{prefix}a", b"1")], term.fence)
    for wrong in (Fence(f"{prefix}leader", term.fence.create_revision - 1), Fence(f"{prefix}nobody", 1)):
        with pytest.raises(FencedError) as raised:
            await store.transact([Put(f"{prefix}a", b"2")], wrong)
        assert not isinstance(raised.value, StaleError)
    await term.resign()
    with pytest.raises(FencedError):
        await store.transact([Put(f"{prefix}a", b"3")], term.fence)
    assert (await store.snapshot(f"{prefix}a")).values == {f"{prefix}a": b"1"}


async def test_the_next_candidate_follows_the_one_that_resigns(store: Store, prefix: str) -> None:
    key = f"{prefix}leader"
    first = await store.campaign(key, "one", 5)
    assert (await store.snapshot(key)).values == {key: b"one"}
    waiting = asyncio.create_task(store.campaign(key, "two", 5))
    lost = asyncio.create_task(first.lost())
    await asyncio.wait((waiting, lost), timeout=0.3)
    assert not waiting.done()
    assert not lost.done()
    await first.resign()
    second = await asyncio.wait_for(waiting, PATIENCE)
    assert await asyncio.wait_for(lost, PATIENCE)
    assert second.fence.create_revision > first.fence.create_revision
    assert (await store.snapshot(key)).values == {key: b"two"}
    await first.resign()  # of no effect on the other's term
    await store.transact([Put(f"{prefix}a", b"")], second.fence)
    await second.resign()


async def test_a_guard_makes_a_chain(store: Store, prefix: str) -> None:
    key = f"{prefix}guard"
    first = await store.transact([Put(f"{prefix}a", b"1")], guard=Guard(key, 0, b"t1"))
    second = await store.transact([Put(f"{prefix}a", b"2")], guard=Guard(key, first, b"t2"))
    assert (await store.snapshot(key)).values == {key: b"t2"}
    # The same again, as after a lost answer: told, not applied.
    assert await store.transact([Put(f"{prefix}a", b"2")], guard=Guard(key, first, b"t2")) == second
    # One that was delayed on its way.
    with pytest.raises(StaleError):
        await store.transact([Put(f"{prefix}a", b"1")], guard=Guard(key, 0, b"t1"))
    snapshot = await store.snapshot(f"{prefix}a")
    assert (snapshot.values, snapshot.revision) == ({f"{prefix}a": b"2"}, second)


async def test_a_guard_and_a_fence_are_told_apart(store: Store, prefix: str) -> None:
    term = await store.campaign(f"{prefix}leader", "one", 5)
    revision = await store.transact([Put(f"{prefix}a", b"1")], term.fence, Guard(f"{prefix}guard", 0, b"t1"))
    with pytest.raises(StaleError):
        await store.transact([Put(f"{prefix}a", b"2")], term.fence, Guard(f"{prefix}guard", revision - 1, b"t2"))
    await term.resign()
    with pytest.raises(FencedError) as raised:
        await store.transact([Put(f"{prefix}a", b"2")], term.fence, Guard(f"{prefix}guard", revision, b"t2"))
    assert not isinstance(raised.value, StaleError)


async def test_leaving_early_ends_the_follower(store: Store, prefix: str) -> None:
    async with aclosing(store.follow(prefix)) as changes:
        await following(changes)
    assert store.trouble is None
    await store.transact([Put(f"{prefix}a", b"1")])
