"""A small EndpointSlice controller: Services with selectors become slices. Those of others it leaves alone."""

import asyncio
import hashlib
from collections import defaultdict
from typing import Any, TypeVar

from playground.topology import allocate, is_auto
from tidegate.kube import objects
from tidegate.kube.client import ApiError, KubeClient
from tidegate.kube.track import Handler, Key, track
from tidegate.kube.watch import ENDPOINT_SLICES, NODES, PODS, SERVICES, Invalid, Resource

T = TypeVar("T", bound=objects.Object)

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.playground.tidegate.dev"
SERVICE_NAME = "kubernetes.io/service-name"
ZONE = "topology.kubernetes.io/zone"
LARGEST = 100  # endpoints in a slice, as kube-controller-manager's default
FINISHED = ("Succeeded", "Failed")

Ports = tuple[tuple[str, int, str], ...]  # name, number, protocol


def is_ready(pod: objects.Pod) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())


def target_port(port: objects.ServicePort, pod: objects.Pod) -> int | None:
    """The number that a Service's port means at this pod; None if the pod has no port of that name."""
    wanted = port.target_port if port.target_port is not None else port.port
    if isinstance(wanted, int):
        return wanted or port.port
    for container in pod.spec.containers or ():
        for item in container.ports or ():
            if item.name == wanted and item.protocol == port.protocol:
                return item.container_port
    return None


def hints(service: objects.Service, node: str, zone: str) -> dict[str, Any]:
    """Whom a ready endpoint is for, by `trafficDistribution` (KEP-4444, KEP-3015); the annotation goes before it."""
    wanted = None if is_auto(service.metadata.annotations or {}) else service.spec.traffic_distribution
    found: dict[str, Any] = {}
    if wanted in ("PreferClose", "PreferSameZone", "PreferSameNode") and zone:
        found["forZones"] = [{"name": zone}]
    if wanted == "PreferSameNode":
        found["forNodes"] = [{"name": node}]
    return {"hints": found} if found else {}


def endpoint(service: objects.Service, pod: objects.Pod, address: str, zone: str) -> dict[str, Any]:
    serving = is_ready(pod)
    terminating = pod.metadata.deletion_timestamp is not None
    ready = service.spec.publish_not_ready_addresses or (serving and not terminating)
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        **(hints(service, pod.spec.node_name, zone) if ready else {}),
        "nodeName": pod.spec.node_name,
        **({"zone": zone} if zone else {}),
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
    }


