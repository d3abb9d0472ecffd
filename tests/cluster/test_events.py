"""The Event about a Service that does not fit, as kubectl shows it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.test_apiserver import Kubectl

from endpoint_sync.services import EXCEEDED
from endpoint_sync.sync import EndpointSync
from playground.apiserver.routes import serve
from playground.realapi import kubeconfig
from tidegate.kube.client import KubeClient
from tidegate.records import Keyspace
from tidegate.records.capacity import Amount
from tidegate.runtime.http import Health
from tidegate.store.memory import MemoryStore


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Kubectl]:
    """kubectl at a server whose Services endpoint-sync publishes, as far as they have three frontends together."""
    async with serve() as server:
        path = tmp_path / "kubeconfig"
        path.write_text(kubeconfig(f"http://127.0.0.1:{server.port}", "token"))
        async with await KubeClient.load(path) as api:
            capacity = Amount(backends=10, frontends=3, source_ranges=1)
            sync = EndpointSync(MemoryStore(), api, Keyspace("test"), Health("store"), 60.0, capacity)
            await sync.start()
            task = asyncio.create_task(sync.run("one", 5))
            yield Kubectl(path)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(kube: Kubectl, words: str, *arguments: str) -> str:
    async with asyncio.timeout(60):
        while words not in (shown := await kube(*arguments)):  # each asking takes its time
            pass
    return shown


async def test_describe_shows_why_a_service_is_not_served(kube: Kubectl) -> None:
    ports: list[dict[str, Any]] = [{"name": f"p{n}", "port": n} for n in range(1, 5)]
    item = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "large"}, "spec": {"ports": ports}}
    await kube("apply", "-f", "-", text=json.dumps(item))
    shown = await until(kube, EXCEEDED, "describe", "service", "large")
    event = next(line for line in shown.splitlines() if EXCEEDED in line)
    assert event.split()[:2] == ["Warning", EXCEEDED]
    assert "tidegate-endpoint-sync" in event
    assert "4 frontends where it has 0, and all Services may have 3" in event
    shown = await kube("get", "events", "--field-selector", "involvedObject.name=large")
    assert shown.splitlines()[0].split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    assert "service/large" in shown
    assert "TidegateCapacityExceeded" not in await kube("describe", "service", "kubernetes")
    smaller = {**item, "spec": {"ports": ports[:1]}}
    await kube("apply", "-f", "-", text=json.dumps(smaller))
    await until(kube, "TidegateCapacityAvailable", "describe", "service", "large")
