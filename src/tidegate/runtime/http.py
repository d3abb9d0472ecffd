"""The HTTP side of a service: /healthz, /readyz, /metrics, and routes of its own, on TCP, a Unix socket, or both."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate.runtime import metrics
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.logging import get_logger

log = get_logger()

READY = "ready"


class Health:
    """Readiness by component. A service is ready when each declared component is.

    >>> health = Health("store", "kernel")
    >>> health.ready("store")
    >>> health.not_ready("kernel", "no programs loaded yet")
    >>> health.is_ready
    False
    """

    def __init__(self, *components: str) -> None:
        self._trouble: dict[str, str | None] = dict.fromkeys(components, "starting")
        self._probes: dict[str, Callable[[], str | None]] = {}

    def ready(self, component: str) -> None:
        self._trouble[component] = None

    def not_ready(self, component: str, reason: str) -> None:
        """`reason` is for people: what is missing."""
        self._trouble[component] = reason

    def probe(self, component: str, trouble: Callable[[], str | None]) -> None:
        """`trouble` is asked each time: what is missing, None for nothing."""
        self._probes[component] = trouble

    @property
    def is_ready(self) -> bool:
        return all(answer == READY for answer in self.report().values())

    def report(self) -> dict[str, str]:
        """Component → "ready", or what is missing."""
        troubles = {**self._trouble, **{name: trouble() for name, trouble in self._probes.items()}}
        return {name: READY if trouble is None else trouble for name, trouble in troubles.items()}


class _Readiness(Collector):
    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily("tidegate_ready", "1 for what is there, 0 for what is missing.", labels=["component"])
        for component, answer in self._health.report().items():
            ready.add_metric([component], answer == READY)
        return [ready]


@dataclass(frozen=True, slots=True)
class Serving:
    """Where the server listens: the TCP port it got (None without one), and the Unix socket."""

    port: int | None
    socket: Path | None


def application(health: Health, routes: Iterable[web.AbstractRouteDef] = ()) -> web.Application:
    """The aiohttp application that `serve` runs."""
    readiness = _Readiness(health)

    async def healthz(_request: web.Request) -> web.Response:
        # Alive means that the event loop turns; what the service lacks to do its work is the business of /readyz.
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        body = msgspec.json.encode({"ready": health.is_ready, "components": health.report()})
        return web.Response(body=body, status=200 if health.is_ready else 503, content_type="application/json")

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(readiness), headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics), *routes]
    )
    return app


def _remove_stale(path: Path) -> None:
    """A socket file that nobody listens on, left by a process that was killed."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise SettingsError(f"{path}: another process serves this socket; stop it or give another --http-socket")


@contextlib.asynccontextmanager
async def serve(
    health: Health,
    *,
    listen: tuple[str, int] | None = None,
    unix_socket: Path | None = None,
    routes: Iterable[web.AbstractRouteDef] = (),
) -> AsyncIterator[Serving]:
    """Serves while the body runs; open streams are cut after it.

    Raises SettingsError where the address cannot be bound. The Unix socket is for its owner only (mode 0600).
    """
    runner = web.AppRunner(application(health, routes), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    bound: Path | None = None
    try:
        port = None
        try:
            if unix_socket is not None:
                unix_socket.parent.mkdir(parents=True, exist_ok=True)
                _remove_stale(unix_socket)
                await web.UnixSite(runner, str(unix_socket)).start()
                bound = unix_socket
                unix_socket.chmod(0o600)
            if listen is not None:
                await web.TCPSite(runner, listen[0] or None, listen[1]).start()
                port = next(address[1] for address in runner.addresses if isinstance(address, tuple))
                log.info("serving http", host=listen[0], port=port)
        except OSError as error:
            raise SettingsError(f"cannot serve HTTP on {unix_socket or listen}: {error}") from error
        yield Serving(port, unix_socket)
    finally:
        await runner.cleanup()
        # Only our own: where binding failed, the file may be another process's.
        if bound is not None:
            bound.unlink(missing_ok=True)
