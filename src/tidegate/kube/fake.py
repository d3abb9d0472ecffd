"""An API server in memory for tests: the raw side of `list_watch`, with the troubles of a real one on demand."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import msgspec

from tidegate.kube.client import ApiError
from tidegate.kube.watch import GoneError, NotServed, Unreachable


class Event(NamedTuple):
    version: int
    item: dict[str, Any]
    raw: bytes


class FakeApi:
    """Objects as JSON-like dictionaries, by path of their resource. `put` and `delete` are events for watchers."""

    def __init__(self) -> None:
        self.available = True
        self.lists = 0
        self.requests: list[tuple[str, str]] = []  # method and path, of other than lists and watches
        self.forbids = False  # whatever is neither list nor watch
        self.unserved: set[str] = set()  # paths of kinds that it does not know
        self._version = 1
        self._oldest = 0
        self._objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        self._events: dict[str, list[Event]] = {}  # by path, in the order of their versions
        self._cuts = 0
        self._change = asyncio.Event()

    def put(self, path: str, item: dict[str, Any]) -> None:
        metadata = item.setdefault("metadata", {})
        key = metadata.get("namespace", ""), metadata["name"]
        known = self._objects.setdefault(path, {})
        kind = "MODIFIED" if key in known else "ADDED"
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        known[key] = item
        self._emit(path, kind, item)

    def delete(self, path: str, namespace: str, name: str) -> None:
        item = self._objects[path].pop((namespace, name))
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._emit(path, "DELETED", item)

    async def get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:  # noqa: ARG002
        await self._answered()
        self.requests.append(("GET", path))
        return self._objects[path.rpartition("/")[0]][self._key(path)]

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises ApiError (409) where there is one of that name, Unreachable."""
        await self._answered()
        self.requests.append(("POST", path))
        key = body["metadata"]["namespace"], body["metadata"]["name"]
        if key in self._objects.setdefault(path, {}):
            raise ApiError(409, f"{key[1]} already exists")
        self._objects[path][key] = body
        return body

    async def merge(self, path: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Of the first level only."""
        await self._answered()
        self.requests.append(("PATCH", path))
        item = self._objects[path.rpartition("/")[0]][self._key(path)]
        item.update(patch)
        return item

    @staticmethod
    def _key(path: str) -> tuple[str, str]:
        *_, namespace, _, name = path.split("/")
        return namespace, name

    async def _answered(self) -> None:
        await asyncio.sleep(0)
        if not self.available:
            raise Unreachable("switched off")
        if self.forbids:
            raise ApiError(403, "forbidden")

    def objects(self, path: str) -> list[dict[str, Any]]:
        return list(self._objects.get(path, {}).values())

    def expire(self) -> None:
        """Forgets the history: a watch that is opened now from an older version gets 410."""
        self._oldest = self._version
        self._events.clear()
        self.cut()

    def cut(self) -> None:
        """Ends all watches."""
        self._cuts += 1
        self._wake()

    def set_available(self, available: bool) -> None:
        self.available = available
        self.cut()

    def _emit(self, path: str, kind: str, item: dict[str, Any]) -> None:
        raw = msgspec.json.encode({"type": kind, "object": item})
        self._events.setdefault(path, []).append(Event(self._version, item, raw))
        self._wake()

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def pages(self, path: str, fields: str) -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0)
        if not self.available:
            raise Unreachable("switched off")
        if path in self.unserved:
            raise NotServed(path)
        self.lists += 1
        items = [item for item in self._objects.get(path, {}).values() if _selects(fields, item)]
        yield msgspec.json.encode({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def watch(self, path: str, fields: str, resource_version: str) -> AsyncGenerator[bytes, None]:
        position, cuts = int(resource_version), self._cuts
        if not self.available:
            raise Unreachable("switched off")
        if path in self.unserved:
            raise NotServed(path)
        if position < self._oldest:
            raise GoneError("too old resource version")
        while cuts == self._cuts:
            events = self._events.get(path, [])
            news = events[bisect_right(events, position, key=lambda event: event.version) :]
            for event in news:
                position = event.version
                if _selects(fields, event.item):
                    yield event.raw
            if not news:
                await self._change.wait()


def _selects(fields: str, item: dict[str, Any]) -> bool:
    """Of field selectors the one by name alone."""
    return not fields or fields == f"metadata.name={item['metadata']['name']}"
