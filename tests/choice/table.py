"""The words that the table of Services is written in, and the objects that each row stands for.

A row is a Service with its endpoints, and what each class of client at each node gets. The cluster is always the same:
node-1 in zone-a, node-2 in zone-b, node-3 in no zone, and the pods of PODS.

Endpoints, in one string: pod, then its state after a slash (ready if none is given), `@zone-a,zone-b` for hints that
name zones, `%node-1` for those that name nodes: "a1 a2/ending b1@zone-a". With `4:` before it a pod is in the IPv4
slices only.

Expectations, one a line: frontend | clients | answer.
  frontend  cluster, lb, proxy (a load balancer's address of ipMode Proxy), external: the Service's addresses; port: the
            NodePort at the node in question; loopback: the same at 127.0.0.1; host: the host port there. With `:PORT`
            or `:PORT/PROTOCOL` where it is not the first port of the Service.
  clients   pods, nodes (their own processes), outside (who comes in by the node), elsewhere (a pod on another node, who
            comes in by the node), inside (pods and nodes); `@1,3` limits them to these nodes.
  answer    pods of which each is chosen at times, and no other; `refused`, `dropped`, or `passed` (no business of
            ours). After a slash that for IPv6, where it is another one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Object = dict[str, Any]

NAMESPACE = "rows"
ZONES = {"node-1": "zone-a", "node-2": "zone-b", "node-3": ""}
NODES = tuple(ZONES)
FIRST_NODE_PORT = 31000
IPV4, IPV6 = "IPv4", "IPv6"
BOTH = (IPV4, IPV6)
LOOPBACK = {IPV4: "127.0.0.1", IPV6: "::1"}

WEB: tuple[Object, ...] = (
    {"name": "web", "containerPort": 8080},
    {"name": "dns", "containerPort": 5353, "protocol": "UDP"},
)
# The same names with other numbers, and the usual numbers without names.
OTHER: tuple[Object, ...] = (
    *({**port, "containerPort": port["containerPort"] + 10} for port in WEB),
    *({name: value for name, value in port.items() if name != "name"} for port in WEB),
)
HOST: tuple[Object, ...] = (
    {"name": "web", "containerPort": 8080, "hostPort": 18081},
    {"name": "dns", "containerPort": 5353, "hostPort": 18081, "protocol": "UDP"},
)


@dataclass(frozen=True)
class Pod:
    node: str
    ports: tuple[Object, ...] = WEB
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True


# Two servers in zone-a and in zone-b, one on the node without a zone. c… are clients.
PODS = {
    "a1": Pod("node-1", labels={"app": "near", "named": "yes"}),
    "b1": Pod("node-1", labels={"app": "near"}),
    "a2": Pod("node-2", OTHER, {"app": "near", "named": "yes"}),
    "b2": Pod("node-2", labels={"app": "far"}),
    "a3": Pod("node-3", labels={"app": "far"}),
    "u1": Pod("node-1", labels={"app": "unready"}, ready=False),
    "h2": Pod("node-2", HOST),
    "c1": Pod("node-1"),
    "c2": Pod("node-2"),
    "c3": Pod("node-3"),
}

# ready, serving, terminating; None: the condition is absent
STATES: dict[str, tuple[bool | None, bool | None, bool | None]] = {
    "ready": (True, True, False),
    "waiting": (False, False, False),
    "serving": (False, True, False),
    "ending": (False, True, True),
    "ended": (False, False, True),
    "published": (True, True, True),
    "unknown": (None, None, None),
    "homeless": (True, True, False),  # and its node is not said
}


@dataclass(frozen=True)
class Row:
    """`ports`: of the Service. `slices`: ports and endpoints of each EndpointSlice; none where `selector` is set."""

    expect: str
    slices: tuple[tuple[tuple[Object, ...], str], ...] = ()
    ports: tuple[Object, ...] = ({"port": 80},)
    families: tuple[str, ...] = (IPV4,)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    selector: Mapping[str, str] | None = None


def row(endpoints: str, expect: str, *ports: Object, families: tuple[str, ...] = (IPV4,), **spec: Any) -> Row:
    """Backends listen on 8080, or on what a port's `backend` says."""
    listed = ports or ({"port": 80},)
    of_service = tuple({name: value for name, value in port.items() if name != "backend"} for port in listed)
    of_slice = tuple(
        {
            "name": port.get("name", ""),
            "protocol": port.get("protocol", "TCP"),
            "port": port.get("backend", 5353 if port.get("protocol") == "UDP" else 8080),
        }
        for port in listed
    )
    labels, annotations = spec.pop("labels", {}), spec.pop("annotations", {})
    selector = spec.pop("selector", None)
    slices = ((of_slice, endpoints),) if endpoints else ()
    return Row(expect, slices, of_service, families, labels, annotations, spec, selector)


