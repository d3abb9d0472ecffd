"""HTTP: which request means what."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from playground.apiserver import discovery
from playground.apiserver.actions import Actions
from playground.apiserver.kinds import BY_PATH, Kind, Object, StatusError, not_found
from playground.apiserver.protobuf import read_object
from playground.apiserver.selectors import Match, field_selector, label_selector
from playground.apiserver.storage import DELETED, Event, Storage
from playground.apiserver.tables import table

BOOKMARK_EVERY = 60.0  # seconds
LONGEST_WATCH = 3600.0  # seconds, where the client names no time
MAX_BODY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    kind: Kind
    namespace: str
    name: str
    part: str  # subresource


def parse(path: str) -> Target | None:
    """`/api/v1/namespaces/a/pods/b/status` and the like; None for what is no path of objects."""
    segments = path.strip("/").split("/")
    depth = 2 if segments[0] == "api" else 3
    base, rest = "/" + "/".join(segments[:depth]), segments[depth:]
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and (base, rest[2]) in BY_PATH:
        namespace, rest = rest[1], rest[2:]
    if not rest or (base, rest[0]) not in BY_PATH:
        return None
    rest += ["", ""]
    return Target(BY_PATH[base, rest[0]], namespace, rest[1], rest[2])


def _wants_table(request: web.Request) -> bool:
    return "as=Table" in request.headers.get("Accept", "")


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")


class Routes:
    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._storage = actions.storage

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._route(request)
        except StatusError as error:
            return _json(error.body(), error.code)
        except json.JSONDecodeError as error:
            return _json(StatusError(400, "BadRequest", f"the body is no JSON: {error}").body(), 400)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        target = parse(path) if path.startswith(("/api/", "/apis/")) else None
        if target is None:
            return self._about(path)
        if request.method == "GET":
            return await self._get(request, target)
        return await self._write(request, target)

    def _about(self, path: str) -> web.Response:
        if path in ("/healthz", "/readyz", "/livez"):
            return web.Response(text="ok")
        plain: dict[str, Callable[[], Any]] = {
            "/version": lambda: discovery.VERSION,
            "/api": discovery.core_versions,
            "/apis": discovery.groups,
            "/openapi/v3": discovery.openapi_index,
        }
        found = plain[path]() if path in plain else discovery.resources(path)
        if found is None and path.startswith("/openapi/v3/"):
            found = discovery.openapi(path.removeprefix("/openapi/v3/"))
        if found is None:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        return _json(found)

    async def _get(self, request: web.Request, target: Target) -> web.StreamResponse:
        if target.part and not (target.part == "status" and target.kind.status):
            raise not_found(target.kind, f"{target.name}/{target.part}")
        if target.name:
            item = self._actions.read(target.kind, (target.namespace, target.name))
            if _wants_table(request):
                return _json(table(target.kind, [item], _version(item), request.query.get("includeObject", "Metadata")))
            return _json(item)
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, target)
        return self._list(request, target)

    def _matches(self, request: web.Request) -> Match:
        labels = label_selector(request.query.get("labelSelector", ""))
        fields = field_selector(request.query.get("fieldSelector", ""))
        return lambda item: labels(item) and fields(item)

    def _list(self, request: web.Request, target: Target) -> web.Response:
        match = self._matches(request)
        items = [item for item in self._storage.all(target.kind, target.namespace) if match(item)]
        metadata: Object = {"resourceVersion": str(self._storage.version)}
        limit, start = _number(request, "limit"), request.query.get("continue")
        if start:
            # The version of the first page goes along: all pages claim to be of that one.
            version, after = _continued(start)
            metadata["resourceVersion"] = version
            items = [item for item in items if _key(item) > tuple(after)]
        if limit and len(items) > limit:
            items = items[:limit]
            metadata["continue"] = json.dumps([metadata["resourceVersion"], _key(items[-1])])
        if _wants_table(request):
            return _json(table(target.kind, items, metadata, request.query.get("includeObject", "Metadata")))
        kind = target.kind
        body = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}
        return _json(body)

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        if request.query.get("sendInitialEvents"):
            text = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature"
            raise StatusError(422, "Invalid", f"{text} gate is enabled")
        match = self._matches(request)
        asked = _number(request, "resourceVersion")
        position = asked or self._storage.version
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        form = _Form(target.kind, _wants_table(request), request.query.get("includeObject", "Metadata"))
        loop = asyncio.get_running_loop()
        ends = loop.time() + (_number(request, "timeoutSeconds") or LONGEST_WATCH)
        if not asked:
            for item in self._storage.all(target.kind, target.namespace):
                if match(item):
                    await response.write(form.line("ADDED", item))
        bookmark = loop.time() + BOOKMARK_EVERY
        while (now := loop.time()) < ends:
            try:
                events = [event for event in self._storage.events_after(position) if event.kind is target.kind]
            except StatusError as error:
                await response.write(json.dumps({"type": "ERROR", "object": error.body()}).encode() + b"\n")
                break
            position = max(position, self._storage.version)
            lines = [line for event in events if (line := _line(event, target.namespace, match, form))]
            if lines:
                await response.write(b"".join(lines))
                continue  # there may be more already
            if now >= bookmark and request.query.get("allowWatchBookmarks"):
                await response.write(form.bookmark(position))
                bookmark = now + BOOKMARK_EVERY
                continue  # something may have happened while it was written
            await self._storage.changed(max(0.0, min(ends, bookmark) - now))
        await response.write_eof()
        return response

    async def _write(self, request: web.Request, target: Target) -> web.Response:
        raw = await request.read()
        key = target.namespace, target.name
        dry_run = "dryRun" in request.query
        kind, status = target.kind, target.part == "status"
        if target.part and not (status and kind.status) and target.part != "binding":
            raise not_found(kind, f"{target.name}/{target.part}")
        if request.method == "POST" and target.part == "binding":
            self._actions.bind(key, json.loads(raw)["target"]["name"])
            return _json({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}, 201)
        if request.method == "POST":
            return self._answer(
                request, kind, self._actions.create(kind, target.namespace, _body(request, raw), dry_run), 201
            )
        if request.method == "PUT":
            item = self._actions.replace(kind, key, _body(request, raw), status, dry_run)
            return self._answer(request, kind, item)
        if request.method == "PATCH":
            item, new = self._actions.patch(kind, key, request.content_type, raw, status, dry_run)
            return self._answer(request, kind, item, 201 if new else 200)
        if request.method == "DELETE":
            return self._delete(request, target, raw)
        raise StatusError(405, "MethodNotAllowed", f"{request.method} is not supported")

    def _answer(self, request: web.Request, kind: Kind, item: Object, code: int = 200) -> web.Response:
        if _wants_table(request):
            return _json(table(kind, [item], _version(item), request.query.get("includeObject", "Metadata")), code)
        return _json(item, code)

    def _delete(self, request: web.Request, target: Target, raw: bytes) -> web.Response:
        options = json.loads(raw) if raw else {}
        asked = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        grace = int(asked) if asked is not None else None
        if target.name:
            return _json(self._actions.delete(target.kind, (target.namespace, target.name), grace))
        match = self._matches(request)
        items = [item for item in self._storage.all(target.kind, target.namespace) if match(item)]
        for item in items:
            self._actions.delete(target.kind, _key(item), grace)
        return _json({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 200})


def _number(request: web.Request, name: str) -> int:
    """0 where the query does not name it."""
    text = request.query.get(name) or "0"
    if not text.isdecimal():
        raise StatusError(400, "BadRequest", f"{name}: {text!r} is no number")
    return int(text)


def _continued(token: str) -> tuple[str, list[str]]:
    """The version of the list's first page, and the last key that was given out."""
    try:
        version, after = json.loads(token)
    except (ValueError, TypeError) as error:
        raise StatusError(400, "BadRequest", f"continue: {token!r} is no token of this server") from error
    return version, after


