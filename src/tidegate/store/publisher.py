"""The life of a service that writes records: warm while another leads, writing the difference while it leads itself."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing

from tidegate.records import Keyspace, Problem, Record, Synced, encode
from tidegate.runtime import metrics
from tidegate.runtime.collector import settled
from tidegate.runtime.http import Health
from tidegate.runtime.logging import get_logger
from tidegate.store.election import lead
from tidegate.store.marked import made
from tidegate.store.protocol import Delete, Fence, Snapshot, Store
from tidegate.store.writer import MAX_BYTES, Writer

LEADER = metrics.gauge("leader", "1 while this process is the writer.", ("writer",))
WRITES = metrics.counter("store_writes", "Keys written to or deleted from the store.", ("writer",))
PROBLEMS = metrics.gauge("problems", "Objects that could not be understood or do not fit, by kind.", ("writer", "kind"))
PROPAGATION = metrics.histogram(
    "propagation", "From the first event that a transaction holds, as received, to its end.", ("writer",)
)

PROBLEM_RANK = 0
SYNCED_RANK = 9


class Publisher:
    """What a writer service wants in the store, kept there while the service leads.

    `ranks` gives each of the service's prefixes (below `…/v1/`) its place in the order of writes (store.writer).
    Until all of `sources` have been listed nothing is written: what is not known yet must not be deleted.
    `marks` are keys, besides `meta/synced/<name>`, that get the service's Synced when all is written.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        name: str,
        ranks: dict[str, int],
        sources: Iterable[str],
        health: Health,
        marks: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.keys = keys
        self._store = store
        self.health = health
        self._waiting = set(sources)
        self._changed = asyncio.Event()
        self._reload = False
        self._synced = Synced()
        self._since: float | None = None
        self._problems: dict[tuple[str, str, str], str] = {}
        self._too_large: set[str] = set()
        self._leading = False
        self.make_synced: Callable[[Synced], Synced] = lambda synced: synced
        # Called when this service has begun to lead and knows what the store holds, and before each writing.
        self.take_over: Callable[[], None] = lambda: None
        self.prepare: Callable[[], None] = lambda: None
        self._marks = (keys.synced(name), *marks)
        by_prefix = {keys.prefix + prefix: rank for prefix, rank in ranks.items()}
        by_prefix[keys.problems(name)] = PROBLEM_RANK
        by_prefix.update(dict.fromkeys(self._marks, SYNCED_RANK))
        self.writer = Writer(store, by_prefix, lambda key: _rank(by_prefix, key), keys.last_write(name))

    def put(self, key: str, record: Record | None) -> None:
        """`record` is to lie under `key`; None: nothing.

        One that no transaction holds is a problem of its own, and what lies there stays.
        """
        value = None if record is None else encode(record)
        size = len(key) + len(value or b"")
        if size > MAX_BYTES:
            self._too_large.add(key)
            self.problem(*self._words(key), f"its record has {size} bytes, and at most {MAX_BYTES} can be written")
            if key not in self.writer.wanted:
                self.keep(key)
            return
        if key in self._too_large:
            self._too_large.discard(key)
            self.problem(*self._words(key), None)
        self.writer.want(key, value)

    def _words(self, key: str) -> tuple[str, str, str]:
        """The key of a record as kind, namespace and name of a problem."""
        kind, *where = key.removeprefix(self.keys.prefix).split("/")
        return kind, where[0] if len(where) > 1 else "", "-".join(where[1:] or where)

    def keep(self, key: str) -> None:
        """What lies under `key` is to stay as it is."""
        value = self.writer.stored.get(key)
        if value is not None:
            self.writer.want(key, value)

    def problem(
        self,
        kind: str,
        namespace: str,
        name: str,
        reason: str | None,
        last_good: str = "",
        *,
        held_back: bool = False,
    ) -> None:
        """The object cannot be understood, or does not fit (`held_back`), or that is over (no reason).

        Logged once, shown by `tidegate status`. `last_good` is for whoever writes here after a restart
        (records.Problem).
        """
        known = self._problems.get((kind, namespace, name))
        if reason == known:
            return
        if reason is None:
            del self._problems[kind, namespace, name]
        else:
            self._problems[kind, namespace, name] = reason
            get_logger().warning("object refused", kind=kind, namespace=namespace, name=name, reason=reason)
        key = self.keys.problem(self.name, kind, namespace, name)
        kept = last_good if len(last_good) <= MAX_BYTES // 2 else ""
        self.put(key, None if reason is None else Problem(reason=reason[:1000], last_good=kept, held_back=held_back))
        PROBLEMS.labels(self.name, kind).set(sum(1 for known_kind, _, _ in self._problems if known_kind == kind))

    def listed(self, source: str) -> None:
        """All of `source` has been read once."""
        self._waiting.discard(source)
        if self.complete and not self._leading:
            self.health.ready("store")  # to take over; who leads is ready when all is written
            settled()
        self.changed()

    def after(self, source: str) -> Callable[[bool], None]:
        """What to call after each event of a source; True if the event was the whole of it (kube.track)."""
        return lambda listed: self.listed(source) if listed else self.changed()

    def changed(self) -> None:
        """Something is wanted otherwise: it is written as soon as the transaction under way has ended."""
        if self._since is None:
            self._since = time.monotonic()
        self._changed.set()

    @property
    def leading(self) -> bool:
        return self._leading

    @property
    def complete(self) -> bool:
        return not self._waiting

    async def run(self, holder: str, ttl: int) -> None:
        """Campaigns, and writes while leading. Never returns."""
        LEADER.labels(self.name).set(0)
        async with asyncio.TaskGroup() as group:
            for key in (*self._marks, self.keys.last_write(self.name)):
                group.create_task(self._look_after(key))
            group.create_task(lead(self._store, self.keys.leader(self.name), holder, self._lead, ttl))

    async def _look_after(self, key: str) -> None:
        """Where a key goes that this service wrote, or the store was replaced, all of it is compared again."""
        seen = False
        async with aclosing(self._store.follow(key)) as changes:
            async for change in changes:
                if isinstance(change, Snapshot):
                    self._reload |= change.regressed or (seen and key not in change.values)
                else:
                    self._reload |= Delete(key) in change.operations
                seen = True
                if self._reload:
                    self.changed()

    async def _lead(self, fence: Fence) -> None:
        LEADER.labels(self.name).set(1)
        self._leading = True
        try:
            await self._load(fence)
            self.take_over()
            first = True
            while True:
                self._changed.clear()
                if self.complete:
                    await self._flush(fence)
                    self.health.ready("store")
                    if first:
                        settled()
                    first = False
                else:
                    self.health.not_ready("store", f"not listed yet: {', '.join(sorted(self._waiting))}")
                await self._changed.wait()
        finally:
            self._leading = False
            LEADER.labels(self.name).set(0)

    async def _load(self, fence: Fence) -> None:
        self._reload = False
        await self.writer.load(fence)
        # Later than all marks before, whatever the clocks of their writers said: readers tell old copies by it.
        before = max(made(self.writer.stored.get(mark)) for mark in self._marks)
        self._synced = Synced(
            epoch=fence.create_revision, loaded=max(time.time_ns(), before + 1, self._synced.loaded + 1)
        )

    async def _flush(self, fence: Fence) -> None:
        if self._reload:
            await self._load(fence)
        self.prepare()
        for mark in self._marks:
            self.put(mark, self.make_synced(self._synced))
        since, self._since = self._since, None
        written = await self.writer.flush(fence)
        if written:
            WRITES.labels(self.name).inc(written)
            if since is not None:
                PROPAGATION.labels(self.name).observe(time.monotonic() - since)


def _rank(by_prefix: dict[str, int], key: str) -> int:
    return max((rank for prefix, rank in by_prefix.items() if key.startswith(prefix)), default=0)
