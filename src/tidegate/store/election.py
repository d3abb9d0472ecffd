"""Work that only the leader does."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import Backoff
from tidegate.store.protocol import Fence, Store, StoreError, Term

# In seconds. etcd ends leases up to half a second late: a leader that was killed is replaced within 5 s.
TTL = 4


class _LostError(Exception):
    """Ends the leader's work; the text is the reason."""


async def lead(store: Store, key: str, holder: str, work: Callable[[Fence], Awaitable[None]], ttl: int = TTL) -> None:
    """Campaigns for `key`, does `work` while leader, and campaigns anew when that is over. Never returns.

    `work` is cancelled when leadership is lost; it ends the term itself by FencedError or another StoreError.
    Everything else that it raises is raised here.
    """
    log = get_logger(leader_key=key)
    backoff = Backoff()
    while True:
        term = await store.campaign(key, holder, ttl)
        began = time.monotonic()
        log.info("leading", epoch=term.fence.create_revision)
        try:
            # In a task of its own: up to Python 3.12 a task whose TaskGroup has failed counts as being cancelled ever
            # after (Task.cancelling), and the next call that is cancelled with its channel would end it in silence.
            await asyncio.create_task(_serve(term, work))
        except* (_LostError, StoreError) as group:
            log.warning("no longer leading", reason="; ".join(str(error) for error in group.exceptions))
        finally:
            await term.resign()
        if time.monotonic() - began > ttl:
            backoff.reset()
        await asyncio.sleep(backoff.next())


async def _serve(term: Term, work: Callable[[Fence], Awaitable[None]]) -> None:
    async def watch() -> None:
        raise _LostError(await term.lost())

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        group.create_task(_ended(work(term.fence)))


async def _ended(work: Awaitable[None]) -> None:
    await work
    raise _LostError("the work ended")
