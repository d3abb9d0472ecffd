"""What the programs have noted, as the agent reads it out of the kernel's maps and writes it down."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.bpf.kernel import Loaded
from tests.node_agent.netns import until
from tests.node_agent.world import OWN, Agent

from node_agent import policylog
from node_agent.loader.pins import possible_cpus
from node_agent.maps import Maps
from node_agent.policylog import LOG_DENIED, LOST, PolicyLog
from node_agent.programsettings import SETTING_LOG, SETTING_LOG_ROUND, SETTING_LOG_TOLD
from tidegate.records import Logging

pytestmark = pytest.mark.root

ALLOW, DENY, AUDIT = 2, 3, 4
Row = dict[str, Any]


class Log:
    def __init__(self, loaded: Loaded, path: Path) -> None:
        self.loaded, self.path = loaded, path
        self.maps = Maps(loaded.manifest.maps)
        self.lose(ALLOW, 0)
        self.lose(DENY, 0)
        self.lose(AUDIT, 0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PolicyLog]:
        with ThreadPoolExecutor(1) as worker:
            log = PolicyLog(self.loaded.manifest, self.maps, worker, OWN, Agent().view, self.path)
            task = asyncio.create_task(log.run())
            try:
                yield log
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def deny(self, port: int, count: int, rounds: int = 0, audited: int = 0) -> None:
        """As the programs note it in the present round, or so many later."""
        ends = {"initiator": "10.0.0.1", "responder": "10.0.0.2", "responder_port": port}
        key = {**ends, "protocol": 6, "direction": 1, "audited": audited}
        current = self.loaded.maps["settings"].get({"value": SETTING_LOG_ROUND})
        assert current is not None
        self.loaded.maps["log_denied"].set({**key, "round": current["value"] + rounds}, {"count": count})

    def lose(self, index: int, packets: int) -> None:
        """So many in all, on each CPU."""
        raw = struct.pack("=QQ", packets, 0) * possible_cpus()
        self.maps["events_lost"].update(struct.pack("=I", index), raw)

    def rows(self) -> list[Row]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def denied(self) -> list[tuple[int, int]]:
        return [(row["connection"]["dest_port"], row["count"]) for row in self.rows() if "lost" not in row]

    def lost(self) -> list[Row]:
        return [row["lost"] for row in self.rows() if "lost" in row]


@pytest.fixture
def log(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(policylog, "READ", 0.01)
    monkeypatch.setattr(policylog, "ROUND", 0.02)
    return Log(loaded, tmp_path / "log")


async def test_each_round_is_written_once(log: Log) -> None:
    async with log.running() as policy_log:
        policy_log.apply(Logging(denied=True))
        log.deny(80, 7)
        await until("the first round", lambda: log.denied() == [(80, 7)])
        log.deny(80, 2)
        log.deny(81, 1)
        await until("the second", lambda: len(log.denied()) == 3)
        assert sorted(log.denied()) == [(80, 2), (80, 7), (81, 1)]
        assert log.loaded.maps["log_denied"].items() == []


async def test_the_round_that_begins_is_left_to_the_programs(log: Log) -> None:
    log.deny(80, 7)
    log.deny(81, 1, rounds=1)
    with ThreadPoolExecutor(1) as worker:
        policy_log = PolicyLog(log.loaded.manifest, log.maps, worker, OWN, Agent().view, log.path)
        assert [row["count"] for row in await policy_log._denied()] == [7]
        assert [value["count"] for _, value in log.loaded.maps["log_denied"].items()] == [1]
        assert [row["count"] for row in await policy_log._denied()] == [1]


async def test_what_was_noted_before_it_was_switched_off_is_written(log: Log) -> None:
    async with log.running() as policy_log:
        policy_log.apply(Logging(denied=True))
        log.deny(80, 7)
        policy_log.apply(Logging())
        await until("the last round", lambda: log.denied() == [(80, 7)])
        assert log.loaded.maps["settings"].get({"value": SETTING_LOG}) == {"value": 0}


async def test_audit_is_written_without_being_asked_for(log: Log) -> None:
    async with log.running() as policy_log:
        policy_log.apply(Logging(), audited=True)
        log.deny(80, 7, audited=1)
        log.lose(AUDIT, 2)
        await until("what passed, and the loss", lambda: len(log.rows()) == 2)
        assert [row["disposition"] for row in log.rows() if "lost" not in row] == ["audit"]
        assert log.lost() == [{"audit": 2 * possible_cpus()}]
        log.deny(80, 1, audited=1)
        await until("another round", lambda: log.denied() == [(80, 7), (80, 1)])
        assert len(log.lost()) == 1
        policy_log.apply(Logging())
        log.deny(81, 1, audited=1)
        await until("the last round", lambda: log.denied()[2:] == [(81, 1)])
    async with log.running() as policy_log:
        assert policy_log.bits == 0


async def test_another_agent_goes_on(log: Log) -> None:
    """With what its predecessor had been told to note, and with what was noted and lost meanwhile."""
    async with log.running() as policy_log:
        policy_log.apply(Logging(denied=True))
        log.lose(ALLOW, 5)
        await until("the loss", lambda: log.lost() == [{"allow": 5 * possible_cpus()}])
        told = {"value": SETTING_LOG_TOLD + ALLOW - LOST["allow"]}
        await until("that it is told", lambda: log.loaded.maps["settings"].get(told) == {"value": 5 * possible_cpus()})
    log.deny(80, 7)
    log.lose(ALLOW, 8)
    log.lose(DENY, 1)
    async with log.running() as policy_log:
        assert policy_log.bits == LOG_DENIED
        await until("what was noted", lambda: log.denied() == [(80, 7)])
        await until("what was lost", lambda: len(log.lost()) == 2)
        assert log.lost()[1] == {"allow": 3 * possible_cpus(), "deny": possible_cpus()}
        for rounds in (2, 3):  # what has been told is not told again in the rounds to come
            log.deny(81, 1)
            await until("another round", partial(lambda count: len(log.denied()) == count, rounds))
        assert len(log.lost()) == 2
        # Fresh counters begin anew.
        log.lose(ALLOW, 2)
        await until("what was lost since", lambda: log.lost()[2:] == [{"allow": 2 * possible_cpus()}])


async def test_a_file_that_takes_nothing_is_a_problem_and_the_records_are_counted(log: Log) -> None:
    place = log.path
    log.path = place / "in" / "it"
    place.touch()
    async with log.running() as policy_log:
        policy_log.apply(Logging(denied=True))
        log.deny(80, 7)
        log.lose(DENY, 3)
        await until("the problem", lambda: "cannot be written" in policy_log.problems.get("policy log", ""))
        place.unlink()
        await until("what was lost", lambda: bool(log.lost()))
        assert log.lost() == [{"deny": 3 * possible_cpus(), "unwritten": 1}]
        assert policy_log.problems == {}
