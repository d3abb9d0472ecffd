"""From what the tables plan to the maps of the kernel, step by step."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from node_agent.maps import Maps
from node_agent.table import ORDER, REACHED_FROM, Step, Tables
from tidegate.runtime import metrics
from tidegate.runtime.logging import get_logger

SMALL = 64  # entries that are written at once, and not where `run` carries them out

WRITES = metrics.counter("map_writes", "Entries written to or removed from maps.", ("map",))

log = get_logger()


class Writer:
    """`run` carries out a blocking call, one after the other, where it holds up nobody."""

    def __init__(self, tables: Tables, maps: Maps, run: Callable[[Callable[[], int]], Awaitable[int]]) -> None:
        self._tables = tables
        self._maps = maps
        self._run = run
        self.full: dict[str, str] = {}  # map → why what is wanted there is not there
        self.written: Counter[str] = Counter()  # map → entries written or removed
        for name in ORDER:
            WRITES.labels(name)  # told from the beginning: an agent that finds all as it should be writes nothing

    async def write(self) -> tuple[Sequence[Step], bool]:
        """All that is due. The steps, and whether some map has entries left that should be others, or gone."""
        steps = self._tables.plan()
        before, self.full = self.full, {}
        outdated: set[str] = set()
        for step in steps:
            # Nothing may lead to an entry that found no room, and nothing goes that may still be led to.
            if step.puts:
                hindered = any(step.map in REACHED_FROM[full] for full in self.full)
            else:
                hindered = not REACHED_FROM[step.map].isdisjoint(outdated)
            # What cannot be done now is tried again later.
            if (hindered or not await self._carry_out(step)) and self._tables.outdated(step):
                outdated.add(step.map)
        for name in self.full.keys() - before.keys():
            log.warning("map full", map=name, reason=self.full[name])
        return steps, bool(outdated)

    async def _carry_out(self, step: Step) -> bool:
        """Whether there was room for all of it."""
        # To hand a step over to another thread and back takes as long as writing some hundred entries.
        small = len(step.puts) + len(step.deletes) <= SMALL
        count = self._step(step) if small else await self._run(lambda: self._step(step))
        puts = step.puts if count == len(step.puts) else dict(islice(step.puts.items(), count))
        # Of a map that turned out to be full, too: what was written must be known, or it could never be removed.
        self._tables.done(step.map, puts, step.deletes)
        self.written[step.map] += count
        WRITES.labels(step.map).inc(count)
        if len(puts) == len(step.puts):
            return True
        self.full[step.map] = f"map {step.map}: full, it holds {self._maps[step.map].max_entries} entries"
        return False

    def _step(self, step: Step) -> int:
        """How many entries were written or removed: fewer than the step has where the map is full."""
        opened = self._maps[step.map]
        if step.deletes:
            opened.delete_all(step.deletes)
            return len(step.deletes)
        return opened.update_all(step.puts)