def _body(request: web.Request, raw: bytes) -> Object:
    if "protobuf" in request.content_type:
        return read_object(raw)
    found = json.loads(raw)
    if not isinstance(found, dict):
        raise StatusError(400, "BadRequest", "the body is no object")
    return found


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _version(item: Object) -> Object:
    return {"resourceVersion": item["metadata"]["resourceVersion"]}


class _Form:
    """How one watch writes its events: as objects, or as tables of one row."""

    def __init__(self, kind: Kind, as_table: bool, include: str) -> None:
        self._kind = kind
        self._table = as_table
        self._include = include
        self._first = True

    def line(self, type_: str, item: Object) -> bytes:
        shown = item
        if self._table:
            shown = table(self._kind, [item], _version(item), self._include, self._first)
            self._first = False
        return json.dumps({"type": type_, "object": shown}).encode() + b"\n"

    def bookmark(self, version: int) -> bytes:
        head = {"kind": self._kind.kind, "apiVersion": self._kind.api_version}
        shown: Object = {**head, "metadata": {"resourceVersion": str(version), "creationTimestamp": None}}
        if self._table:
            shown = table(self._kind, [], {"resourceVersion": str(version)}, self._include, self._first)
        return json.dumps({"type": "BOOKMARK", "object": shown}).encode() + b"\n"


def _line(event: Event, namespace: str, match: Match, form: _Form) -> bytes | None:
    """An object that enters or leaves the selection is added or deleted for this watch."""
    if namespace and event.object["metadata"].get("namespace") != namespace:
        return None
    was = event.before is not None and match(event.before)
    is_now = event.type != DELETED and match(event.object)
    if is_now:
        return form.line("MODIFIED" if was else "ADDED", event.object)
    return form.line(DELETED, event.object) if was else None


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    storage: Storage

    def expire(self) -> None:
        """Forgets the history: watches from before get 410."""
        self.storage.expire()


@asynccontextmanager
async def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    service_cidr: str = "10.96.0.0/16",
    validate: bool = True,
    history: int = 2000,
    journal: Path | None = None,
) -> AsyncIterator[Server]:
    """Serves while the context is open."""
    storage = Storage(history, journal)
    actions = Actions(storage, service_cidr, validate)
    actions.prepare()
    application = web.Application(client_max_size=MAX_BODY)
    application.router.add_route("*", "/{path:.*}", Routes(actions).handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, reuse_address=True).start()
        yield Server(int(runner.addresses[0][1]), storage)
    finally:
        await runner.cleanup()
