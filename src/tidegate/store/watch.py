"""One watch of etcd, from a position on, revision by revision."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

from etcd3aio._protobuf import WatchCreateRequest, WatchRequest, WatchStub
from etcd3aio.kv import prefix_range_end

from tidegate.store.protocol import Batch, Delete, Operation, Put

DELETE_EVENT = 1  # mvccpb.Event.DELETE


class LostError(Exception):
    """The watch cannot go on from its position: everything has to be read again. The text says why."""


class Witness(NamedTuple):
    """A write that was seen: as long as etcd can show it, it is the history that we know."""

    revision: int
    key: str
    value: bytes


class Position(NamedTuple):
    """The last revision whose changes were all given out, and where."""

    cluster: int
    revision: int
    witness: Witness | None


def witness_of(batch: Batch) -> Witness | None:
    for operation in batch.operations:
        if isinstance(operation, Put):
            return Witness(batch.revision, operation.key, operation.value)
    return None


async def watch(stub: WatchStub, prefix: str, position: Position) -> AsyncGenerator[Batch, None]:
    """All changes after `position`. Raises LostError, and AioRpcError when the connection breaks."""
    request = WatchCreateRequest(
        key=prefix.encode(),
        range_end=prefix_range_end(prefix),
        start_revision=position.revision + 1,
        progress_notify=True,
        # A revision may be larger than a message: without this, etcd sends it whole, with it, in parts.
        fragment=True,
    )

    done = asyncio.Event()

    async def requests() -> AsyncIterator[WatchRequest]:
        yield WatchRequest(create_request=request)
        await done.wait()  # a watch ends with its stream of requests

    stream = stub.Watch(requests())
    held: list[Operation] = []  # changes of `revision`, of which there may be more to come
    revision = position.revision
    try:
        async for response in stream:
            _check(response, position)
            for event in response.events:
                if event.kv.mod_revision != revision:
                    if held:
                        yield Batch(revision, held)
                        held = []
                    revision = event.kv.mod_revision
                key = event.kv.key.decode()
                held.append(Delete(key) if event.type == DELETE_EVENT else Put(key, event.kv.value))
            # etcd splits a revision only over the fragments of one response.
            if held and not response.fragment:
                yield Batch(revision, held)
                held = []
    finally:
        done.set()
        stream.cancel()


def _check(response: Any, position: Position) -> None:
    if response.compact_revision:
        raise LostError(f"etcd has compacted its history up to {response.compact_revision}")
    if response.canceled:
        raise LostError(f"etcd ended the watch: {response.cancel_reason or 'no reason given'}")
    if response.header.cluster_id != position.cluster:
        raise LostError("another etcd cluster answers")
    if response.header.revision < position.revision:
        raise LostError(f"etcd is at revision {response.header.revision}, we have seen {position.revision}")
