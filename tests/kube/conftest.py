"""An API server that does what a test tells it, over HTTP."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes_asyncio.client import Configuration

from tidegate.kube.client import KubeClient

Script = Callable[[web.StreamResponse], Awaitable[None]]


class Server:
    """Answers lists and watches from scripts, in order; a watch without a script hangs until the end."""

    def __init__(self) -> None:
        self.lists: deque[web.Response] = deque()
        self.watches: deque[Script | web.Response] = deque()
        self.queries: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        self.headers.append(dict(request.headers))
        if "watch" not in request.query:
            return self.lists.popleft() if self.lists else web.Response(status=503, text="no list left")
        script = self.watches.popleft() if self.watches else hang
        if isinstance(script, web.Response):
            return script
        response = web.StreamResponse()
        await response.prepare(request)
        await script(response)
        return response

    @property
    def watched_from(self) -> list[str]:
        return [query["resourceVersion"] for query in self.queries if "watch" in query]


async def hang(_: web.StreamResponse) -> None:
    await asyncio.Event().wait()


def send(*events: object, then: Script | None = None, cut: int | None = None) -> Script:
    """Writes events, each with its newline; `cut`: that many bytes of them, and then the connection breaks."""
    text = b"".join(e if isinstance(e, bytes) else json.dumps(e).encode() + b"\n" for e in events)

    async def script(response: web.StreamResponse) -> None:
        await response.write(text[:cut] if cut is not None else text)
        if cut is not None:
            await asyncio.sleep(0.02)  # what was written is on its way
            transport = response._req.transport if response._req is not None else None
            assert transport is not None
            transport.abort()
        elif then is not None:
            await then(response)

    return script


def listing(*items: object, version: int = 1, more: str = "") -> web.Response:
    metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
    return web.json_response({"metadata": metadata, "items": list(items)})


def pod(name: str, version: int = 1, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name, "resourceVersion": str(version), **metadata}}


def event(kind: str, item: object) -> dict[str, object]:
    return {"type": kind, "object": item}


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[None]:
    application = web.Application()
    application.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", server.port)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    async with serving(made):
        yield made


@pytest.fixture
async def client(server: Server) -> AsyncIterator[KubeClient]:
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{server.port}"
    async with KubeClient(configuration) as made:
        yield made
