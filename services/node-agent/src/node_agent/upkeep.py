"""What others may undo while the agent runs: the guard (`nft flush ruleset`), forwarding (`sysctl --system`)."""

from collections.abc import Iterable
from pathlib import Path

from node_agent import nft
from node_agent.sysctl import SYSCTL, enable_forwarding, forwards
from tidegate.runtime.logging import get_logger

log = get_logger()


class Upkeep:
    """`repairs` counts what was found undone and done again; `problems`: what → why it cannot be."""

    def __init__(self, pattern: str, uplinks: Iterable[str], sysctl: Path = SYSCTL) -> None:
        self._pattern = pattern
        self._uplinks = tuple(uplinks)
        self._sysctl = sysctl
        self.repairs = 0
        self.problems: dict[str, str] = {}

    async def look(self) -> None:
        """Puts back what is missing."""
        problems = {}
        try:
            if await nft.restore(self._pattern):
                self._repaired("the guard was taken away: installed anew", table="inet tidegate")
        except nft.GuardError as error:
            problems["guard"] = str(error)
        try:
            if not forwards(self._sysctl):
                enable_forwarding(self._uplinks, self._sysctl)
                self._repaired("forwarding was turned off: turned on again", sysctl="net.ipv4.ip_forward")
        except OSError as error:
            problems["forwarding"] = str(error)
        self.problems = problems

    def _repaired(self, text: str, **where: str) -> None:
        self.repairs += 1
        log.warning(text, **where)
