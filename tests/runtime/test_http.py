"""Health, readiness, metrics, over TCP and a Unix socket."""

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tidegate.runtime import metrics
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.http import Health, serve

ANY_PORT = ("127.0.0.1", 0)


async def get(path: str, port: int | None = None, unix: Path | None = None) -> tuple[int, str]:
    connector = aiohttp.UnixConnector(str(unix)) if unix else None
    url = f"http://127.0.0.1:{port or 80}{path}"
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as response:
        return response.status, await response.text()


async def test_ready_once_every_component_is() -> None:
    health = Health("store", "kernel")
    async with serve(health, listen=ANY_PORT) as serving:
        assert (await get("/healthz", serving.port))[0] == 200
        status, body = await get("/readyz", serving.port)
        assert status == 503
        assert '"store":"starting"' in body
        health.ready("store")
        health.not_ready("kernel", "no programs")
        status, body = await get("/readyz", serving.port)
        assert status == 503
        assert "no programs" in body
        health.ready("kernel")
        assert (await get("/readyz", serving.port))[0] == 200
        assert health.report() == {"store": "ready", "kernel": "ready"}


def test_what_is_asked_each_time() -> None:
    health = Health("store")
    health.ready("store")
    troubles: list[str] = []
    health.probe("etcd", lambda: next(iter(troubles), None))
    assert health.is_ready
    troubles.append("no answer")
    assert not health.is_ready
    assert health.report() == {"store": "ready", "etcd": "no answer"}


async def test_metrics_carry_the_prefix_and_the_process() -> None:
    metrics.counter("test_things", "Things.", ("kind",)).labels("x").inc(3)
    metrics.gauge("test_size", "Size.", unit="bytes").set(7)
    metrics.histogram("test_duration", "Time.").observe(0.002)
    async with serve(Health(), listen=ANY_PORT) as serving:
        status, body = await get("/metrics", serving.port)
    assert status == 200
    assert 'tidegate_test_things_total{kind="x"} 3.0' in body
    assert "tidegate_test_size_bytes 7.0" in body
    assert 'tidegate_test_duration_seconds_bucket{le="0.0025"} 1.0' in body
    assert "process_resident_memory_bytes" in body


async def test_routes_of_the_service_on_a_private_socket(tmp_path: Path) -> None:
    async def status(_: web.Request) -> web.Response:
        return web.Response(text="fine")

    path = tmp_path / "run" / "agent.sock"
    async with serve(Health(), unix_socket=path, routes=[web.get("/status", status)]) as serving:
        assert serving.port is None
        assert path.stat().st_mode & 0o777 == 0o600
        assert await get("/status", unix=path) == (200, "fine")
        assert (await get("/readyz", unix=path))[0] == 200
    assert not path.exists()


async def test_a_socket_left_behind_is_replaced_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serve(Health(), unix_socket=path):
        with pytest.raises(SettingsError, match="another process"):
            async with serve(Health(), unix_socket=path):
                pass
        assert (await get("/healthz", unix=path))[0] == 200


async def test_an_address_in_use_is_a_bad_setting() -> None:
    with socket.create_server(ANY_PORT) as other, pytest.raises(SettingsError, match="cannot serve"):
        async with serve(Health(), listen=other.getsockname()):
            pass


async def test_an_open_stream_does_not_hold_up_the_end() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"{}\n")
            await asyncio.sleep(0.01)

    async with aiohttp.ClientSession() as session:
        async with serve(Health(), listen=ANY_PORT, routes=[web.get("/monitor", stream)]) as serving:
            response = await session.get(f"http://127.0.0.1:{serving.port}/monitor")
            assert await response.content.readline() == b"{}\n"
        with pytest.raises(aiohttp.ClientError):
            await response.read()
