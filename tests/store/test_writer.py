"""The writer: the difference and nothing else, in an order that readers can rely on, whatever fails on the way."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate.records import LastWrite, decode
from tidegate.store import MAX_OPERATIONS, Batch, Delete, Fence, FencedError, Put, Snapshot, UnavailableError
from tidegate.store.memory import MemoryStore
from tidegate.store.protocol import StaleError
from tidegate.store.writer import MAX_BYTES, Writer

PREFIXES = {"/p/a/": 1, "/p/b/": 2, "/p/c/": 3}
GUARD = "/p/meta/writer/w"


def rank(key: str) -> int:
    return PREFIXES[key[:5]]


def writer_for(store: MemoryStore) -> Writer:
    return Writer(store, PREFIXES, rank, GUARD)


async def leader(store: MemoryStore) -> Fence:
    return (await store.campaign("/leader", "one", 5)).fence


async def loaded(store: MemoryStore) -> tuple[Writer, Fence]:
    fence = await leader(store)
    writer = writer_for(store)
    await writer.load(fence)
    return writer, fence


def records(store: MemoryStore) -> dict[str, bytes]:
    return {key: value for prefix in PREFIXES for key, value in store.values(prefix).items()}


async def test_writes_the_difference_and_nothing_else() -> None:
    store = MemoryStore()
    store.put_now([Put("/p/a/same", b"1"), Put("/p/a/old", b"1"), Put("/p/b/gone", b"1"), Put("/q/other", b"1")])
    writer, fence = await loaded(store)
    writer.want("/p/a/same", b"1")
    writer.want("/p/a/old", b"2")
    writer.want("/p/c/new", b"3")
    assert writer.pending == 3
    assert await writer.flush(fence) == 3
    assert records(store) == {"/p/a/same": b"1", "/p/a/old": b"2", "/p/c/new": b"3"} == dict(writer.stored)
    assert store.values("/q/") == {"/q/other": b"1"}
    before = store.transactions
    assert await writer.flush(fence) == 0
    assert store.transactions == before


async def test_puts_rise_in_rank_then_deletes_fall() -> None:
    store = MemoryStore()
    store.put_now([Put(f"/p/{kind}/old", b"") for kind in "abc"])
    writer, fence = await loaded(store)
    for kind in "cab":
        writer.want(f"/p/{kind}/new", b"")
    async with aclosing(store.follow("/p/")) as changes:
        await anext(changes)
        await writer.flush(fence)
        batch = await anext(changes)
    assert isinstance(batch, Batch)
    assert [operation for operation in batch.operations if operation.key != GUARD] == [
        Put("/p/a/new", b""),
        Put("/p/b/new", b""),
        Put("/p/c/new", b""),
        Delete("/p/c/old"),
        Delete("/p/b/old"),
        Delete("/p/a/old"),
    ]


async def test_transactions_keep_to_the_limits() -> None:
    store = MemoryStore()
    writer, fence = await loaded(store)
    for number in range(300):
        writer.want(f"/p/a/{number}", b"x")
    writer.want("/p/b/large", bytes(MAX_BYTES - 10))
    writer.want("/p/b/larger", bytes(MAX_BYTES + 10))  # alone in its transaction; etcd decides
    sizes: list[int] = []
    async with aclosing(store.follow("/p/")) as changes:
        await anext(changes)
        await writer.flush(fence)
        while sum(sizes) < 302:
            change = await anext(changes)
            assert isinstance(change, Batch)
            assert len(change.operations) <= MAX_OPERATIONS
            sizes.append(len(change.operations) - 1)
    assert sizes == [127, 127, 46, 1, 1]


async def test_what_is_wanted_back_during_a_flush_is_written_back() -> None:
    """A transaction is under way with the new value while the old one, still stored, is wanted again."""
    store = MemoryStore()
    store.put_now([Put("/p/a/k", b"old")])
    writer, fence = await loaded(store)
    writer.want("/p/a/k", b"new")
    flushing = asyncio.create_task(writer.flush(fence))
    await asyncio.sleep(0)  # the transaction has begun
    writer.want("/p/a/k", b"old")
    await flushing
    await writer.flush(fence)
    assert records(store) == {"/p/a/k": b"old"}


@pytest.mark.parametrize("applied", [True, False])
async def test_a_transaction_of_unknown_fate_is_applied_once(applied: bool) -> None:
    store = MemoryStore()
    writer, fence = await loaded(store)
    writer.want("/p/a/k", b"1")
    before = store.transactions
    store.lose_answer(applied)
    with pytest.raises(UnavailableError):
        await writer.flush(fence)
    writer.want("/p/a/k", b"2")
    await writer.flush(fence)
    assert records(store) == {"/p/a/k": b"2"}
    assert store.transactions == before + 2
    assert not writer.pending


async def test_a_deposed_writer_writes_nothing() -> None:
    store = MemoryStore()
    writer, fence = await loaded(store)
    store.expire("/leader")
    writer.want("/p/a/k", b"1")
    with pytest.raises(FencedError):
        await writer.flush(fence)
    with pytest.raises(FencedError):
        await writer.load(fence)
    assert records(store) == {}


async def test_a_restored_store_is_noticed_and_written_anew() -> None:
    """The older copy knows the same leader: only the chain shows that something is missing."""
    store = MemoryStore()
    writer, fence = await loaded(store)
    writer.want("/p/a/1", b"1")
    await writer.flush(fence)
    copy = store.copy()
    writer.want("/p/a/2", b"2")
    await writer.flush(fence)
    store.restore(copy)
    writer.want("/p/a/3", b"3")
    with pytest.raises(StaleError):
        await writer.flush(fence)
    await writer.load(fence)
    await writer.flush(fence)
    assert records(store) == {"/p/a/1": b"1", "/p/a/2": b"2", "/p/a/3": b"3"}


async def test_the_guard_is_a_record_with_a_fresh_token() -> None:
    store = MemoryStore()
    writer, fence = await loaded(store)
    first = decode(LastWrite, store.values(GUARD)[GUARD])
    writer.want("/p/a/1", b"1")
    await writer.flush(fence)
    second = decode(LastWrite, store.values(GUARD)[GUARD])
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.token != second.token


Step = tuple[str, str, bytes | None]
KEYS = st.sampled_from([f"{prefix}{name}" for prefix in PREFIXES for name in "xy"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), KEYS, st.none() | st.sampled_from([b"1", b"2"])),
        st.tuples(
            st.sampled_from(["flush", "lost", "applied", "copy", "restore", "wipe", "away", "back"]),
            st.just(""),
            st.none(),
        ),
    ),
    max_size=25,
)


@given(STEPS)
@example(  # the load after a restore fails
    [
        ("want", "/p/a/y", b"1"),
        ("flush", "", None),
        ("applied", "", None),
        ("restore", "", None),
        ("want", "/p/a/x", b"1"),
        ("lost", "", None),
    ]
)
def test_in_the_end_the_store_holds_what_is_wanted(steps: list[Step]) -> None:
    async def play() -> None:
        store = MemoryStore()
        fence = await leader(store)
        writer = writer_for(store)
        await writer.load(fence)
        copy = store.copy()
        wanted: dict[str, bytes] = {}
        for what, key, value in [*steps, ("back", "", None), *[("flush", "", None)] * 3]:
            if what == "want":
                writer.want(key, value)
                wanted = {k: v for k, v in ({**wanted, key: value}).items() if v is not None}
            elif what in ("lost", "applied"):
                store.lose_answer(what == "applied")
            elif what in ("away", "back"):
                store.set_available(what == "back")
            elif what == "copy":
                copy = store.copy()
            elif what == "restore":
                store.restore(copy)
            elif what == "wipe":
                store.wipe()
            else:
                fence = await flush(store, writer, fence)
        store._lost_answers.clear()
        # A wipe or restore shows at the latest with a write.
        writer.want("/p/c/last", b"")
        wanted["/p/c/last"] = b""
        for _ in range(3):
            fence = await flush(store, writer, fence)
        assert records(store) == wanted == dict(writer.stored)

    asyncio.run(play())


async def flush(store: MemoryStore, writer: Writer, fence: Fence) -> Fence:
    """As a service does: after anything but success, a new term and everything compared anew."""
    try:
        await writer.flush(fence)
    except UnavailableError:
        return fence
    except FencedError:
        try:
            if not store.holds(fence):
                fence = await leader(store)
            await writer.load(fence)
        except UnavailableError:
            return fence
    return fence


@given(STEPS)
def test_no_reader_sees_a_reference_before_what_it_points_to(steps: list[Step]) -> None:
    """A key of rank n stands for a reference to the key of rank n - 1 of that name: it must always be there."""

    async def play() -> None:
        store = MemoryStore()
        writer, fence = await loaded(store)
        async with aclosing(store.follow("/p/")) as changes:
            state: dict[str, bytes] = {}
            await anext(changes)
            for what, key, value in steps:
                if what == "want":
                    # Wanted and removed together with all that it refers to.
                    for prefix, order in PREFIXES.items():
                        if (order <= rank(key)) if value is not None else (order >= rank(key)):
                            writer.want(prefix + key[5:], value)
                elif what == "flush":
                    await writer.flush(fence)
            await writer.flush(fence)
            store.put_now([Put("/p/c/end", b"")])
            while "/p/c/end" not in state:
                change = await anext(changes)
                assert not isinstance(change, Snapshot)
                for operation in change.operations:
                    if isinstance(operation, Put):
                        state[operation.key] = operation.value
                    else:
                        del state[operation.key]
                    for name in "xy":
                        held = [f"{prefix}{name}" in state for prefix in PREFIXES]
                        assert held == sorted(held, reverse=True)

    asyncio.run(play())
