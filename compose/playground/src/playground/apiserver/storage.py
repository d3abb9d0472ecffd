"""Objects with versions and a history of events; optionally kept in a journal, so that a killed server comes back."""

import asyncio
import copy
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playground.apiserver.kinds import KINDS, Kind, Object, expired

Key = tuple[str, str]  # namespace ("" for objects of the cluster), name
ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"


@dataclass(frozen=True, slots=True)
class Event:
    version: int
    kind: Kind
    type: str
    object: Object
    before: Object | None


class Storage:
    def __init__(self, history: int = 2000, journal: Path | None = None) -> None:
        self._objects: dict[Kind, dict[Key, Object]] = {kind: {} for kind in KINDS}
        self._events: deque[Event] = deque(maxlen=history)
        self._change = asyncio.Event()
        self.version = 1
        self._oldest = 1  # a watch may begin here or later
        self._journal = journal
        if journal is not None and journal.exists():
            self._replay(journal)

    def _replay(self, journal: Path) -> None:
        kinds = {kind.kind: kind for kind in KINDS}
        for line in journal.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the last line of a server that was killed while it wrote
            self.version = max(self.version, entry["version"])
            if "kind" not in entry:
                continue
            known = self._objects[kinds[entry["kind"]]]
            if entry["object"] is None:
                known.pop(tuple(entry["key"]), None)
            else:
                known[tuple(entry["key"])] = entry["object"]
        # Watchers from before have to list again.
        self._oldest = self.version = self.version + 1
        fresh = journal.with_suffix(".new")
        with fresh.open("w") as file:
            # Versions must go on rising, also past those of objects that are gone.
            file.write(json.dumps({"version": self.version}) + "\n")
            for kind, objects in self._objects.items():
                for key, item in objects.items():
                    file.write(self._line(kind, key, item, int(item["metadata"]["resourceVersion"])))
        fresh.replace(journal)

    @staticmethod
    def _line(kind: Kind, key: Key, item: Object | None, version: int) -> str:
        return json.dumps({"kind": kind.kind, "key": key, "object": item, "version": version}) + "\n"

    def get(self, kind: Kind, key: Key) -> Object | None:
        """A copy, or None."""
        found = self._objects[kind].get(key)
        return copy.deepcopy(found) if found is not None else None

    def all(self, kind: Kind, namespace: str = "") -> list[Object]:
        """The stored objects themselves, in the order of their keys: to read, not to change."""
        return [item for key, item in sorted(self._objects[kind].items()) if not namespace or key[0] == namespace]

    def put(self, kind: Kind, item: Object) -> Object:
        """Stores the object under a new version; one that is equal to what is there keeps its version."""
        key = item["metadata"].get("namespace", ""), item["metadata"]["name"]
        before = self._objects[kind].get(key)
        if before is not None:
            item["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
            if item == before:
                return before
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self._objects[kind][key] = item
        self._emit(kind, key, ADDED if before is None else MODIFIED, item, before)
        return item

    def remove(self, kind: Kind, key: Key) -> Object:
        before = self._objects[kind].pop(key)
        self.version += 1
        gone = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self.version)}}
        self._emit(kind, key, DELETED, gone, before)
        return gone

    def _emit(self, kind: Kind, key: Key, type_: str, item: Object, before: Object | None) -> None:
        if len(self._events) == self._events.maxlen:
            self._oldest = self._events[0].version
        self._events.append(Event(self.version, kind, type_, item, before))
        if self._journal is not None:
            with self._journal.open("a") as file:
                file.write(self._line(kind, key, None if type_ == DELETED else item, self.version))
        self._change.set()
        self._change = asyncio.Event()

    def expire(self) -> None:
        """Forgets the history: watches end, and none can go on from before."""
        self.version += 1
        self._oldest = self.version
        self._events.clear()
        self._change.set()
        self._change = asyncio.Event()

    def events_after(self, version: int) -> Iterator[Event]:
        """Raises StatusError (410) where the history does not reach back that far, or to a version of the future."""
        if not self._oldest <= version <= self.version:
            raise expired()
        newest_first = []
        for event in reversed(self._events):
            if event.version <= version:
                break
            newest_first.append(event)
        return reversed(newest_first)

    async def changed(self, seconds: float) -> bool:
        """Waits for a change, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._change.wait()
        except TimeoutError:
            return False
        return True
