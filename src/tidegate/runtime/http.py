"""`/healthz`, `/readyz`, `/metrics`, and what a service adds, on TCP, on a unix socket, or on both."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tidegate.runtime import metrics

Ready = str | None


class Health:
    """What the process is waiting for. It is ready when no part names a reason why not."""

    def __init__(self, *parts: str) -> None:
        self._reasons: dict[str, Ready] = dict.fromkeys(parts, "starting")

    def ready(self, part: str) -> None:
        self._reasons[part] = None

    def not_ready(self, part: str, reason: str) -> None:
        self._reasons[part] = reason

    @property
    def waiting(self) -> dict[str, str]:
        """Part → reason, of the parts that are not ready."""
        return {part: reason for part, reason in self._reasons.items() if reason is not None}


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})


def _application(health: Health, routes: Iterable[web.RouteDef]) -> web.Application:
    async def readyz(_: web.Request) -> web.Response:
        if not health.waiting:
            return web.Response(text="ok\n")
        lines = "".join(f"{part}: {reason}\n" for part, reason in health.waiting.items())
        return web.Response(text=lines, status=503)

    application = web.Application()
    application.add_routes(
        [web.get("/healthz", _healthz), web.get("/readyz", readyz), web.get("/metrics", _metrics), *routes]
    )
    return application


@asynccontextmanager
async def serve(
    health: Health,
    listen: tuple[str, int] | None = None,
    unix: Path | None = None,
    routes: Iterable[web.RouteDef] = (),
) -> AsyncIterator[list[str]]:
    """Serves while the context is open; gives the addresses (`host:port`, the socket's path)."""
    # A monitoring stream must not hold up the stop of its service.
    runner = web.AppRunner(_application(health, routes), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        if listen:
            site = web.TCPSite(runner, *listen)
            await site.start()
        if unix:
            unix.parent.mkdir(parents=True, exist_ok=True)
            unix.unlink(missing_ok=True)
            await web.UnixSite(runner, str(unix)).start()
            unix.chmod(0o600)
        yield [a if isinstance(a, str) else f"{a[0]}:{a[1]}" for a in runner.addresses]
    finally:
        await runner.cleanup()
