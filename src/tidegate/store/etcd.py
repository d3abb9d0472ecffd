"""The store on etcd, 3.4 to 3.6."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import grpc
from etcd3aio._protobuf import Compare, LeaseKeepAliveRequest, RequestOp
from etcd3aio.errors import EtcdError, EtcdPermissionDeniedError, EtcdUnauthenticatedError
from etcd3aio.kv import KVService, prefix_range_end

from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import Backoff
from tidegate.runtime.retry import backoff as retrying
from tidegate.runtime.settings import CommonSettings
from tidegate.store.connection import Connection, connect
from tidegate.store.protocol import (
    MAX_OPERATIONS,
    Batch,
    Fence,
    FencedError,
    Operation,
    Put,
    Snapshot,
    StoreError,
    UnavailableError,
)
from tidegate.store.watch import LostError, Position, Witness, watch, witness_of

T = TypeVar("T")

DEADLINE = 5.0  # seconds, of one call
PAGE = 2_000  # keys
ATTEMPTS = 3  # of a transaction; what calls us decides about more


class EtcdStore:
    def __init__(self, settings: CommonSettings) -> None:
        self._where = ", ".join(settings.etcd)
        self._connection = connect(settings)

    async def close(self) -> None:
        await self._connection.close()

    async def snapshot(self, prefix: str) -> Snapshot:
        return (await self._snapshot(prefix))[0]

    async def _snapshot(self, prefix: str) -> tuple[Snapshot, Position]:
        values: dict[str, bytes] = {}
        witness: tuple[int, str, bytes] | None = None
        end, revision, cluster, next_key = prefix_range_end(prefix), 0, 0, prefix.encode()
        more = True
        while more:
            get = partial(self._connection.kv.get, next_key, end, revision=revision, limit=PAGE, timeout=DEADLINE)
            page = await self._call(get)
            if not revision:
                revision, cluster = page.header.revision, page.header.cluster_id
            for item in page.kvs:
                values[item.key.decode()] = item.value
                if witness is None or item.mod_revision > witness[0]:
                    witness = (item.mod_revision, item.key.decode(), item.value)
            more = page.more
            if more:
                next_key = page.kvs[-1].key + b"\0"
        seen = Witness(*witness) if witness else None
        return Snapshot(revision, values), Position(cluster, revision, seen)

    async def follow(self, prefix: str) -> AsyncGenerator[Snapshot | Batch, None]:
        log = get_logger(etcd=self._where, prefix=prefix)
        backoff = Backoff()
        position: Position | None = None
        while True:
            try:
                if position is None:
                    snapshot, position = await self._snapshot(prefix)
                    yield snapshot
                else:
                    await self._verify(position)
                backoff.reset()
                async with aclosing(watch(self._connection.watch, prefix, position)) as changes:
                    async for batch in changes:
                        position = Position(position.cluster, batch.revision, witness_of(batch) or position.witness)
                        yield batch
            except LostError as error:
                log.warning("reading everything again", reason=str(error))
                position = None
            except (StoreError, grpc.aio.AioRpcError) as error:
                if not backoff.attempts:
                    log.warning("cannot read etcd; trying until it answers", reason=reason(error))
            await asyncio.sleep(backoff.next())

    async def _verify(self, position: Position) -> None:
        """Raises LostError unless etcd still has the history that `position` stands in.

        An etcd that was wiped or restored from an older copy may carry the same cluster id, and a revision that has
        already passed ours. What gives it away is a key that we saw written at a revision: it is not there.
        """
        if position.witness is None:
            raise LostError("nothing was read yet that could show whether this is the same etcd")
        revision, key, value = position.witness
        try:
            page = await self._call(lambda: self._connection.kv.get(key, revision=revision, timeout=DEADLINE))
        except StoreError as error:
            if isinstance(error, UnavailableError):
                raise
            raise LostError(str(error)) from error
        if page.header.cluster_id != position.cluster:
            raise LostError("another etcd cluster answers")
        if page.header.revision < position.revision:
            raise LostError(f"etcd is at revision {page.header.revision}, we have seen {position.revision}")
        found = page.kvs[0] if page.kvs else None
        if found is None or found.mod_revision != revision or found.value != value:
            raise LostError(f"etcd has another history: {key} was not written at revision {revision}")

    async def transact(self, operations: Sequence[Operation], fence: Fence | None = None) -> int:
        if len(operations) > MAX_OPERATIONS:
            raise StoreError(f"{len(operations)} operations in one transaction; the limit is {MAX_OPERATIONS}")
        compare = [KVService.txn_compare_create_revision(fence.key, fence.create_revision)] if fence else []
        success = [
            KVService.txn_op_put(operation.key, operation.value)
            if isinstance(operation, Put)
            else KVService.txn_op_delete(operation.key)
            for operation in operations
        ]
        async for attempt in retrying(UnavailableError, attempts=ATTEMPTS):
            with attempt:
                revision = await self._transact(compare, success)
        if revision is None:
            raise FencedError(f"{fence.key if fence else ''} is held by another: this process is not the leader")
        return revision

    async def _transact(self, compare: list[Compare], success: list[RequestOp]) -> int | None:
        answer = await self._call(lambda: self._connection.kv.txn(compare, success, timeout=DEADLINE))
        return int(answer.header.revision) if answer.succeeded else None

    async def campaign(self, key: str, holder: str, ttl: int) -> "EtcdTerm":
        backoff = Backoff()
        while True:
            try:
                term = await self._try_to_lead(key, holder, ttl)
                if term:
                    return term
                await self._gone(key)
                backoff.reset()
            except StoreError as error:
                get_logger().warning("cannot campaign; trying again", leader_key=key, reason=str(error))
                await asyncio.sleep(backoff.next())

    async def _try_to_lead(self, key: str, holder: str, ttl: int) -> "EtcdTerm | None":
        granted = time.monotonic()
        lease = (await self._call(lambda: self._connection.lease.grant(ttl, timeout=DEADLINE))).ID
        term = None
        try:
            compare = [KVService.txn_compare_create_revision(key, 0)]
            revision = await self._transact(compare, [KVService.txn_op_put(key, holder, lease=lease)])
            if revision is not None:
                term = EtcdTerm(self._connection, Fence(key, revision), lease, granted + ttl, ttl)
        finally:
            if term is None:
                await revoke(self._connection, lease)
        return term

    async def _gone(self, key: str) -> None:
        """Returns when `key` does not exist."""
        # A leader key ends with its service's name, and no other key begins with it.
        async with aclosing(self.follow(key)) as changes:
            async for change in changes:
                if isinstance(change, Snapshot):
                    if key not in change.values:
                        return
                elif not isinstance(change.operations[-1], Put):
                    return

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except (EtcdPermissionDeniedError, EtcdUnauthenticatedError) as error:
            raise StoreError(f"etcd at {self._where} refuses us: {error}. Check user, role and certificate") from error
        except (EtcdError, TimeoutError) as error:
            text = str(error) or f"no answer within {DEADLINE:g} s"
            raise UnavailableError(f"etcd at {self._where}: {text}") from error
        except grpc.aio.AioRpcError as error:
            raise StoreError(f"etcd at {self._where}: {reason(error)}") from error


class EtcdTerm:
    """Leadership by a lease, believed only as long as the local clock allows."""

    def __init__(self, connection: Connection, fence: Fence, lease: int, deadline: float, ttl: int) -> None:
        self.fence = fence
        self._connection = connection
        self._lease = lease
        self._deadline = deadline  # time.monotonic() at which the lease may have run out
        self._ttl = ttl

    async def lost(self) -> str:
        while (left := self._deadline - time.monotonic()) > 0:
            sent = time.monotonic()
            try:
                async with asyncio.timeout(min(left, self._ttl / 3)):
                    ttl = await self._keep_alive()
            except (TimeoutError, grpc.aio.AioRpcError) as error:
                get_logger().warning("lease not kept alive; trying again", reason=reason(error))
            else:
                if ttl <= 0:
                    return "etcd does not know the lease any more"
                # Counted from before the request: the server's clock started after that.
                self._deadline = sent + ttl
            await asyncio.sleep(max(0.0, min(self._ttl / 3, self._deadline - time.monotonic())))
        return "the lease could not be kept alive"

    async def _keep_alive(self) -> int:
        async def requests() -> AsyncIterator[LeaseKeepAliveRequest]:
            yield LeaseKeepAliveRequest(ID=self._lease)

        stream = self._connection.lease._stub.LeaseKeepAlive(requests())  # noqa: SLF001  # its wrapper hides failures
        try:
            async for response in stream:
                return int(response.TTL)
            return 0
        finally:
            stream.cancel()

    async def resign(self) -> None:
        await revoke(self._connection, self._lease)


async def revoke(connection: Connection, lease: int) -> None:
    try:
        await connection.lease.revoke(lease, timeout=1.0)
    except (EtcdError, TimeoutError, grpc.aio.AioRpcError) as error:
        get_logger().info("lease not revoked; it runs out by itself", reason=reason(error))


def reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
