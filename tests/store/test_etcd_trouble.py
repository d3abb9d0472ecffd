"""What happens to an etcd, done to a real one: no event lost, none given twice, nothing missed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
from etcd3aio.kv import KVService

from tidegate.store import Batch, Delete, FencedError, Put, Snapshot, Store, UnavailableError, connection
from tidegate.store import etcd as etcd_module
from tidegate.store.etcd import FIRST_PAGE, PAGE_GROWTH, EtcdStore
from tidegate.store.local import EtcdProcess
from tidegate.store.protocol import MAX_OPERATIONS, Guard, StaleError
from tidegate.store.watch import Assembler

PATIENCE = 60.0
OpenStore = Callable[..., EtcdStore]
ProxyTo = Callable[[int], Awaitable[Any]]


class Reader:
    """Follows a prefix as an agent does, and keeps what it was given."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.snapshots: list[Snapshot] = []
        self.batches: list[Batch] = []
        self.state: dict[str, bytes] = {}
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._run(store, prefix))

    async def _run(self, store: Store, prefix: str) -> None:
        async with aclosing(store.follow(prefix)) as changes:
            async for change in changes:
                async with self._changed:
                    self._take(change)
                    self._changed.notify_all()

    def _take(self, change: Snapshot | Batch) -> None:
        if isinstance(change, Snapshot):
            self.snapshots.append(change)
            self.state = dict(change.values)
            return
        self.batches.append(change)
        for operation in change.operations:
            if isinstance(operation, Put):
                self.state[operation.key] = operation.value
            else:
                self.state.pop(operation.key, None)

    async def until(self, condition: Callable[["Reader"], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: self._task.done() or condition(self))
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def __aenter__(self) -> "Reader":
        await self.until(lambda reader: bool(reader.snapshots))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def write(store: Store, prefix: str, count: int, each: int = 1, size: int = 10) -> list[int]:
    """`count` revisions of `each` events; each event's value is unique."""
    revisions = []
    for number in range(count):
        value = str(number).encode().rjust(size, b".")
        revisions.append(await store.transact([Put(f"{prefix}{i}", value) for i in range(each)]))
    return revisions


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # a property of somebody else's object
            await asyncio.sleep(0.01)


async def has_recovered(store: Store, write: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await write()
                return
            except UnavailableError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("budgets", [[30_000, 55_000, 90_000, 131_072, 200_001], [70_000] * 3])
async def test_cut_inside_a_backlog_nothing_is_lost_or_doubled(
    etcd: EtcdProcess, open_store: OpenStore, proxy_to: ProxyTo, prefix: str, budgets: list[int]
) -> None:
    proxy = await proxy_to(etcd.port)
    direct, cut = open_store(etcd.endpoint), open_store(proxy.endpoint)
    await write(direct, f"{prefix}known/", 1)
    async with Reader(cut, prefix) as reader:
        proxy.refusing = True
        proxy.cut()
        revisions = await write(direct, prefix, 2_500, each=2, size=40)
        proxy.budgets = list(budgets)
        proxy.refusing = False
        await reader.until(lambda reader: bool(reader.batches) and reader.batches[-1].revision >= revisions[-1])
    assert len(reader.snapshots) == 1, "it was resumed, not read anew"
    assert [batch.revision for batch in reader.batches] == revisions
    assert all(len(batch.operations) == 2 for batch in reader.batches)
    assert not proxy.budgets, "every cut took place"


async def test_cut_while_events_arrive(
    etcd: EtcdProcess, open_store: OpenStore, proxy_to: ProxyTo, prefix: str
) -> None:
    proxy = await proxy_to(etcd.port)
    direct, cut = open_store(etcd.endpoint), open_store(proxy.endpoint)
    await write(direct, f"{prefix}known/", 1)
    async with Reader(cut, prefix) as reader:
        revisions = []
        for _ in range(20):
            revisions += await write(direct, prefix, 25)
            proxy.cut()
        await reader.until(lambda reader: bool(reader.batches) and reader.batches[-1].revision >= revisions[-1])
    assert [batch.revision for batch in reader.batches] == revisions
    assert len(reader.snapshots) == 1
    assert proxy.connections > 2


async def test_revisions_across_fragments(
    etcd: EtcdProcess, open_store: OpenStore, proxy_to: ProxyTo, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog of 12 MB comes as one response in fragments, whose edges lie inside revisions."""
    fragments: list[bool] = []
    split: list[bool] = []

    class Spy(Assembler):
        def feed(self, response: Any) -> Any:
            fragments.append(response.fragment)
            yield from super().feed(response)
            split.append(self.pending)

    monkeypatch.setattr(etcd_module, "Assembler", Spy)
    proxy = await proxy_to(etcd.port)
    direct, cut = open_store(etcd.endpoint), open_store(proxy.endpoint)
    await write(direct, f"{prefix}known/", 1)
    async with Reader(cut, prefix) as reader:
        proxy.refusing = True
        proxy.cut()
        revisions = await write(direct, prefix, 12, each=100, size=10_000)
        proxy.budgets = [3_000_000, 5_000_000]  # cut in the middle of the fragments, too
        proxy.refusing = False
        await reader.until(lambda reader: bool(reader.batches) and reader.batches[-1].revision >= revisions[-1])
    assert any(fragments)
    assert any(split), "no edge of a fragment lay inside a revision"
    assert [batch.revision for batch in reader.batches] == revisions
    assert all(len(batch.operations) == 100 for batch in reader.batches)


async def test_compacted_while_away(etcd: EtcdProcess, open_store: OpenStore, proxy_to: ProxyTo, prefix: str) -> None:
    proxy = await proxy_to(etcd.port)
    direct, cut = open_store(etcd.endpoint), open_store(proxy.endpoint)
    await write(direct, prefix, 1, each=3)
    async with Reader(cut, prefix) as reader:
        proxy.refusing = True
        proxy.cut()
        await direct.transact([Delete(f"{prefix}1")])
        revision = (await write(direct, prefix, 20))[-1]
        async with direct._connection.link() as link:
            await link.kv.compact(revision, physical=True, timeout=5)
        proxy.refusing = False
        await reader.until(lambda reader: len(reader.snapshots) == 2)
        revision = await direct.transact([Put(f"{prefix}after", b"1")])
        await reader.until(lambda reader: bool(reader.batches) and reader.batches[-1].revision == revision)
    assert reader.state == (await direct.snapshot(prefix)).values
    assert f"{prefix}1" not in reader.snapshots[1].values


async def test_compacted_up_to_the_position(
    etcd: EtcdProcess, open_store: OpenStore, proxy_to: ProxyTo, prefix: str
) -> None:
    """What was seen is compacted, nothing that was not: the watch is resumed."""
    proxy = await proxy_to(etcd.port)
    direct, cut = open_store(etcd.endpoint), open_store(proxy.endpoint)
    await write(direct, f"{prefix}known/", 1)
    async with Reader(cut, prefix) as reader:
        revision = (await write(direct, prefix, 20))[-1]
        await reader.until(lambda reader: len(reader.batches) == 20)
        proxy.refusing = True
        proxy.cut()
        async with direct._connection.link() as link:
            await link.kv.compact(revision, physical=True, timeout=5)
        later = await write(direct, prefix, 3)
        proxy.refusing = False
        await reader.until(lambda reader: len(reader.batches) == 23)
    assert len(reader.snapshots) == 1
    assert [batch.revision for batch in reader.batches[-3:]] == later


async def test_killed_and_restarted(own_etcd: EtcdProcess, open_store: OpenStore, prefix: str) -> None:
    await own_etcd.start()
    store = open_store(own_etcd.endpoint)
    async with Reader(store, prefix) as reader:
        revisions = await write(store, prefix, 10)
        await reader.until(lambda reader: len(reader.batches) == 10)
        own_etcd.kill()
        with pytest.raises(UnavailableError, match=own_etcd.endpoint):
            await store.transact([Put(f"{prefix}x", b"")])
        await until(lambda: store.trouble is not None)
        await own_etcd.start()
        await has_recovered(store, lambda: store.transact([Put(f"{prefix}x", b"back")]))
        await reader.until(lambda reader: reader.state.get(f"{prefix}x") == b"back")
        assert store.trouble is None
    assert len(reader.snapshots) == 1
    assert [batch.revision for batch in reader.batches][:10] == revisions


@pytest.mark.parametrize("rewritten", [0, 5, 40], ids=["empty", "behind", "past"])
async def test_wiped(own_etcd: EtcdProcess, open_store: OpenStore, prefix: str, rewritten: int) -> None:
    """The same address, the same cluster id; and before the reader is back, perhaps a revision beyond its own."""
    await own_etcd.start()
    store = open_store(own_etcd.unix)
    async with Reader(store, prefix) as reader:
        await write(store, prefix, 20, each=3)
        await reader.until(lambda reader: len(reader.batches) == 20)
        own_etcd.kill()
        own_etcd.wipe()
        socket = own_etcd.directory / "localhost:1"
        hidden = own_etcd.directory / "hidden"
        await own_etcd.start()
        socket.rename(hidden)
        other = open_store(own_etcd.endpoint)
        await write(other, f"{prefix}new/", rewritten)
        hidden.rename(socket)
        await reader.until(lambda reader: len(reader.snapshots) == 2)
        await has_recovered(store, lambda: store.transact([Put(f"{prefix}after", b"1")]))
        await reader.until(lambda reader: f"{prefix}after" in reader.state)
        assert reader.state == (await store.snapshot(prefix)).values
    assert f"{prefix}0" not in reader.state


async def test_wiped_and_written_alike(own_etcd: EtcdProcess, open_store: OpenStore, prefix: str) -> None:
    """The same keys at the same revisions; but a writer's token differs (store.writer)."""
    await own_etcd.start()
    store = open_store(own_etcd.unix)

    async def fill(into: Store, token: bytes, value: bytes) -> None:
        guard = await into.transact([Put(f"{prefix}0", value)], guard=Guard(f"{prefix}meta", 0, token + b"0"))
        for number in range(1, 10):
            operations = [Put(f"{prefix}{number}", b"same")]
            guard = await into.transact(operations, guard=Guard(f"{prefix}meta", guard, token + b"%d" % number))

    async with Reader(store, prefix) as reader:
        await fill(store, b"one", b"old")
        await reader.until(lambda reader: len(reader.batches) == 10)
        socket, hidden = own_etcd.directory / "localhost:1", own_etcd.directory / "hidden"
        own_etcd.kill()
        own_etcd.wipe()
        await own_etcd.start()
        socket.rename(hidden)
        await fill(open_store(own_etcd.endpoint), b"two", b"new")
        hidden.rename(socket)
        await reader.until(lambda reader: reader.state[f"{prefix}0"] == b"new")
    assert len(reader.snapshots) == 2


@pytest.mark.parametrize("rewritten", [0, 3, 60], ids=["older", "behind", "past"])
async def test_restored_from_an_older_copy(
    own_etcd: EtcdProcess, open_store: OpenStore, prefix: str, tmp_path: Path, rewritten: int
) -> None:
    await own_etcd.start()
    store = open_store(own_etcd.unix)
    async with Reader(store, prefix) as reader:
        await write(store, prefix, 20)
        own_etcd.stop()
        own_etcd.copy_data(tmp_path / "copy")
        await own_etcd.start()
        await has_recovered(store, lambda: store.transact([Put(f"{prefix}lost", b"1")]))
        await write(store, prefix, 20)
        await reader.until(lambda reader: f"{prefix}lost" in reader.state and reader.state[f"{prefix}0"][-2:] == b"19")
        snapshots = len(reader.snapshots)
        own_etcd.kill()
        own_etcd.restore_data(tmp_path / "copy")
        await own_etcd.start()
        socket, hidden = own_etcd.directory / "localhost:1", own_etcd.directory / "hidden"
        socket.rename(hidden)
        await write(open_store(own_etcd.endpoint), f"{prefix}new/", rewritten)
        hidden.rename(socket)
        await reader.until(lambda reader: len(reader.snapshots) == snapshots + 1)
        assert f"{prefix}lost" not in reader.state


async def test_a_writer_notices_that_its_etcd_was_restored(
    own_etcd: EtcdProcess, open_store: OpenStore, prefix: str, tmp_path: Path
) -> None:
    """The copy knows the leader's key and lease, so the fence holds; the guard does not, and the term ends."""
    await own_etcd.start()
    store = open_store(own_etcd.endpoint)
    term = await store.campaign(f"{prefix}leader", "one", 30)
    guard = await store.transact([Put(f"{prefix}a", b"1")], term.fence, Guard(f"{prefix}guard", 0, b"1"))
    own_etcd.stop()
    own_etcd.copy_data(tmp_path / "copy")
    await own_etcd.start()
    await has_recovered(store, lambda: store.snapshot(prefix))
    guard = await store.transact([Put(f"{prefix}a", b"2")], term.fence, Guard(f"{prefix}guard", guard, b"2"))
    own_etcd.kill()
    own_etcd.restore_data(tmp_path / "copy")
    await own_etcd.start()
    await has_recovered(store, lambda: store.snapshot(prefix))
    assert (await store.snapshot(f"{prefix}leader")).values == {f"{prefix}leader": b"one"}
    with pytest.raises(StaleError):
        await store.transact([Put(f"{prefix}a", b"3")], term.fence, Guard(f"{prefix}guard", guard, b"3"))
    term._deadline -= 20  # the next keepalive is due now
    term._ttl = 0.3
    assert "restored" in await asyncio.wait_for(term.lost(), PATIENCE)


async def test_the_lease_is_given_up_before_a_stopped_etcd_can_end_it(
    own_etcd: EtcdProcess, open_store: OpenStore, prefix: str
) -> None:
    await own_etcd.start()
    store = open_store(own_etcd.endpoint)
    term = await store.campaign(f"{prefix}leader", "one", 2)
    lost = asyncio.create_task(term.lost())
    await asyncio.sleep(0.1)
    own_etcd.signal(SIGSTOP)
    try:
        assert await asyncio.wait_for(lost, PATIENCE) == "the lease could not be kept alive"
    finally:
        own_etcd.signal(SIGCONT)
    second = await asyncio.wait_for(open_store(own_etcd.endpoint).campaign(f"{prefix}leader", "two", 2), PATIENCE)
    with pytest.raises(FencedError, match="two"):
        await has_recovered(store, lambda: store.transact([Put(f"{prefix}a", b"")], term.fence))
    await second.resign()


async def test_a_watch_leaves_a_member_that_stands_still(
    own_etcd: EtcdProcess, open_store: OpenStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pings, ten times as often as usual: gRPC's own patience would be longer than ours."""
    sooner = tuple((name, value // 10 if name.endswith("_ms") else value) for name, value in connection.OPTIONS)
    monkeypatch.setattr(connection, "OPTIONS", sooner)
    await own_etcd.start()
    store = open_store(own_etcd.endpoint)
    await write(store, prefix, 1)
    async with Reader(store, prefix) as reader:
        await write(store, prefix, 1)
        await reader.until(lambda reader: len(reader.batches) == 1)
        own_etcd.signal(SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE / 2):
                await until(lambda: store.trouble is not None)
        finally:
            own_etcd.signal(SIGCONT)
        await has_recovered(store, lambda: write(store, prefix, 1))
        await reader.until(lambda reader: len(reader.batches) == 2)


async def test_a_lease_is_kept_alive_through_a_cut(
    etcd: EtcdProcess, open_store: OpenStore, proxy_to: ProxyTo, prefix: str
) -> None:
    proxy = await proxy_to(etcd.port)
    store = open_store(proxy.endpoint)
    term = await store.campaign(f"{prefix}leader", "one", 2)
    lost = asyncio.create_task(term.lost())
    for _ in range(8):
        await asyncio.sleep(0.5)
        proxy.cut()
    assert not lost.done()
    await store.transact([Put(f"{prefix}a", b"")], term.fence)
    lost.cancel()
    await term.resign()


async def test_of_a_killed_leader_the_lease_runs_out(etcd: EtcdProcess, open_store: OpenStore, prefix: str) -> None:
    first = await open_store(etcd.endpoint).campaign(f"{prefix}leader", "one", 2)
    store = open_store(etcd.endpoint)
    second = await asyncio.wait_for(store.campaign(f"{prefix}leader", "two", 2), PATIENCE)
    with pytest.raises(FencedError):
        await store.transact([Put(f"{prefix}a", b"")], first.fence)
    await store.transact([Put(f"{prefix}a", b"")], second.fence)
    await second.resign()


async def test_pages_that_take_too_long_become_smaller(
    etcd: EtcdProcess, open_store: OpenStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(etcd.endpoint)
    keys = [f"{prefix}{number:06}" for number in range(3 * FIRST_PAGE)]
    for start in range(0, len(keys), MAX_OPERATIONS):
        await store.transact([Put(key, b"") for key in keys[start : start + MAX_OPERATIONS]])
    asked: list[int] = []
    get = KVService.get

    async def slow(self: KVService, *words: Any, **options: Any) -> Any:
        asked.append(options["limit"])
        if options["limit"] > FIRST_PAGE:
            raise TimeoutError
        return await get(self, *words, **options)

    monkeypatch.setattr(KVService, "get", slow)
    with pytest.raises(UnavailableError):
        await store.snapshot(prefix)
    assert asked == [FIRST_PAGE, PAGE_GROWTH * FIRST_PAGE]
    assert list((await store.snapshot(prefix)).values) == keys
