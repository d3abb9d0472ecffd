"""Leadership on etcd: a key bound to a lease, believed only as long as the local clock allows."""

import asyncio
import time

import grpc
from etcd3aio._protobuf import LeaseKeepAliveRequest

from tidegate.runtime.logging import get_logger
from tidegate.store.connection import DEADLINE, Connection
from tidegate.store.protocol import Fence, StoreError, UnavailableError
from tidegate.store.watch import encode_key

REVOKE_DEADLINE = 1.0  # seconds: the lease runs out anyway


class EtcdTerm:
    """See store.protocol.Term."""

    def __init__(self, connection: Connection, fence: Fence, lease: int, deadline: float, ttl: float) -> None:
        """`deadline` is the time.monotonic() at which the lease may have run out, `ttl` in seconds."""
        self.fence = fence
        self._connection = connection
        self._lease = lease
        self._deadline = deadline
        self._ttl = ttl

    async def lost(self) -> str:
        log = get_logger(leader_key=self.fence.key)
        pause = self._ttl / 3
        while True:
            await asyncio.sleep(max(0.0, min(pause, self._deadline - time.monotonic())))
            sent = time.monotonic()
            if sent >= self._deadline:
                return "the lease could not be kept alive"
            try:
                async with asyncio.timeout(self._deadline - sent):
                    ttl = await self._keep_alive()
            except (TimeoutError, StoreError) as error:
                log.warning("lease not kept alive; trying again", reason=str(error) or "no answer in time")
                pause = self._ttl / 20
                continue
            if ttl <= 0:
                return "etcd does not know the lease any more, or was restored from an older copy"
            # Counted from before the request: the server's clock started after that.
            self._deadline = sent + ttl
            pause = self._ttl / 3

    async def _keep_alive(self) -> float:
        """Seconds that the lease lives on, 0 where there is none or the term is void. Raises UnavailableError."""
        newest = self._connection.newest
        async with self._connection.link() as link:
            call = link.keep_alive(timeout=self._ttl / 3)
            try:
                await call.write(LeaseKeepAliveRequest(ID=self._lease))
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise UnavailableError(f"etcd at {link.endpoint} ended the stream of the lease")
            finally:
                call.cancel()
            # An older copy may know the lease, too. A member that lags behind is no sign of that: asked through the
            # leader of the cluster (a linearizable read), it is not behind what a transaction was answered with.
            if response.header.revision < newest:
                page = await link.kv.get(encode_key(self.fence.key), timeout=DEADLINE)
                created = page.kvs[0].create_revision if page.kvs else 0
                if page.header.revision < newest or created != self.fence.create_revision:
                    return 0.0
            return float(response.TTL)

    async def resign(self) -> None:
        await revoke(self._connection, self._lease)


async def revoke(connection: Connection, lease: int) -> None:
    """Ends a lease and removes its keys; where that cannot be done, it runs out by itself."""
    try:
        async with connection.link() as link:
            await link.lease.revoke(lease, timeout=REVOKE_DEADLINE)
    except StoreError as error:
        get_logger().info("lease not revoked; it runs out by itself", reason=str(error))
