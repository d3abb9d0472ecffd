"""What the server fills in before it stores: the defaults of the API documentation, addresses, node ports."""

import uuid
from datetime import UTC, datetime
from typing import Any

from playground.apiserver.kinds import (
    ENDPOINT_SLICE,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
    POD,
    SERVICE,
    Kind,
    Object,
    invalid,
)
from playground.apiserver.service_ips import ServiceAddresses
from playground.apiserver.storage import Storage

NODE_PORTS = range(30000, 32768)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Admission:
    def __init__(self, storage: Storage, service_cidr: str) -> None:
        self._storage = storage
        self._addresses = ServiceAddresses(storage, service_cidr)

    def create(self, kind: Kind, item: Object) -> None:
        """Fills in a new object, in place."""
        metadata = item["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata["creationTimestamp"] = now()
        metadata.pop("deletionTimestamp", None)
        if kind not in (NAMESPACE, NODE):
            metadata.setdefault("generation", 1)
        if kind is NAMESPACE:
            metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
            item.setdefault("spec", {"finalizers": ["kubernetes"]})
            item.setdefault("status", {"phase": "Active"})
        elif kind is POD:
            item.setdefault("status", {"phase": "Pending", "qosClass": "BestEffort"})
        self.default(kind, item, None)

    def default(self, kind: Kind, item: Object, before: Object | None) -> None:
        """Fills in what may be left out, at creation and at each update."""
        if kind is POD:
            _default_pod(item)
        elif kind is SERVICE:
            self._default_service(item, before)
        elif kind is NETWORK_POLICY:
            _default_policy(item)
        elif kind is ENDPOINT_SLICE:
            for port in item.get("ports") or []:
                port.setdefault("name", "")
                port.setdefault("protocol", "TCP")
            for endpoint in item.get("endpoints") or []:
                endpoint.setdefault("conditions", {})

    def _default_service(self, item: Object, before: Object | None) -> None:
        spec: dict[str, Any] = item.setdefault("spec", {})
        item.setdefault("status", {"loadBalancer": {}})
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if spec["sessionAffinity"] == "ClientIP":
            spec.setdefault("sessionAffinityConfig", {"clientIP": {"timeoutSeconds": 10800}})
        for port in spec.get("ports") or []:
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port.get("port"))
        if spec["type"] == "ExternalName":
            return
        spec.setdefault("internalTrafficPolicy", "Cluster")
        self._addresses.assign(item, before)
        if spec["type"] in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if spec["type"] in ("NodePort", "LoadBalancer"):
            self._assign_node_ports(item, spec)

    def _assign_node_ports(self, item: Object, spec: dict[str, Any]) -> None:
        own = item["metadata"]["namespace"], item["metadata"]["name"]
        taken = {
            (port["nodePort"], port["protocol"])
            for other in self._storage.all(SERVICE)
            if (other["metadata"]["namespace"], other["metadata"]["name"]) != own
            for port in other["spec"].get("ports") or []
            if port.get("nodePort")
        }
        for index, port in enumerate(spec.get("ports") or []):
            if not port.get("nodePort"):
                port["nodePort"] = next(n for n in NODE_PORTS if (n, port["protocol"]) not in taken)
            elif port["nodePort"] not in NODE_PORTS or (port["nodePort"], port["protocol"]) in taken:
                why = "already allocated" if port["nodePort"] in NODE_PORTS else "not in the valid range"
                text = f"Invalid value: {port['nodePort']}: provided port is {why}"
                raise invalid(SERVICE, item["metadata"]["name"], [(f"spec.ports[{index}].nodePort", text)])
            taken.add((port["nodePort"], port["protocol"]))
        self._assign_health_port(item, spec, {number for number, _ in taken})

    def _assign_health_port(self, item: Object, spec: dict[str, Any], taken: set[int]) -> None:
        """Where load balancers ask for backends: only of Services of that type whose policy is Local."""
        if spec["type"] != "LoadBalancer" or spec["externalTrafficPolicy"] != "Local":
            spec.pop("healthCheckNodePort", None)
            return
        own = item["metadata"]["namespace"], item["metadata"]["name"]
        taken |= {
            other["spec"].get("healthCheckNodePort", 0)
            for other in self._storage.all(SERVICE)
            if (other["metadata"]["namespace"], other["metadata"]["name"]) != own
        }
        if not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = next(n for n in reversed(NODE_PORTS) if n not in taken)
        elif spec["healthCheckNodePort"] in taken:
            text = f"Invalid value: {spec['healthCheckNodePort']}: provided port is already allocated"
            raise invalid(SERVICE, item["metadata"]["name"], [("spec.healthCheckNodePort", text)])


def _default_pod(item: Object) -> None:
    spec = item.setdefault("spec", {})
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        for port in container.get("ports") or []:
            port.setdefault("protocol", "TCP")


def _default_policy(item: Object) -> None:
    spec = item.setdefault("spec", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    for rule in [*(spec.get("ingress") or []), *(spec.get("egress") or [])]:
        for port in rule.get("ports") or []:
            port.setdefault("protocol", "TCP")
