"""Frees sockets that are stuck to a backend that is gone: those that our programs gave it, of pods and of the node."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from node_agent.departures import Departed, Departures, Given
from node_agent.maps import Map
from node_agent.visits import Visits, Wanted
from tidegate.records import Protocol
from tidegate.runtime import metrics
from tidegate.runtime.logging import get_logger

T = TypeVar("T")

# Seconds between a change and the look at sockets, for changes that come together, and for programs that took a backend
# just before it went and have not noted it yet.
SETTLE = 0.2
AGAIN = 5.0  # seconds until another try, where the kernel did not do it

FREED = metrics.counter("sockets_freed", "Sockets ended because their backend is gone.")

log = get_logger()

Sockets = dict[int, tuple[Given, bytes]]  # cookie → what the socket was given, key in socket_peers


class Releaser:
    """`freed` counts sockets; `problems`: what → why it cannot be done. One thread of its own: visits take a while."""

    def __init__(self, peers: Map, departures: Departures, visits: Visits) -> None:
        self._peers = peers
        self._departures = departures
        self._visits = visits
        self._thread = ThreadPoolExecutor(1, "sockets")
        self._due = asyncio.Event()
        self.freed = 0
        self.problems: dict[str, str] = {}

    def look(self) -> None:
        """To be called when the maps have been brought up to the views: no new socket gets what has gone."""
        if self._departures.pending:
            self._due.set()

    def close(self) -> None:
        """After `run` has been cancelled: what the thread has begun it ends."""
        self._thread.shutdown()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._due.wait()
            await asyncio.sleep(SETTLE)
            self._due.clear()
            departed = self._departures.take()
            try:
                await self._attend(departed)
            except OSError as error:
                self.problems = {"stuck sockets": f"{error}: sockets of backends that are gone stay"}
                log.warning("cannot free sockets; trying again", reason=str(error))
                self._departures.again(departed)
                await asyncio.sleep(AGAIN)
                self._due.set()

    async def _attend(self, departed: Departed) -> None:
        self.problems = {}
        given = await self._in_thread(lambda: self._given(departed.addresses))
        stuck = {c: item for c, item in given.items() if self._departures.is_stuck(item[0], departed.pods)}
        if not stuck:
            return
        count, hidden = await self._in_thread(lambda: self._end(stuck))
        self.freed += count
        FREED.inc(count)
        if count:
            log.info("sockets of backends that are gone ended", sockets=count)
        if hidden:
            self.problems = {
                "stuck sockets": f"{hidden} processes of the pods cannot be seen; sockets of backends that are gone "
                "may stay: the visitor, or the agent without one, must be in the machine's PID namespace (hostPID), "
                "and AppArmor must let it look at them"
            }

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _given(self, addresses: frozenset[bytes] | None) -> Sockets:
        """The sockets that were given a backend at one of the addresses (None: at any)."""
        entries = self._peers.items() if addresses is None else self._peers.having("addr", addresses)
        return dict(self._read(key, value) for key, value in entries.items() if self._peers.key.unpack(key)["reverse"])

    def _read(self, raw: bytes, value: bytes) -> tuple[int, tuple[Given, bytes]]:
        key, selection = self._peers.key.unpack(raw), self._peers.value.unpack(value)["service"]
        return int(key["cookie"]), (Given(key["protocol"], key["addr"], key["port"], selection), raw)

    def _end(self, stuck: Sockets) -> tuple[int, int]:
        """How many sockets were ended; how many processes could not be looked at."""
        ended, hidden = self._visits.end(
            [Wanted(each.protocol, cookie, each.address, each.port) for cookie, (each, _) in stuck.items()]
        )
        # Those of TCP that were not found have been closed. Without a connection a UDP socket needs its entry.
        over = [key for cookie, (each, key) in stuck.items() if cookie in ended or each.protocol == Protocol.TCP]
        self._peers.delete_all(over)
        return len(ended), hidden
