"""The CRD of NetworkLogging as a real API server takes it, and the kind before, with and after it."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from playground.realapi import RealApiServer
from policy_sync.logging import LoggingError, logging_record
from tidegate.kube import watch
from tidegate.kube.client import ApiError, KubeClient
from tidegate.kube.objects import NetworkLogging
from tidegate.kube.watch import NETWORK_LOGGING, Changed, Event, Listed, Page, list_watch

pytestmark = pytest.mark.apiserver

CRD = Path(__file__).parents[2] / "compose/kubernetes/crds/networking.gke.io_networkloggings.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SPECS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"allow": {"log": True}}, True),
    ({"allow": {"log": True, "delegate": True}, "deny": {"log": True, "delegate": False}}, True),
    ({"deny": {}}, True),
    ({"deny": {"delegate": False}}, True),
    ({"deny": {"delegate": True}}, False),
    ({"allow": {"log": False, "delegate": True}}, False),
]


def item(cluster: dict[str, Any], name: str = "default") -> dict[str, Any]:
    head = {"apiVersion": "networking.gke.io/v1alpha1", "kind": "NetworkLogging", "metadata": {"name": name}}
    return {**head, "spec": {"cluster": cluster}}


async def test_the_kind(real: RealApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "UNSERVED", 0.1)
    async with (
        asyncio.timeout(60),
        await KubeClient.load(real.kubeconfig) as api,
        aclosing(list_watch(api, NETWORK_LOGGING)) as events,
    ):
        await listed_empty(events)
        await api.create(CRDS, yaml.safe_load(CRD.read_text()))
        while not await served(api):
            pass  # each asking takes its time
        for cluster, good in SPECS:
            if good:
                await api.create(NETWORK_LOGGING.path, item(cluster))
                logging_record(await changed(events))
                await api.delete(f"{NETWORK_LOGGING.path}/default")
            else:
                with pytest.raises(ApiError, match="delegate needs log"):
                    await api.create(NETWORK_LOGGING.path, item(cluster))
                with pytest.raises(LoggingError):  # as we do
                    logging_record(msgspec.convert(item(cluster), NetworkLogging))
        with pytest.raises(ApiError, match="named default"):
            await api.create(NETWORK_LOGGING.path, item({}, "other"))
        # With its definition the kind goes, and its objects.
        await api.create(NETWORK_LOGGING.path, item({"deny": {"log": True}}))
        await changed(events)
        await api.delete(f"{CRDS}/networkloggings.networking.gke.io")
        await listed_empty(events)


async def served(api: KubeClient) -> bool:
    try:
        await api.get(NETWORK_LOGGING.path)
    except ApiError as error:
        if error.code != 404:
            raise
        return False
    return True


async def listed_empty(events: Any) -> None:
    """Until a list of nothing."""
    while not (isinstance(event := await anext(events), Page) and not event.items):
        pass
    assert await anext(events) == Listed()


async def changed(events: Any) -> Any:
    """The next object that is there, whether by a list or by the watch."""
    while True:
        event: Event[Any] = await anext(events)
        if isinstance(event, Changed):
            return event.item
        if isinstance(event, Page) and event.items:
            return event.items[0]