class Addresses:
    """Of each family: a Service's by the number of its row, and the pods' and nodes', which the runner knows."""

    def __init__(self, pods: Mapping[str, Mapping[str, str]], nodes: Mapping[str, Mapping[str, str]]) -> None:
        """Name → family → address."""
        self.pods = pods
        self.nodes = nodes

    def cluster(self, number: int, family: str) -> str:
        return f"10.96.20.{number}" if family == IPV4 else f"fd96::20{number:02x}"

    def balancer(self, number: int, family: str) -> str:
        return f"203.0.114.{number}" if family == IPV4 else f"2001:db8:114::{number:x}"

    def proxied(self, number: int, family: str) -> str:
        return f"203.0.115.{number}" if family == IPV4 else f"2001:db8:115::{number:x}"

    def external(self, number: int, family: str) -> str:
        return f"198.51.101.{number}" if family == IPV4 else f"2001:db8:101::{number:x}"


ROUTED = {
    IPV4: ("10.96.20.0/24", "203.0.114.0/24", "203.0.115.0/24", "198.51.101.0/24"),
    IPV6: ("fd96::2000/120", "2001:db8:114::/48", "2001:db8:115::/48", "2001:db8:101::/48"),
}


def service_name(number: int) -> str:
    return f"row-{number}"


def node_port(number: int, index: int) -> int:
    return FIRST_NODE_PORT + 4 * number + index


def service(number: int, row: Row, addresses: Addresses) -> Object:
    """As somebody would apply it; the playground's server and the runners without a server take it alike."""
    spec: Object = {"type": "ClusterIP", **row.spec}
    external = spec.pop("external", False)
    if spec.get("clusterIP") != "None" and spec["type"] != "ExternalName":
        spec["clusterIPs"] = [addresses.cluster(number, family) for family in row.families]
        spec["clusterIP"] = spec["clusterIPs"][0]
        spec["ipFamilies"] = list(row.families)
        spec.setdefault("ipFamilyPolicy", "SingleStack" if len(row.families) == 1 else "PreferDualStack")
    if external:
        spec["externalIPs"] = [addresses.external(number, family) for family in row.families]
    spec["ports"] = [dict(port) for port in row.ports]
    if spec["type"] in ("NodePort", "LoadBalancer"):
        for index, port in enumerate(spec["ports"]):
            port["nodePort"] = node_port(number, index)
    if row.selector:
        spec["selector"] = dict(row.selector)
    metadata = {"name": service_name(number), "namespace": NAMESPACE, "labels": dict(row.labels)}
    if row.annotations:
        metadata["annotations"] = dict(row.annotations)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def service_status(number: int, row: Row, addresses: Addresses) -> Object:
    """What a cloud's controller would report of a load balancer: addresses of both modes."""
    if row.spec.get("type") != "LoadBalancer":
        return {}
    plain = [{"ip": addresses.balancer(number, family), "ipMode": "VIP"} for family in row.families]
    proxied = [{"ip": addresses.proxied(number, family), "ipMode": "Proxy"} for family in row.families]
    return {"loadBalancer": {"ingress": [*plain, *proxied]}}


