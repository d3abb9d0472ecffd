"""A stand-in for the kubelets: every Pod bound to a playground node becomes a namespace with a responder."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playground import responder
from playground.layout import Layout, NodeAddresses
from playground.network import create_pod, delete_pod
from playground.shell import inside
from tidegate.kube import objects
from tidegate.kube.client import ApiError, KubeClient
from tidegate.kube.track import Key, track
from tidegate.kube.watch import PODS, Invalid, Unreachable
from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import backoff

NOT_READY = "playground.tidegate.dev/ready"  # annotation: "false" makes a pod unready
PATIENCE = 1.0  # seconds that open connections of a deleted pod have to end
LAST_POD = 254

log = get_logger()


@dataclass
class _Running:
    pod: objects.Pod
    number: int
    addresses: list[str]
    process: asyncio.subprocess.Process


@dataclass
class _Node:
    addresses: NodeAddresses
    next: int = 2
    used: set[int] = field(default_factory=set)

    def take(self) -> int:
        """A number that has not been used for as long as possible."""
        for _ in range(LAST_POD):
            number, self.next = self.next, self.next + 1 if self.next < LAST_POD else 2
            if number not in self.used:
                self.used.add(number)
                return number
        raise RuntimeError(f"{self.addresses.name}: all {LAST_POD - 1} pod addresses are taken")


@dataclass(frozen=True)
class _Wish:
    """Handler of pod events: which pods are to be, by key; None: none."""

    want: Callable[[Key, objects.Pod | None], None]

    def changed(self, item: objects.Pod) -> None:
        self.want(item.key, item)

    def deleted(self, key: Key) -> None:
        self.want(key, None)

    def invalid(self, item: Invalid) -> None:
        log.warning("pod not understood", namespace=item.namespace, pod=item.name, reason=item.reason)


class Kubelet:
    def __init__(self, layout: Layout, api: KubeClient, nodes: list[NodeAddresses], dual_stack: bool) -> None:
        self._layout = layout
        self._api = api
        self._nodes = {node.name: _Node(node) for node in nodes}
        self._dual_stack = dual_stack
        self._wanted: dict[Key, objects.Pod | None] = {}
        self._running: dict[Key, _Running] = {}
        self._busy: set[Key] = set()
        self._reported: dict[Key, Any] = {}

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            await track(self._api, PODS, _Wish(lambda key, pod: self._want(group, key, pod)), "kubelet", lambda _: None)

    def _want(self, group: asyncio.TaskGroup, key: Key, pod: objects.Pod | None) -> None:
        if pod is not None and pod.spec.node_name not in self._nodes:
            return
        self._wanted[key] = pod
        if key not in self._busy:
            self._busy.add(key)
            group.create_task(self._reconcile(key))

    async def _reconcile(self, key: Key) -> None:
        """Until the pod is as it is wanted; what is wanted may change meanwhile."""
        done: objects.Pod | str | None = "nothing yet"
        try:
            while done is not (pod := self._wanted.get(key)):
                async for attempt in backoff(Unreachable, OSError):
                    with attempt:
                        await self._bring(key, pod)
                done = pod
            if pod is None:
                self._wanted.pop(key, None)
        except Exception:
            # One pod that cannot be made must not take the others with it.
            log.exception("pod failed", namespace=key[0], pod=key[1])
        finally:
            self._busy.discard(key)

    async def _bring(self, key: Key, pod: objects.Pod | None) -> None:
        running = self._running.get(key)
        if running and (pod is None or pod.metadata.uid != running.pod.metadata.uid):
            await self._stop(key)
        if pod is None:
            return
        if pod.metadata.deletion_timestamp is not None:
            await self._terminate(key)
        elif key not in self._running:
            await self._start(key, pod)
        else:
            await self._report(key, pod)

    async def _start(self, key: Key, pod: objects.Pod) -> None:
        node = self._nodes[pod.spec.node_name]
        name = node.addresses.name
        cgroup = self._layout.pod_cgroup(name, *key)
        cgroup.mkdir(parents=True, exist_ok=True)
        number, addresses = 0, self._host_addresses(node.addresses)
        namespace = self._layout.node_namespace(name)
        if not pod.spec.host_network:
            number = node.take()
            namespace = self._layout.pod_namespace(*key)
            addresses = await create_pod(self._layout, node.addresses, *key, pod.metadata.uid, number, self._dual_stack)
        ports = [
            f"{port.protocol}:{port.container_port}"
            for container in pod.spec.containers or ()
            for port in container.ports or ()
        ]
        command = [sys.executable, "-S", "-E", "-I", str(Path(responder.__file__)), "/".join(key), name, *ports]
        with (self._layout.logs / f"pod_{key[0]}_{key[1]}.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *inside(namespace, cgroup, command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._running[key] = _Running(pod, number, addresses, process)
        await self._report(key, pod)

    def _host_addresses(self, node: NodeAddresses) -> list[str]:
        return [node.address, node.address6] if self._dual_stack else [node.address]

    async def _report(self, key: Key, pod: objects.Pod) -> None:
        running = self._running[key]
        node = self._nodes[pod.spec.node_name].addresses
        ready = (pod.metadata.annotations or {}).get(NOT_READY) != "false"
        facts = (ready, tuple(running.addresses), pod.metadata.uid)
        if self._reported.get(key) == facts:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        names = [container.name for container in pod.spec.containers or ()]
        condition = {"status": "True" if ready else "False", "lastTransitionTime": now}
        status = {
            "phase": "Running",
            "hostIP": node.address,
            "hostIPs": [{"ip": address} for address in self._host_addresses(node)],
            "podIP": running.addresses[0],
            "podIPs": [{"ip": address} for address in running.addresses],
            "startTime": now,
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
                {"type": "Initialized", "status": "True", "lastTransitionTime": now},
                {"type": "ContainersReady", **condition},
                {"type": "Ready", **condition},
            ],
            "containerStatuses": [
                {
                    "name": name,
                    "ready": ready,
                    "started": True,
                    "restartCount": 0,
                    "image": "responder",
                    "imageID": "",
                    "state": {"running": {"startedAt": now}},
                }
                for name in names
            ],
        }
        try:
            await self._api.merge(f"/api/v1/namespaces/{key[0]}/pods/{key[1]}/status", {"status": status})
        except ApiError as error:
            if error.code not in (404, 409):  # deleted or replaced meanwhile: an event tells
                raise
            return
        self._reported[key] = facts

    async def _terminate(self, key: Key) -> None:
        await self._stop(key)
        try:
            await self._api.delete(f"/api/v1/namespaces/{key[0]}/pods/{key[1]}", grace=0)
        except ApiError as error:
            if error.code != 404:
                raise

    async def _stop(self, key: Key) -> None:
        running = self._running.pop(key, None)
        self._reported.pop(key, None)
        if running is None:
            return
        node = self._nodes[running.pod.spec.node_name]
        with suppress(ProcessLookupError):
            running.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE):
                await running.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            await running.process.wait()
        if not running.pod.spec.host_network:
            await delete_pod(self._layout, *key)
            node.used.discard(running.number)
        cgroup = self._layout.pod_cgroup(node.addresses.name, *key)
        with suppress(OSError):  # something that `playground exec` started may still run in it
            cgroup.rmdir()
