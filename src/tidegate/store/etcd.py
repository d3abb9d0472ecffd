"""The store on etcd, 3.4 to 3.6."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
from etcd3aio._protobuf import Compare, RangeResponse, RequestOp, TxnResponse
from etcd3aio.kv import KVService, prefix_range_end

from tidegate.runtime.logging import get_logger
from tidegate.runtime.metrics import counter, histogram
from tidegate.runtime.retry import Backoff, backoff
from tidegate.runtime.settings import CommonSettings
from tidegate.store.connection import DEADLINE, Connection, Link, RefusedError, code_of, parse_endpoint
from tidegate.store.credentials import read_credentials
from tidegate.store.lease import EtcdTerm, revoke
from tidegate.store.protocol import (
    MAX_OPERATIONS,
    Batch,
    Fence,
    FencedError,
    Guard,
    Operation,
    Put,
    Snapshot,
    StaleError,
    StoreError,
    UnavailableError,
)
from tidegate.store.watch import (
    TRACES,
    Assembler,
    History,
    LostError,
    Trace,
    check_alive,
    decode_key,
    encode_key,
    trace,
    watch_request,
)

ATTEMPTS = 3  # of a transaction; its caller decides about more
# etcd goes through its index from a page's start to the end of the prefix: few large pages cost it half.
FIRST_PAGE = 2_000  # keys
LARGEST_PAGE = 50_000  # keys
PAGE_GROWTH = 4
PAGE_BYTES = 8 << 20  # what a page should have; its number of keys follows
AT_ONCE = 2000  # keys of a page that are taken without looking at the network
RESTARTS = 3  # of a snapshot that was overtaken by compaction

EVENTS = counter("store_events", "Events received by watches of the store.")
RELISTS = counter("store_relists", "Snapshots read anew because a watch could not go on, by cause.", ("cause",))
FAILURES = counter("store_failures", "Failed attempts to read or follow the store.")
TRANSACTIONS = histogram("store_transaction_duration", "Time of a transaction with its repetitions.", ("result",))


def open_store(settings: CommonSettings) -> "EtcdStore":
    """The store that the settings name. It connects at the first call. Raises SettingsError."""
    return EtcdStore(settings)


class EtcdStore:
    """See store.protocol.Store. Needs a running event loop only from the first call on."""

    def __init__(self, settings: CommonSettings) -> None:
        read_credentials(settings)  # what is wrong with the files is told at once
        endpoints = [parse_endpoint(text) for text in settings.etcd]
        self._connection = Connection(endpoints, lambda: read_credentials(settings))
        self._largest_page = LARGEST_PAGE
        self._troubles: dict[int, str] = {}  # one a follower

    @property
    def trouble(self) -> str | None:
        return next(iter(self._troubles.values()), None)

    async def close(self) -> None:
        await self._connection.close()

    async def snapshot(self, prefix: str) -> Snapshot:
        return (await self._read(prefix))[0]

    async def _read(self, prefix: str) -> tuple[Snapshot, History]:
        """Raises UnavailableError, RefusedError."""
        for attempt in range(RESTARTS):
            try:
                return await self._read_pages(prefix)
            except RefusedError as error:
                # The pinned revision was compacted away, or is not there any more (restored), while paging.
                if error.code is not grpc.StatusCode.OUT_OF_RANGE or attempt == RESTARTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _read_pages(self, prefix: str) -> tuple[Snapshot, History]:
        values: dict[str, bytes] = {}
        newest: list[tuple[str, Trace]] = []  # of each page
        start, end = encode_key(prefix), prefix_range_end(encode_key(prefix))
        limit = FIRST_PAGE
        page = await self._page(start, end, limit)
        revision, cluster = page.header.revision, page.header.cluster_id
        while True:
            if page.header.cluster_id != cluster:
                raise UnavailableError("the etcd cluster was replaced while it was read")
            following: asyncio.Task[RangeResponse] | None = None
            if page.more:
                start = page.kvs[-1].key + b"\0"
                limit = min(_next_limit(limit, len(page.kvs), page.ByteSize()), self._largest_page)
                # etcd gathers the next page while this one is taken.
                following = asyncio.create_task(self._page(start, end, limit, revision))
            try:
                latest = await _take(page, values)
                if latest is not None:
                    newest.append((decode_key(latest.key), trace(latest)))
                if following is None:
                    break
                page = await following
            finally:
                if following is not None:
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
        newest.sort(key=lambda entry: entry[1].mod_revision)
        return Snapshot(revision, values), History(cluster, revision, dict(newest[-TRACES:]))

    async def _page(self, start: bytes, end: bytes, limit: int, revision: int = 0) -> RangeResponse:
        try:
            async with self._connection.link() as link:
                return await link.kv.get(start, end, revision=revision, limit=limit, timeout=DEADLINE)
        except UnavailableError:
            # It may have been too much for the deadline: the next try asks for less at a time.
            self._largest_page = max(FIRST_PAGE, min(self._largest_page, limit // PAGE_GROWTH))
            raise

    async def follow(self, prefix: str) -> AsyncGenerator[Snapshot | Batch, None]:
        log = get_logger(etcd=str(self._connection), prefix=prefix)
        pauses = Backoff()
        history: History | None = None
        regressed = False
        token = id(pauses)
        try:
            while True:
                try:
                    if history is None:
                        snapshot, history = await self._read(prefix)
                        given = [replace(snapshot, regressed=regressed)]
                        del snapshot
                        yield given.pop()  # without a name here, by which all of it would stay in memory
                        regressed = False
                    else:
                        history.require_traces()
                    async with aclosing(self._watch(prefix, history)) as updates:
                        async for update in updates:
                            if isinstance(update, Batch):
                                yield update
                            elif self._troubles.pop(token, None) is not None:
                                log.info("following etcd again", revision=history.position)
                            pauses.reset()
                except LostError as error:
                    log.info("reading everything again", reason=str(error))
                    RELISTS.labels(error.cause).inc()
                    history = None
                    regressed |= error.cause in LostError.REGRESSED
                except StoreError as error:
                    FAILURES.inc()
                    if token not in self._troubles:
                        log.warning("cannot follow etcd; trying until it answers", reason=str(error))
                    self._troubles[token] = str(error)
                await pauses.wait()
        finally:
            self._troubles.pop(token, None)

    async def _watch(self, prefix: str, history: History) -> AsyncGenerator[Batch | None, None]:
        """None once the watch stands, then what comes. Raises LostError, UnavailableError."""
        assembler = Assembler(history.position)
        async with self._connection.link() as link:
            call = link.watch()
            try:
                async with asyncio.timeout(DEADLINE):
                    await call.write(watch_request(prefix, history.position))
                    response = await call.read()
                # Only now: whoever answers from here on is the one that the stream leads to, or the stream breaks.
                if response is not grpc.aio.EOF:
                    check_alive(response, history)
                    await self._verify(link, prefix, history)
                    yield None
                while response is not grpc.aio.EOF:
                    check_alive(response, history)
                    if response.events:
                        EVENTS.inc(len(response.events))
                        for step in assembler.feed(response):
                            yield Batch(step.revision, step.operations)
                            history.advance(step)
                    elif not (response.created or assembler.pending):
                        await self._progress(link, prefix, history, assembler, response.header.revision)
                    response = await call.read()
                raise UnavailableError(f"etcd at {link.endpoint} ended the watch")
            finally:
                call.cancel()

    async def _progress(self, link: Link, prefix: str, history: History, assembler: Assembler, revision: int) -> None:
        """A progress notification: nothing up to `revision` is outstanding. One below ours is looked into."""
        if revision < history.position:
            await self._verify(link, prefix, history)
        else:
            history.position = revision
            assembler.advance(revision)

    async def _verify(self, link: Link, prefix: str, history: History) -> None:
        """Raises LostError unless etcd's history is the one that we have seen."""
        keys = list(history.traces)
        # One read of the present state besides, so that there is an answer also where there are no traces yet.
        reads = [KVService.txn_op_get(encode_key(key), revision=history.position) for key in keys]
        try:
            answer = await link.kv.txn((), [*reads, KVService.txn_op_get(encode_key(prefix))], timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            if code_of(error) is grpc.StatusCode.OUT_OF_RANGE:
                raise LostError("compacted", f"revision {history.position}: {error.details()}") from error
            raise
        found = {}
        for key, response in zip(keys, answer.responses, strict=False):
            kvs = response.response_range.kvs
            found[key] = trace(kvs[0]) if kvs else None
        history.check(found, answer.header.revision, answer.header.cluster_id)

    async def transact(
        self, operations: Sequence[Operation], fence: Fence | None = None, guard: Guard | None = None
    ) -> int:
        if len(operations) + (guard is not None) > MAX_OPERATIONS:
            raise StoreError(f"{len(operations)} operations in one transaction; the limit is {MAX_OPERATIONS}")
        compare, success, failure = _transaction(operations, fence, guard)
        began = time.monotonic()
        result = "failed"
        try:
            async for attempt in backoff(UnavailableError, attempts=ATTEMPTS):
                with attempt:
                    async with self._connection.link() as link:
                        answer = await link.kv.txn(compare, success, failure, timeout=DEADLINE)
            revision = int(answer.header.revision) if answer.succeeded else _refused(answer, fence, guard)
            result = "applied"
            self._connection.newest = max(self._connection.newest, revision)
            return revision
        except FencedError:
            result = "fenced"
            raise
        finally:
            TRANSACTIONS.labels(result).observe(time.monotonic() - began)

    async def campaign(self, key: str, holder: str, ttl: int) -> EtcdTerm:
        log = get_logger(etcd=str(self._connection), leader_key=key)
        pauses = Backoff()
        while True:
            try:
                await self._absent(key)
                term = await self._try_to_lead(key, holder, ttl)
                if term is not None:
                    return term
                pauses.reset()
            except StoreError as error:
                if not pauses.attempts:
                    log.warning("cannot campaign; trying until it works", reason=str(error))
                await pauses.wait()

    async def _try_to_lead(self, key: str, holder: str, ttl: int) -> EtcdTerm | None:
        asked = time.monotonic()
        async with self._connection.link() as link:
            lease = await link.lease.grant(ttl, timeout=DEADLINE)
        term = None
        try:
            put = KVService.txn_op_put(encode_key(key), holder, lease=lease.ID)
            async with self._connection.link() as link:
                answer = await link.kv.txn([_created(key, 0)], [put], timeout=DEADLINE)
            if answer.succeeded:
                fence = Fence(key, int(answer.header.revision))
                term = EtcdTerm(self._connection, fence, lease.ID, asked + lease.TTL, lease.TTL)
        finally:
            # Also where the answer was lost: the key may be there, bound to a lease that nobody keeps alive.
            if term is None:
                await revoke(self._connection, lease.ID)
        return term

    async def _absent(self, key: str) -> None:
        """Returns when `key` does not exist. Never raises for trouble of the store."""
        async with aclosing(self.follow(key)) as changes:
            async for change in changes:
                if isinstance(change, Snapshot):
                    if key not in change.values:
                        return
                elif any(not isinstance(operation, Put) and operation.key == key for operation in change.operations):
                    return


async def _take(page: RangeResponse, values: dict[str, bytes]) -> Any:
    """Puts what the page holds into `values`; the KeyValue that was written last, None in an empty page."""
    latest = None
    for number, kv in enumerate(page.kvs):
        if not number % AT_ONCE:
            await asyncio.sleep(0)  # requests go out, answers come in meanwhile
        values[decode_key(kv.key)] = kv.value
        if latest is None or kv.mod_revision > latest.mod_revision:
            latest = kv
    return latest


def _next_limit(limit: int, keys: int, size: int) -> int:
    """How many keys the next page should have, after one of `keys` keys and `size` bytes."""
    fitting = PAGE_BYTES * keys // max(size, 1)
    return max(1, min(fitting, PAGE_GROWTH * limit, LARGEST_PAGE))


def _created(key: str, revision: int) -> Compare:
    return KVService.txn_compare_create_revision(encode_key(key), revision)


def _transaction(
    operations: Sequence[Operation], fence: Fence | None, guard: Guard | None
) -> tuple[list[Compare], list[RequestOp], list[RequestOp]]:
    compare: list[Compare] = []
    failure: list[RequestOp] = []
    success = [
        KVService.txn_op_put(encode_key(operation.key), operation.value)
        if isinstance(operation, Put)
        else KVService.txn_op_delete(encode_key(operation.key))
        for operation in operations
    ]
    if fence is not None:
        compare.append(_created(fence.key, fence.create_revision))
        failure.append(KVService.txn_op_get(encode_key(fence.key)))
    if guard is not None:
        key = encode_key(guard.key)
        compare.append(Compare(key=key, target=Compare.MOD, result=Compare.EQUAL, mod_revision=guard.revision))
        success.append(KVService.txn_op_put(key, guard.token))
        failure.append(KVService.txn_op_get(key))
    return compare, success, failure


def _refused(answer: TxnResponse, fence: Fence | None, guard: Guard | None) -> int:
    """What it means that the comparisons failed: raises, or the revision at which an earlier attempt was applied."""
    found = [response.response_range.kvs for response in answer.responses]
    if guard is not None and found[-1] and found[-1][0].value == guard.token:
        return int(found[-1][0].mod_revision)
    if fence is not None and not (found[0] and found[0][0].create_revision == fence.create_revision):
        holder = found[0][0].value.decode("utf-8", "replace") if found[0] else "nobody"
        raise FencedError(f"{fence.key}: this process is not the leader any more, {holder} is")
    raise StaleError(f"{guard.key if guard else ''}: etcd is not as this writer left it (restored from an older copy?)")