def slices(number: int, row: Row, addresses: Addresses) -> list[Object]:
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service_name(number)}-{index}-{family.lower()}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": service_name(number)},
            },
            "addressType": family,
            "ports": [{name: value for name, value in port.items() if value != ""} for port in ports],
            "endpoints": [
                _endpoint(text.removeprefix("4:"), family, addresses)
                for text in endpoints.split()
                if family == IPV4 or not text.startswith("4:")
            ],
        }
        for index, (ports, endpoints) in enumerate(row.slices)
        for family in row.families
    ]


def _endpoint(text: str, family: str, addresses: Addresses) -> Object:
    text, _, for_nodes = text.partition("%")
    text, _, for_zones = text.partition("@")
    name, _, state = text.partition("/")
    conditions = dict(zip(("ready", "serving", "terminating"), STATES[state or "ready"], strict=True))
    hints = {"forZones": for_zones, "forNodes": for_nodes}
    found: Object = {
        "addresses": [addresses.pods[name][family]],
        "conditions": {name: value for name, value in conditions.items() if value is not None},
        "zone": ZONES[PODS[name].node] or "elsewhere",
        "hints": {key: [{"name": one} for one in names.split(",")] for key, names in hints.items() if names},
    }
    return found if state == "homeless" else {**found, "nodeName": PODS[name].node}


# ---- expectations ----------------------------------------------------------------------------------------------------

REFUSED, DROPPED, PASSED = "refused", "dropped", "passed"
CLASSES = {"inside": ("pods", "nodes")}


@dataclass(frozen=True)
class Probe:
    """One class of client, at or by way of one node, towards one frontend in one family."""

    row: str
    client: str  # pods, nodes, outside, elsewhere
    node: str
    family: str
    address: str
    port: int
    protocol: str
    answer: frozenset[str]  # names of pods, or one of REFUSED, DROPPED, PASSED
    sticky: bool  # whoever has got one keeps it

    @property
    def text(self) -> str:
        return f"{self.row}: {self.client} at {self.node} to {self.address} {self.port}/{self.protocol}"

    @property
    def chosen(self) -> bool:
        return not self.answer & {REFUSED, DROPPED, PASSED}


def probes(rows: Mapping[str, Row], numbers: Mapping[str, int], addresses: Addresses) -> Iterator[Probe]:
    for name, one in rows.items():
        number = numbers[name]
        for line in one.expect.strip().splitlines():
            frontend, clients, answer = (part.strip() for part in line.split("|"))
            ipv4, _, ipv6 = answer.partition(" / ")
            for family, (client, node) in product(one.families, _clients(clients)):
                where = _frontend(number, one, frontend, family, node, addresses)
                wanted = frozenset((ipv6 or ipv4 if family == IPV6 else ipv4).split())
                yield Probe(name, client, node, family, *where, wanted, "sessionAffinity" in one.spec)


def _clients(text: str) -> Iterator[tuple[str, str]]:
    for word in text.split():
        kind, _, numbers = word.partition("@")
        nodes = [f"node-{number}" for number in numbers.split(",")] if numbers else NODES
        for each in CLASSES.get(kind, (kind,)):
            assert each in ("pods", "nodes", "outside", "elsewhere"), word
            yield from ((each, node) for node in nodes)


def _frontend(number: int, row: Row, text: str, family: str, node: str, addresses: Addresses) -> tuple[str, int, str]:
    kind, _, end = text.partition(":")
    asked, _, protocol = end.partition("/")
    protocol = protocol or row.ports[0].get("protocol", "TCP")
    index = next((i for i, port in enumerate(row.ports) if str(port["port"]) == asked), 0)
    if kind == "host":
        return addresses.nodes[node][family], int(asked or 18081), protocol
    if kind in ("port", "loopback"):
        where = addresses.nodes[node][family] if kind == "port" else LOOPBACK[family]
        return where, node_port(number, index), protocol
    of_kind = {
        "cluster": addresses.cluster,
        "lb": addresses.balancer,
        "proxy": addresses.proxied,
        "external": addresses.external,
    }
    return of_kind[kind](number, family), int(asked) if asked else row.ports[0]["port"], protocol
