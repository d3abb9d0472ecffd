"""Both sync services between an API server and a store in memory, and objects in few words."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from msgspec import structs

from endpoint_sync.masquerade import CONFIG
from endpoint_sync.sync import Api, EndpointSync
from policy_sync.sync import PolicySync
from tidegate.kube.fake import FakeApi
from tidegate.kube.watch import (
    ENDPOINT_SLICES,
    NAMESPACES,
    NETWORK_LOGGING,
    NETWORK_POLICIES,
    NODES,
    PODS,
    SERVICES,
)
from tidegate.records import Endpoint, IdentityKeys, Keyspace, Problem, Record, decode, encode
from tidegate.records.capacity import DEFAULT
from tidegate.runtime.http import Health
from tidegate.store.memory import MemoryStore

R = TypeVar("R", bound=Record)
Object = dict[str, Any]

KEYS = Keyspace("test")
PATHS = {
    "Namespace": NAMESPACES.path,
    "ConfigMap": CONFIG.path,
    "Node": NODES.path,
    "Pod": PODS.path,
    "Service": SERVICES.path,
    "EndpointSlice": ENDPOINT_SLICES.path,
    "NetworkPolicy": NETWORK_POLICIES.path,
    "NetworkLogging": NETWORK_LOGGING.path,
}
QUIET = 60  # turns of the event loop in which nothing is written


class World:
    def __init__(self, source: Api | None = None) -> None:
        """The services read from `source`; without one, from an API server in memory, for `put` and `delete`."""
        self.api = FakeApi()
        self.source = source or self.api
        self.store = MemoryStore()
        self.capacity = DEFAULT
        self.grace = 3600.0  # seconds; collect() is called by the tests
        self.endpoint_sync: EndpointSync

    def put(self, *items: Object) -> None:
        for item in items:
            self.api.put(PATHS[item["kind"]], {key: value for key, value in item.items() if key != "kind"})

    def delete(self, kind: str, namespace: str, name: str) -> None:
        self.api.delete(PATHS[kind], namespace, name)

    async def settle(self) -> None:
        """Until nobody has anything left to write."""
        revision, quiet = -1, 0
        while quiet < QUIET:
            quiet = quiet + 1 if self.store.revision == revision else 0
            revision = self.store.revision
            await asyncio.sleep(0)

    async def written(self, *items: Object) -> set[str]:
        """The keys that putting the objects changes in the store."""
        before = self.values()
        self.put(*items)
        await self.settle()
        after = self.values()
        return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    async def until(self, condition: Callable[[], bool]) -> None:
        """For what takes its time by the clock, as a pause before the next attempt does."""
        async with asyncio.timeout(60):
            while not condition():
                await self.store.changed()

    @asynccontextmanager
    async def running(self, *holders: str, endpoint: bool = True, policy: bool = True) -> AsyncIterator["World"]:
        """One pair of services a holder (without one: a single pair), settled."""
        tasks = []
        for holder in holders or ("one",):
            if endpoint:
                tasks.append(asyncio.create_task(self._endpoint_sync(holder)))
            if policy:
                tasks.append(asyncio.create_task(self._policy_sync(holder)))
        try:
            await self.settle()
            yield self
            assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _endpoint_sync(self, holder: str) -> None:
        service = self.endpoint_sync = EndpointSync(
            self.store, self.source, KEYS, Health("store"), self.grace, self.capacity
        )
        await service.start()
        await service.run(holder, 5)

    async def _policy_sync(self, holder: str) -> None:
        service = PolicySync(self.store, self.source, KEYS, Health("store"))
        await service.start()
        await service.run(holder, 5)

    def values(self) -> dict[str, bytes]:
        """Key → value, without what is another after each start (marks, last writes, when was asked)."""
        found = {key.removeprefix(KEYS.prefix): value for key, value in self.store.values(KEYS.prefix).items()}
        asked = found.get("config/identity-keys")
        if asked is not None:
            found["config/identity-keys"] = encode(structs.replace(decode(IdentityKeys, asked), asked=0))
        return {
            key: value
            for key, value in found.items()
            if not key.startswith(("meta/synced/", "meta/writer/")) and key != "identities/synced"
        }

    def records(self, kind: type[R]) -> dict[tuple[str, ...], R]:
        found = {}
        for key, value in self.store.values(KEYS.prefix).items():
            parsed = KEYS.parse(key)
            if parsed is not None and parsed.kind is kind:
                found[parsed.name] = decode(kind, value)
        return found

    def problems(self) -> dict[str, str]:
        """Kind namespace/name → reason."""
        return {f"{name[1]} {name[2]}/{name[3]}": record.reason for name, record in self.records(Problem).items()}

    def identity_of(self, namespace: str, pod: str) -> int:
        return self.records(Endpoint)[namespace, pod].identity


def namespace(name: str, **labels: str) -> Object:
    return {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def annotated(item: Object, name: str, value: str = "true") -> Object:
    metadata = item["metadata"]
    return {**item, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), name: value}}}


def node(name: str, *addresses: str, cidr: str = "") -> Object:
    reported = [{"type": "InternalIP", "address": address} for address in addresses]
    spec = {"podCIDR": cidr} if cidr else {}
    return {"kind": "Node", "metadata": {"name": name}, "spec": spec, "status": {"addresses": reported}}


def config_map(where: str, **data: str) -> Object:
    ns, name = where.split("/")
    return {"kind": "ConfigMap", "metadata": {"namespace": ns, "name": name}, "data": data}


def pod(
    where: str,
    ip: str = "",
    labels: Mapping[str, str] | None = None,
    ports: Mapping[str, tuple[str, int]] | None = None,
    node: str = "n1",
    **metadata: Any,
) -> Object:
    """`where` is namespace/name; `ip` one address or several, with spaces; `ports` name → (protocol, number)."""
    ns, name = where.split("/")
    ips = ip.split()
    addresses = {"podIP": ips[0], "podIPs": [{"ip": each} for each in ips]} if ips else {}
    listed = [{"name": key, "protocol": proto, "containerPort": port} for key, (proto, port) in (ports or {}).items()]
    return {
        "kind": "Pod",
        "metadata": {"namespace": ns, "name": name, "labels": dict(labels or {}), **metadata},
        "spec": {"nodeName": node, "containers": [{"ports": listed}]},
        "status": {"phase": "Running", **addresses},
    }


def service(where: str, ip: str, *ports: int | Object, **spec: Any) -> Object:
    ns, name = where.split("/")
    listed = [{"port": port} if isinstance(port, int) else port for port in ports]
    return {
        "kind": "Service",
        "metadata": {"namespace": ns, "name": name},
        "spec": {"clusterIP": ip, "ports": listed, **spec},
    }


def endpoint_slice(where: str, owner: str, *endpoints: str | Object, port: int = 8080, **fields: Any) -> Object:
    """`endpoints` are addresses, or whole endpoints; `owner` is the Service's name."""
    ns, name = where.split("/")
    return {
        "kind": "EndpointSlice",
        "metadata": {"namespace": ns, "name": name, "labels": {"kubernetes.io/service-name": owner} if owner else {}},
        "addressType": "IPv4",
        "ports": [{"port": port}],
        "endpoints": [{"addresses": [e]} if isinstance(e, str) else e for e in endpoints],
        **fields,
    }


def policy(where: str, pods: Object | None = None, **spec: Any) -> Object:
    ns, name = where.split("/")
    return {
        "kind": "NetworkPolicy",
        "metadata": {"namespace": ns, "name": name},
        "spec": {"podSelector": pods or {}, **spec},
    }


def match(**labels: str) -> Object:
    return {"matchLabels": labels}