def slices(service: objects.Service, pods: list[objects.Pod], zones: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Name → EndpointSlice of a Service, one or more for each address family and each set of port numbers. Pure."""
    groups: dict[tuple[str, Ports], list[dict[str, Any]]] = defaultdict(list)
    families = service.spec.ip_families or ("IPv4",)
    for pod in sorted(pods, key=lambda pod: pod.key):
        found = [(port.name, target_port(port, pod), port.protocol) for port in service.spec.ports or ()]
        ports = tuple((name, number, protocol) for name, number, protocol in found if number is not None)
        for item in pod.status.pod_ips or ():
            family = "IPv6" if ":" in item.ip else "IPv4"
            if family in families:
                zone = zones.get(pod.spec.node_name, "")
                groups[family, ports].append(endpoint(service, pod, item.ip, zone))
    if is_auto(service.metadata.annotations or {}):
        for endpoints in groups.values():
            _hint_by_topology([each for each in endpoints if each["conditions"]["ready"]], zones)
    return {
        body["metadata"]["name"]: body
        for (family, ports), endpoints in groups.items()
        for index in range(0, len(endpoints), LARGEST)
        for body in [_body(service, family, ports, index // LARGEST, endpoints[index : index + LARGEST])]
    }


def _hint_by_topology(ready: list[dict[str, Any]], zones: dict[str, str]) -> None:
    given = allocate(zones, [each.get("zone", "") for each in ready])
    for each, zone in zip(ready, given or [""] * len(ready), strict=True):
        if zone:
            each["hints"] = {"forZones": [{"name": zone}]}


def _body(
    service: objects.Service, family: str, ports: Ports, index: int, endpoints: list[dict[str, Any]]
) -> dict[str, Any]:
    mark = hashlib.sha1(f"{family} {ports} {index}".encode(), usedforsecurity=False).hexdigest()[:8]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service.metadata.name}-{mark}",
            "namespace": service.metadata.namespace,
            "labels": {SERVICE_NAME: service.metadata.name, MANAGED_BY: MANAGER},
        },
        "addressType": family,
        "ports": [{"name": name, "port": number, "protocol": protocol} for name, number, protocol in ports],
        "endpoints": endpoints,
    }


def selects(service: objects.Service, pod: objects.Pod) -> bool:
    wanted = service.spec.selector
    if not wanted or service.spec.type == "ExternalName" or pod.metadata.namespace != service.metadata.namespace:
        return False
    return all(pod.labels.get(key) == value for key, value in wanted.items())


class _Services:
    def __init__(self, owner: "Controller") -> None:
        self._owner = owner

    def changed(self, item: objects.Service) -> None:
        self._owner.services[item.key] = item
        self._owner.due(item.key)

    def deleted(self, key: Key) -> None:
        self._owner.services.pop(key, None)
        self._owner.due(key)

    def invalid(self, item: Invalid) -> None:
        del item


class _Pods:
    def __init__(self, owner: "Controller") -> None:
        self._owner = owner

    def changed(self, item: objects.Pod) -> None:
        self._due(self._owner.pods.get(item.key))
        self._owner.pods[item.key] = item
        self._due(item)

    def deleted(self, key: Key) -> None:
        self._due(self._owner.pods.pop(key, None))

    def invalid(self, item: Invalid) -> None:
        del item

    def _due(self, pod: objects.Pod | None) -> None:
        if pod is not None:
            for key, service in self._owner.services.items():
                if key[0] == pod.metadata.namespace and selects(service, pod):
                    self._owner.due(key)


class _Nodes:
    """Zones: of these the endpoints and their hints tell."""

    def __init__(self, owner: "Controller") -> None:
        self._owner = owner

    def changed(self, item: objects.Node) -> None:
        self._set(item.metadata.name, item.labels.get(ZONE, ""))

    def deleted(self, key: Key) -> None:
        self._owner.zones.pop(key[1], None)
        for service in self._owner.services:
            self._owner.due(service)

    def invalid(self, item: Invalid) -> None:
        del item

    def _set(self, node: str, zone: str) -> None:
        if self._owner.zones.get(node) != zone:
            self._owner.zones[node] = zone
            for key in self._owner.services:
                self._owner.due(key)


class _Slices:
    def __init__(self, owner: "Controller") -> None:
        self._owner = owner

    def changed(self, item: objects.EndpointSlice) -> None:
        if item.labels.get(MANAGED_BY) == MANAGER:
            service = item.metadata.namespace, item.labels.get(SERVICE_NAME, "")
            if item.key not in self._owner.written:
                self._owner.written[item.key] = (service, None)  # from an earlier run: what it holds is not known
                self._owner.due(service)

    def deleted(self, key: Key) -> None:
        known = self._owner.written.pop(key, None)
        if known is not None:
            self._owner.due(known[0])

    def invalid(self, item: Invalid) -> None:
        del item


class Controller:
    """One task writes; what becomes due while it writes is done once, afterwards."""

    def __init__(self, api: KubeClient) -> None:
        self._api = api
        self.zones: dict[str, str] = {}  # node → zone
        self.services: dict[Key, objects.Service] = {}
        self.pods: dict[Key, objects.Pod] = {}
        self.written: dict[Key, tuple[Key, dict[str, Any] | None]] = {}  # slice → Service, content
        self._due: dict[Key, None] = {}
        self._wake = asyncio.Event()
        self._waiting = {NODES.kind, SERVICES.kind, PODS.kind, ENDPOINT_SLICES.kind}

    def due(self, service: Key) -> None:
        self._due[service] = None
        self._wake.set()

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._track(NODES, _Nodes(self)))
            group.create_task(self._track(SERVICES, _Services(self)))
            group.create_task(self._track(PODS, _Pods(self)))
            group.create_task(self._track(ENDPOINT_SLICES, _Slices(self)))
            group.create_task(self._write())

    async def _track(self, resource: Resource[T], handler: Handler[T]) -> None:
        def after(listed: bool) -> None:
            if listed:
                self._waiting.discard(resource.kind)
                self._wake.set()

        await track(self._api, resource, handler, "endpointslices", after)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due and not self._waiting:
                service = next(iter(self._due))
                del self._due[service]
                await self._bring(service)

    async def _bring(self, key: Key) -> None:
        service = self.services.get(key)
        pods = []
        if service is not None:
            pods = [
                pod
                for pod in self.pods.values()
                if pod.status.phase not in FINISHED and pod.status.pod_ips and selects(service, pod)
            ]
        wanted = slices(service, pods, self.zones) if service is not None else {}
        for name, body in wanted.items():
            if self.written.get((key[0], name)) != (key, body):
                await self._put(key, name, body)
        for where, (owner, _) in list(self.written.items()):
            if owner == key and where[1] not in wanted:
                await self._delete(where)

    async def _put(self, service: Key, name: str, body: dict[str, Any]) -> None:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{service[0]}/endpointslices"
        try:
            if (service[0], name) in self.written:
                await self._api.merge(f"{path}/{name}", body)
            else:
                await self._api.create(path, body)
        except ApiError as error:
            if error.code == 409:
                await self._api.merge(f"{path}/{name}", body)
            elif error.code != 404:  # the namespace goes: so does the Service
                raise
        self.written[service[0], name] = (service, body)

    async def _delete(self, where: Key) -> None:
        self.written.pop(where, None)
        try:
            await self._api.delete(f"/apis/discovery.k8s.io/v1/namespaces/{where[0]}/endpointslices/{where[1]}")
        except ApiError as error:
            if error.code != 404:
                raise
