"""Leading: exactly one writes, a lost term ends the work, a clean end hands over at once."""

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from signal import SIGKILL

import pytest

from tidegate.store import Fence, FencedError, Put, StoreError, UnavailableError
from tidegate.store.election import lead
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess
from tidegate.store.memory import MemoryStore

PATIENCE = 30.0
KEY = "/leader/w"
Work = Callable[[Fence], Awaitable[None]]


class Candidate:
    """Runs `lead` and tells what its work was given."""

    def __init__(self, store: MemoryStore | EtcdStore, name: str, key: str = KEY, ttl: int = 2) -> None:
        self.terms: list[Fence] = []
        self.ended = 0
        self.leading = asyncio.Event()
        self.fail: Exception | None = None
        self._failing = asyncio.Event()
        self.task = asyncio.create_task(lead(store, key, name, self._work, ttl))

    async def _work(self, fence: Fence) -> None:
        self.terms.append(fence)
        self.leading.set()
        try:
            await self._failing.wait()
            self._failing.clear()
            if self.fail:
                raise self.fail
        finally:
            self.ended += 1
            self.leading.clear()

    def end_work(self, error: Exception | None) -> None:
        self.fail = error
        self._failing.set()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def leads(candidate: Candidate) -> Fence:
    await asyncio.wait_for(candidate.leading.wait(), PATIENCE)
    return candidate.terms[-1]


async def test_one_leads_and_the_other_follows_when_it_stops() -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    first = await leads(one)
    two = Candidate(store, "two")
    await asyncio.sleep(0.05)
    assert not two.terms
    await one.stop()
    assert one.ended == 1
    second = await leads(two)
    with pytest.raises(FencedError):
        await store.transact([Put("/a", b"")], first)
    await store.transact([Put("/a", b"")], second)
    await two.stop()
    assert store.values(KEY) == {}, "a clean end gives the key back"


async def test_work_is_cancelled_when_the_term_is_lost() -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    first = await leads(one)
    store.expire(KEY)
    async with asyncio.timeout(PATIENCE):
        while len(one.terms) < 2:  # noqa: ASYNC110  # a list of the candidate
            await asyncio.sleep(0.01)
    assert one.ended == 1
    assert one.terms[1].create_revision > first.create_revision
    await one.stop()


@pytest.mark.parametrize("error", [FencedError("x"), UnavailableError("x"), StoreError("x"), None])
async def test_trouble_of_the_store_ends_the_term_only(error: Exception | None) -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    await leads(one)
    one.end_work(error)
    async with asyncio.timeout(PATIENCE):
        while len(one.terms) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await one.stop()


async def test_a_failure_of_the_work_is_raised() -> None:
    store = MemoryStore()
    one = Candidate(store, "one")
    await leads(one)
    one.end_work(ZeroDivisionError())
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(one.task, PATIENCE)
    assert raised.group_contains(ZeroDivisionError)
    assert store.values(KEY) == {}


PROGRAM = """
import asyncio, sys
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Put
from tidegate.store.election import lead
from tidegate.store.etcd import EtcdStore

async def main(endpoint, prefix, name):
    store = EtcdStore(CommonSettings(etcd=(endpoint,)))
    async def work(fence):
        number = 0
        while True:
            number += 1
            await store.transact([Put(prefix + "log", f"{name} {number}".encode())], fence)
            await asyncio.sleep(0.01)
    await lead(store, prefix + "leader", name, work, 2)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_leader_is_replaced_and_never_two_write(
    etcd: EtcdProcess, open_store: Callable[..., EtcdStore], prefix: str
) -> None:
    store = open_store(etcd.endpoint)
    processes = {
        name: await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, etcd.unix, prefix, name)
        for name in ("one", "two")
    }
    written: list[str] = []
    names: list[str] = []
    try:
        async with asyncio.timeout(PATIENCE):
            async for change in store.follow(f"{prefix}log"):
                values = getattr(change, "values", None)
                written += [v.decode() for v in values.values()] if values is not None else []
                written += [o.value.decode() for o in getattr(change, "operations", ()) if isinstance(o, Put)]
                names = [line.split()[0] for line in written]
                if len(names) > 20 and len(set(names)) == 1:
                    victim = processes[names[0]]
                    if victim.returncode is None:
                        victim.send_signal(SIGKILL)
                        await victim.wait()
                if len(set(names)) == 2 and names.count(names[-1]) > 20:
                    break
        switches = sum(1 for a, b in itertools.pairwise(names) if a != b)
        assert switches == 1, "the first wrote, then the other"
    finally:
        for process in processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_terms_that_were_lost_leave_no_trace_in_the_task_that_leads() -> None:
    """A call that is cancelled with its channel is a failure of the store only for a task that nobody cancels."""
    candidate = Candidate(MemoryStore(), "one")
    for error in (FencedError("another leads"), UnavailableError("etcd is gone"), None):
        await leads(candidate)
        terms = len(candidate.terms)
        candidate.end_work(error)
        while len(candidate.terms) == terms:  # noqa: ASYNC110  # nothing tells of the next one
            await asyncio.sleep(0.01)
        assert candidate.task.cancelling() == 0
    await candidate.stop()
