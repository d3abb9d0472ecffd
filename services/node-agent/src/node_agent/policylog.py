"""The policy log: what the programs noted of allowed connections and denied packets becomes records in a file.

The programs decide what is noted and how much (types.h, LOG_*): here nothing is thrown away. What they could not note,
and what could not be written, is told in the log itself.
"""

import asyncio
import struct
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import msgspec

from node_agent.grace import wait_for_programs
from node_agent.layout import Form
from node_agent.loader import Manifest
from node_agent.logfile import LogFile
from node_agent.logrecords import LogRecords, Row
from node_agent.maps import Map
from node_agent.monitor import Ring
from node_agent.programsettings import SETTING_LOG, SETTING_LOG_ROUND, SETTING_LOG_TOLD, ProgramSettings
from node_agent.view import View
from tidegate.records import Logging
from tidegate.runtime.logging import get_logger

DEFAULT_PATH = Path("/var/log/network/policy_action.log")
READ = 0.5  # seconds between readings of what was allowed
ROUND = 5.0  # seconds over which what is denied is counted together

LOG_ALLOWED, LOG_DENIED, LOG_ALLOWED_MARKED, LOG_DENIED_MARKED, LOG_AUDITED = 0x1, 0x2, 0x4, 0x8, 0x10
LOST = {"allow": 2, "deny": 3, "audit": 4}  # disposition → index in events_lost

log = get_logger()


def bits(logging: Logging, audited: bool = False) -> int:
    """LOG_* of what is to be noted; `audited`: something here is in audit.

    >>> bits(Logging()), bits(Logging(allowed=True, denied=True)), bits(Logging(denied=True, denied_delegated=True))
    (0, 3, 8)
    """
    allowed = LOG_ALLOWED_MARKED if logging.allowed_delegated else LOG_ALLOWED
    denied = LOG_DENIED_MARKED if logging.denied_delegated else LOG_DENIED
    return allowed * logging.allowed | denied * logging.denied | LOG_AUDITED * audited


class PolicyLog:
    def __init__(
        self, manifest: Manifest, maps: Mapping[str, Map], worker: Executor, node: str, view: View, path: Path
    ) -> None:
        """`worker`: in which maps are read, and closed."""
        self._worker = worker
        self._manifest = manifest
        self._maps = maps
        self._settings = ProgramSettings(maps["settings"])
        self._records = LogRecords(node, view)
        self._path = path
        self._file = LogFile(path)
        self._form = Form(manifest.maps["log_allowed"].value)
        self._noted: list[bytes] = []
        self._unwritten = 0
        self.bits = self._settings.get(SETTING_LOG)  # LOG_*, of an earlier agent: its programs have noted on
        self._on = asyncio.Event()
        if self.bits:
            self._on.set()
        self.problems: dict[str, str] = {}

    def apply(self, logging: Logging, audited: bool = False) -> None:
        """From now on this is noted."""
        wanted = bits(logging, audited)
        if wanted != self.bits:
            self._settings.set(SETTING_LOG, wanted)
            self.bits = wanted
            self._on.set()

    async def run(self) -> None:
        """Never returns. Costs nothing while nothing is logged."""
        ring = Ring(self._manifest.maps["log_allowed"].path, self._noted.append)
        due = time.monotonic() + ROUND
        try:
            while True:
                await self._on.wait()
                await asyncio.sleep(READ)
                ending = not self.bits
                rows = self._allowed(ring)
                lost: dict[str, int] = {}
                if ending or time.monotonic() >= due:
                    due = time.monotonic() + ROUND
                    rows += await self._denied()
                    lost = self._lost()
                    if lost:
                        rows.append(self._records.lost(lost, time.time_ns()))
                if rows and await self._write(rows):
                    self._told(lost)
                if ending and not self.bits:
                    self._on.clear()
        finally:
            ring.close()

    async def _write(self, rows: list[Row]) -> bool:
        try:
            await asyncio.to_thread(self._file.write, [msgspec.json.encode(row) for row in rows])
        except OSError as error:
            self._unwritten += sum(1 for row in rows if "lost" not in row)
            if not self.problems:
                log.warning("cannot write the policy log; trying again", path=str(self._path), reason=str(error))
            self.problems = {"policy log": f"{self._path} cannot be written: {error.strerror or error}"}
            return False
        self.problems = {}
        return True

    def _allowed(self, ring: Ring) -> list[Row]:
        ring.consume()
        events = [self._form.unpack(raw[: self._form.size]) for raw in self._noted]
        self._noted.clear()
        since_boot = _boot()
        return [self._records.allowed(event, event["time"] + since_boot) for event in events]

    async def _denied(self) -> list[Row]:
        """What the round counted that ends now. No program writes there any more when it is read."""
        current = (self._settings.get(SETTING_LOG_ROUND) + 1) & 0xFFFFFFFF
        self._settings.set(SETTING_LOG_ROUND, current)
        await asyncio.to_thread(wait_for_programs)
        since_boot = _boot()
        found = await asyncio.get_running_loop().run_in_executor(self._worker, self._take_all_but, current)
        return [self._records.denied(key, value["count"], value["time"] + since_boot) for key, value in found]

    def _take_all_but(self, current: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Keys and values of other rounds, and takes them out of the map."""
        opened = self._maps["log_denied"]
        start, size = opened.key.place("round")
        current_raw = struct.pack("=I", current)
        ended = {key: value for key, value in opened.items().items() if key[start : start + size] != current_raw}
        opened.delete_all(list(ended))
        return [(opened.key.unpack(key), opened.value.unpack(value)) for key, value in ended.items()]

    def _lost(self) -> dict[str, int]:
        """What was lost since it was last told."""
        found = {name: self._total(index) - self._told_so_far(index) for name, index in LOST.items()}
        return {name: number for name, number in {**found, "unwritten": self._unwritten}.items() if number}

    def _told(self, lost: Mapping[str, int]) -> None:
        for name, number in lost.items():
            if name in LOST:
                index = LOST[name]
                # What has been lost meanwhile is for the next time.
                self._settings.set(SETTING_LOG_TOLD + index - LOST["allow"], self._told_so_far(index) + number)
            else:
                self._unwritten -= number

    def _told_so_far(self, index: int) -> int:
        told = self._settings.get(SETTING_LOG_TOLD + index - LOST["allow"])
        # The counters are the programs': fresh ones begin anew.
        return told if told <= self._total(index) else 0

    def _total(self, index: int) -> int:
        return self._maps["events_lost"].sums(index)["packets"]


def _boot() -> int:
    """Unix time, ns, at which the kernel's monotonic clock stood at zero."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
