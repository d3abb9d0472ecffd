"""Tables for kubectl: the columns that the real server prints. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from playground.apiserver.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    EVENT,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
    POD,
    SERVICE,
    Kind,
    Object,
)

Cells = Callable[[Object], list[Any]]
NONE = "<none>"


def age(item: Object) -> str:
    stamp = item["metadata"].get("creationTimestamp")
    if not stamp:
        return "<unknown>"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds())
    if seconds < 120:
        return f"{max(seconds, 0)}s"
    minutes, hours = seconds // 60, seconds // 3600
    if minutes < 180:
        return f"{minutes}m"
    return f"{hours}h" if hours < 48 else f"{hours // 24}d"


def _pod(item: Object) -> list[Any]:
    status, spec = item.get("status") or {}, item["spec"]
    statuses = status.get("containerStatuses") or []
    ready = sum(1 for container in statuses if container.get("ready"))
    phase = "Terminating" if item["metadata"].get("deletionTimestamp") else status.get("phase", "Unknown")
    restarts = sum(container.get("restartCount", 0) for container in statuses)
    shown = [item["metadata"]["name"], f"{ready}/{len(spec.get('containers') or [])}", phase, restarts, age(item)]
    return [*shown, status.get("podIP") or NONE, spec.get("nodeName") or NONE, NONE, NONE]


def _ports(item: Object) -> str:
    found = []
    for port in item["spec"].get("ports") or []:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        found.append(f"{port['port']}{node}/{port['protocol']}")
    return ",".join(found) or NONE


def _labels(labels: dict[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def _service(item: Object) -> list[Any]:
    spec = item["spec"]
    ingress = (item.get("status") or {}).get("loadBalancer", {}).get("ingress") or []
    external = ",".join([*(spec.get("externalIPs") or []), *(entry.get("ip", "") for entry in ingress)]) or NONE
    name, address = item["metadata"]["name"], spec.get("clusterIP") or NONE
    return [name, spec["type"], address, external, _ports(item), age(item), _labels(spec.get("selector"))]


def _slice(item: Object) -> list[Any]:
    ports = ",".join(str(port.get("port")) for port in item.get("ports") or []) or "<unset>"
    addresses = [address for endpoint in item.get("endpoints") or [] for address in endpoint["addresses"]]
    shown = ",".join(addresses[:3]) + (f" + {len(addresses) - 3} more..." if len(addresses) > 3 else "")
    return [item["metadata"]["name"], item["addressType"], ports, shown or "<unset>", age(item)]


def _policy(item: Object) -> list[Any]:
    selector = item["spec"].get("podSelector") or {}
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for rule in selector.get("matchExpressions") or []:
        values = f" ({','.join(rule['values'])})" if rule.get("values") else ""
        parts.append(f"{rule['key']} {rule['operator'].lower()}{values}")
    return [item["metadata"]["name"], ",".join(parts) or NONE, age(item)]


def _node(item: Object) -> list[Any]:
    status = item.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
    addresses = {a["type"]: a["address"] for a in reversed(status.get("addresses") or [])}
    version = (status.get("nodeInfo") or {}).get("kubeletVersion", "")
    name = item["metadata"]["name"]
    return [name, "Ready" if ready else "NotReady", NONE, age(item), version, addresses.get("InternalIP", NONE)]


def _event(item: Object) -> list[Any]:
    about = item.get("involvedObject") or {}
    where = f"{about.get('kind', '').lower()}/{about.get('name', '')}"
    return [age(item), item.get("type", ""), item.get("reason", ""), where, item.get("message", "")]


def _named(item: Object) -> list[Any]:
    return [item["metadata"]["name"], age(item)]


# Columns after a `|` are shown with -o wide only.
TABLES: dict[Kind, tuple[str, Cells]] = {
    POD: ("Name Ready Status Restarts Age | IP Node Nominated_Node Readiness_Gates", _pod),
    SERVICE: ("Name Type Cluster-IP External-IP Port(s) Age | Selector", _service),
    ENDPOINT_SLICE: ("Name AddressType Ports Endpoints Age", _slice),
    NETWORK_POLICY: ("Name Pod-Selector Age", _policy),
    NODE: ("Name Status Roles Age Version | Internal-IP", _node),
    NAMESPACE: (
        "Name Status Age",
        lambda item: [item["metadata"]["name"], (item.get("status") or {}).get("phase", "Active"), age(item)],
    ),
    CONFIG_MAP: ("Name Data Age", lambda item: [item["metadata"]["name"], len(item.get("data") or {}), age(item)]),
    EVENT: ("Last_Seen Type Reason Object Message", _event),
}


def columns(kind: Kind) -> list[Object]:
    names, _ = TABLES.get(kind, ("Name Age", _named))
    shown, _, wide = names.partition(" | ")
    found = []
    for priority, group in ((0, shown), (1, wide)):
        for name in group.split():
            text = name.replace("_", " ")
            form = "name" if name == "Name" else ""
            found.append({"name": text, "type": "string", "format": form, "description": text, "priority": priority})
    return found


def table(kind: Kind, items: list[Object], metadata: Object, include: str, with_columns: bool = True) -> Object:
    """A meta.k8s.io/v1 Table; `include` is the request's includeObject (Metadata, Object, None)."""
    _, cells = TABLES.get(kind, ("Name Age", _named))
    rows = []
    for item in items:
        row: Object = {"cells": cells(item)}
        if include == "Object":
            row["object"] = item
        elif include != "None":
            head = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            row["object"] = {**head, "metadata": item["metadata"]}
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns(kind) if with_columns else None,
        "rows": rows,
    }
