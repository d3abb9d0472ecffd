"""Binds Pods that name no node to one of the playground's: where the fewest are."""

import asyncio
from collections import Counter

from playground.layout import NodeAddresses
from tidegate.kube import objects
from tidegate.kube.client import ApiError, KubeClient
from tidegate.kube.track import Key, track
from tidegate.kube.watch import PODS, Invalid


class Scheduler:
    """Handler of pod events; `run` binds."""

    def __init__(self, api: KubeClient, nodes: list[NodeAddresses]) -> None:
        self._api = api
        self._nodes = [node.name for node in nodes]
        self._where: dict[Key, str] = {}
        self._queue: asyncio.Queue[Key] = asyncio.Queue()

    def changed(self, item: objects.Pod) -> None:
        known = self._where.get(item.key)
        if item.spec.node_name:
            self._where[item.key] = item.spec.node_name
        elif known is None and item.metadata.deletion_timestamp is None:
            self._where[item.key] = ""
            self._queue.put_nowait(item.key)

    def deleted(self, key: Key) -> None:
        self._where.pop(key, None)

    def invalid(self, item: Invalid) -> None:
        del item  # nothing to bind

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(track(self._api, PODS, self, "scheduler", lambda _: None))
            group.create_task(self._bind_all())

    async def _bind_all(self) -> None:
        while True:
            key = await self._queue.get()
            if key not in self._where:
                continue
            counts = Counter(self._where.values())
            node = min(self._nodes, key=lambda name: (counts[name], name))
            body = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": key[1], "namespace": key[0]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            }
            try:
                await self._api.create(f"/api/v1/namespaces/{key[0]}/pods/{key[1]}/binding", body)
            except ApiError as error:
                if error.code not in (404, 409):  # gone, or bound by somebody else
                    raise
            self._where[key] = node
