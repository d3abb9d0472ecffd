"""An API server of many objects, cheap enough to be measured against: it keeps bytes, and decodes none of them.

It lists in pages and watches, with bookmarks, and 410 for what is forgotten; it takes any Event, and has none of the
other ways to write. tests.scale.cluster fills it.
"""

import asyncio
import itertools
import sys
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from endpoint_sync.masquerade import CONFIG
from tidegate.kube.watch import (
    ENDPOINT_SLICES,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    PODS,
    SERVICES,
    GoneError,
    NotServed,
)

Key = tuple[str, str]  # namespace (empty for objects of the cluster), name
Item = tuple[str, Key, bytes]  # path of the kind, key, JSON

PAGE = 500
HISTORY = 100_000  # events
BOOKMARK_EVERY = 60.0  # seconds
PATHS = {
    resource.path: resource.kind
    for resource in (NAMESPACES, NODES, PODS, SERVICES, ENDPOINT_SLICES, NETWORK_POLICIES, CONFIG)
}


@dataclass(slots=True)
class _Kind:
    objects: dict[Key, bytes] = field(default_factory=dict)
    order: list[Key] = field(default_factory=list)  # sorted


class LoadedApi:
    """The objects, and what happens to them. The raw side of tidegate.kube.watch.list_watch, without a network."""

    def __init__(self) -> None:
        self.version = 1
        self.lists = 0  # that were begun
        self._kinds: dict[str, _Kind] = {path: _Kind() for path in PATHS}
        self._events: deque[tuple[int, str, bytes]] = deque(maxlen=HISTORY)
        self._change = asyncio.Event()

    def fill(self, items: Iterable[Item]) -> None:
        """What is there from the beginning."""
        for path, key, item in items:
            self._kinds[path].objects[key] = item
        for kind in self._kinds.values():
            kind.order = sorted(kind.objects)

    @property
    def size(self) -> int:
        """Objects in all."""
        return sum(len(kind.objects) for kind in self._kinds.values())

    @property
    def next_version(self) -> int:
        """Of the object that is put next."""
        return self.version + 1

    def put(self, path: str, key: Key, item: bytes) -> None:
        kind = self._kinds[path]
        word = b"MODIFIED"
        if key not in kind.objects:
            word = b"ADDED"
            insort(kind.order, key)
        kind.objects[key] = item
        self._emit(path, word, item)

    def delete(self, path: str, key: Key, item: bytes) -> None:
        """`item` is its last state, under a version of its own."""
        kind = self._kinds[path]
        del kind.objects[key], kind.order[bisect_left(kind.order, key)]
        self._emit(path, b"DELETED", item)

    def _emit(self, path: str, word: bytes, item: bytes) -> None:
        self.version += 1
        self._events.append((self.version, path, b'{"type":"%s","object":%s}' % (word, item)))
        self._change.set()
        self._change = asyncio.Event()

    def page(self, path: str, limit: int, token: str) -> tuple[bytes, str]:
        """So many objects behind the token, and the next token; the last page has none."""
        kind = self._kinds[path]
        version, start = str(self.version), 0
        if token:
            version, *after = msgspec.json.decode(token, type=tuple[str, str, str])
            start = bisect_right(kind.order, tuple(after))
        else:
            self.lists += 1
        keys = kind.order[start : start + limit]
        following = ""
        if start + limit < len(kind.order):
            following = msgspec.json.encode((version, *keys[-1])).decode()
        head = {"kind": f"{PATHS[path]}List", "metadata": {"resourceVersion": version, "continue": following}}
        body = b",".join([kind.objects[key] for key in keys])
        return b'%s,"items":[%s]}' % (msgspec.json.encode(head)[:-1], body), following

    async def pages(self, path: str, fields: str) -> AsyncGenerator[bytes, None]:  # noqa: ARG002
        if path not in self._kinds:
            raise NotServed(path)
        token = ""
        while True:
            page, token = self.page(path, PAGE, token)
            yield page
            await asyncio.sleep(0)
            if not token:
                return

    async def watch(self, path: str, fields: str, resource_version: str) -> AsyncGenerator[bytes, None]:  # noqa: ARG002
        if path not in self._kinds:
            raise NotServed(path)
        position = int(resource_version)
        while True:
            change = self._change
            position, lines = self.events_after(position, path)
            for line in lines:
                yield line
            if change is self._change:
                await change.wait()

    def events_after(self, position: int, path: str) -> tuple[int, list[bytes]]:
        """Raises GoneError where the history does not reach back that far."""
        missing = self.version - position
        if missing > len(self._events):
            raise GoneError("too old resource version")
        recent = itertools.islice(reversed(self._events), missing)
        lines = [line for _, where, line in recent if where == path]
        return self.version, lines[::-1]

    async def changed(self, seconds: float) -> None:
        """Waits for the next event, at most so long."""
        change = self._change
        try:
            async with asyncio.timeout(seconds):
                await change.wait()
        except TimeoutError:
            return

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Events that the services tell: they go nowhere."""
        return {**body, "path": path}

    async def get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        raise NotServed(f"{path} {query}")

    async def merge(self, path: str, patch: dict[str, Any]) -> dict[str, Any]:
        return {**patch, "path": path}


class Routes:
    def __init__(self, api: LoadedApi) -> None:
        self._api = api

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.method == "POST" and request.path.endswith("/events"):
                return _json(await request.read(), 201)
            if request.method != "GET" or request.path not in PATHS:
                return _status(404, f"{request.method} {request.path}: there is none")
            if request.query.get("watch") in ("1", "true"):
                return await self._watch(request)
            limit = int(request.query.get("limit") or 0) or sys.maxsize
            return _json(self._api.page(request.path, limit, request.query.get("continue", ""))[0])
        except GoneError as error:
            return _status(410, str(error))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        position, lines = self._api.events_after(int(request.query["resourceVersion"]), request.path)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        ends = loop.time() + float(request.query.get("timeoutSeconds", 3600))
        told = loop.time()
        while loop.time() < ends:
            if lines:
                await response.write(b"\n".join(lines) + b"\n")
            elif loop.time() >= told + BOOKMARK_EVERY:
                told = loop.time()
                await response.write(_bookmark(PATHS[request.path], position))
            if self._api.version == position:
                await self._api.changed(min(ends, told + BOOKMARK_EVERY) - loop.time())
            position, lines = self._api.events_after(position, request.path)
        await response.write_eof()
        return response


def _bookmark(kind: str, version: int) -> bytes:
    item = {"kind": kind, "metadata": {"resourceVersion": str(version)}}
    return msgspec.json.encode({"type": "BOOKMARK", "object": item}) + b"\n"


def _json(body: bytes, code: int = 200) -> web.Response:
    return web.Response(body=body, status=code, content_type="application/json")


def _status(code: int, message: str) -> web.Response:
    return _json(msgspec.json.encode({"kind": "Status", "code": code, "message": message}), code)


@asynccontextmanager
async def serve(api: LoadedApi) -> AsyncIterator[str]:
    """Serves while the context is open; gives the address as in a kubeconfig."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", Routes(api).handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
