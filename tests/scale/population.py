"""The cluster of the largest size, in the terms of those who make it: what both generators draw from. Pure.

At scale 1 it has the limits that GKE Dataplane V2 publishes: 7,500 nodes, 200,000 pods, 10,000 Services of 26 backends
each, 750 of them with load balancers; and 6,000 identities and 30,000 NetworkPolicies. The unit is the namespace: ten
workloads that serve (26 pods, two Services each) and two that do not (70 pods), with five policies each. A smaller
scale has fewer namespaces and nodes, each as large as before, so that what a single node or Service has stays the
same.

Equal arguments give equal clusters, name for name.
"""

import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

NODES, NAMESPACES = 7500, 500  # at scale 1

SERVING, WORKERS = 10, 2  # workloads of a namespace
WORKLOADS = SERVING + WORKERS
REPLICAS, WORKER_REPLICAS = 26, 70
SERVICES_EACH = 2  # of a workload that serves
PODS = SERVING * REPLICAS + WORKERS * WORKER_REPLICAS  # of a namespace
POLICIES_EACH = 5  # of a workload
BALANCED = 750, 10_000  # so many Services of so many have a load balancer
TEAM = 20  # namespaces with one team's label

ZONES = ("zone-a", "zone-b", "zone-c")
REGION = "region-1"
HTTP, METRICS, DNS, HTTPS = 8080, 9090, 53, 443
FIRST_NODE_PORT = 30000

Object = dict[str, Any]  # a part of a manifest


@dataclass(frozen=True, slots=True)
class Node:
    index: int
    name: str
    address: str
    pod_cidr: str
    zone: str


@dataclass(frozen=True, slots=True)
class Namespace:
    index: int
    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment. `labels` are those of its pods, `template_hash` comes to them as the ReplicaSet's does."""

    index: int
    namespace: Namespace
    name: str
    labels: dict[str, str]
    template_hash: str
    replicas: int
    first_pod: int

    @property
    def serves(self) -> bool:
        return self.replicas == REPLICAS

    @property
    def ports(self) -> dict[str, int]:
        """Named TCP ports of its containers."""
        return {"http": HTTP, "metrics": METRICS} if self.serves else {}


@dataclass(frozen=True, slots=True)
class Pod:
    index: int
    workload: Workload
    name: str
    uid: str
    node: Node
    address: str


@dataclass(frozen=True, slots=True)
class Service:
    """One TCP port, whose backends are all pods of the workload."""

    index: int
    workload: Workload
    name: str
    uid: str
    cluster_ip: str
    port_name: str
    port: int
    target: int
    load_balancer_ip: str = ""
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """`spec` as in a manifest of networking.k8s.io/v1."""

    namespace: str
    name: str
    uid: str
    spec: Object


class Population:
    """`scale`: 1 is the full size; what results is rounded, and at least one of each."""

    def __init__(self, scale: float = 1.0, seed: int = 0) -> None:
        self.node_count = max(1, round(NODES * scale))
        self.namespace_count = max(1, round(NAMESPACES * scale))
        self.seed = seed

    @property
    def pod_count(self) -> int:
        return self.namespace_count * PODS

    @property
    def workload_count(self) -> int:
        return self.namespace_count * WORKLOADS

    @property
    def service_count(self) -> int:
        return self.namespace_count * SERVING * SERVICES_EACH

    @property
    def policy_count(self) -> int:
        return self.workload_count * POLICIES_EACH

    def node(self, index: int) -> Node:
        high, low = divmod(index, 256)
        return Node(
            index,
            f"node-{index:05}",
            f"172.{16 + (high >> 8)}.{high & 255}.{low}",
            f"10.{128 + high}.{low}.0/24",
            ZONES[index % len(ZONES)],
        )

    def nodes(self) -> Iterator[Node]:
        return map(self.node, range(self.node_count))

    def namespace(self, index: int) -> Namespace:
        name = f"ns-{index:03}"
        labels = {"kubernetes.io/metadata.name": name, "team": f"team-{index // TEAM}"}
        return Namespace(index, name, labels)

    def namespaces(self) -> Iterator[Namespace]:
        return map(self.namespace, range(self.namespace_count))

    def workloads_of(self, namespace: Namespace) -> list[Workload]:
        found, first_pod = [], namespace.index * PODS
        for place in range(WORKLOADS):
            name = f"app-{place}" if place < SERVING else f"worker-{place - SERVING}"
            labels = {"app": name, "app.kubernetes.io/part-of": f"shop-{namespace.index}", "tier": _tier(place)}
            replicas = REPLICAS if place < SERVING else WORKER_REPLICAS
            index = namespace.index * WORKLOADS + place
            found.append(Workload(index, namespace, name, labels, self._digest("rs", index)[:10], replicas, first_pod))
            first_pod += replicas
        return found

    def workloads(self) -> Iterator[Workload]:
        return (workload for namespace in self.namespaces() for workload in self.workloads_of(namespace))

    def pods_of(self, workload: Workload) -> list[Pod]:
        return [self._pod(workload, number) for number in range(workload.replicas)]

    def pods(self) -> Iterator[Pod]:
        return (pod for workload in self.workloads() for pod in self.pods_of(workload))

    def services_of(self, workload: Workload) -> list[Service]:
        if not workload.serves:
            return []
        of_namespace = workload.index % WORKLOADS
        first = (workload.namespace.index * SERVING + of_namespace) * SERVICES_EACH
        return [
            self._service(first, workload, workload.name, "http", (80, HTTP)),
            self._service(first + 1, workload, f"{workload.name}-metrics", "metrics", (METRICS, METRICS)),
        ]

    def services(self) -> Iterator[Service]:
        return (service for workload in self.workloads() for service in self.services_of(workload))

    def policies_of(self, workload: Workload) -> list[Policy]:
        own, namespace = {"matchLabels": {"app": workload.name}}, workload.namespace
        rng = random.Random(f"{self.seed} policies {workload.index}")  # noqa: S311  # not for secrets
        names = [f"app-{place}" for place in range(SERVING)]
        neighbours = {"matchExpressions": [{"key": "app", "operator": "In", "values": sorted(rng.sample(names, 3))}]}
        # The first workload of each namespace is for everybody, the others for their team.
        whose: Object = {} if workload.name == names[0] else {"matchLabels": {"team": namespace.labels["team"]}}
        first = {"matchLabels": {"kubernetes.io/metadata.name": self.namespace(0).name}}
        partner = f"{rng.randrange(11, 100)}.{rng.randrange(256)}.{rng.randrange(256)}.0/24"
        inside: Object = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "172.16.0.0/12", partner]}}
        specs: dict[str, Object] = {
            "from-neighbours": _ingress({"podSelector": neighbours}, port=HTTP),
            "from-teams": _ingress({"namespaceSelector": whose}, port=HTTP),
            "from-monitoring": _ingress(
                {"namespaceSelector": first, "podSelector": {"matchLabels": {"app": "worker-0"}}}, port=METRICS
            ),
            "to-namespace": {
                "policyTypes": ["Egress"],
                "egress": [
                    {"to": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": HTTP}]},
                    {"to": [{"namespaceSelector": first}], "ports": [{"protocol": "UDP", "port": DNS}]},
                ],
            },
            "to-outside": {
                "policyTypes": ["Egress"],
                "egress": [{"to": [inside], "ports": [{"protocol": "TCP", "port": HTTPS}]}],
            },
        }
        return [
            Policy(
                namespace.name,
                f"{workload.name}-{name}",
                self._uid("policy", f"{workload.index} {name}"),
                {"podSelector": own, **spec},
            )
            for name, spec in specs.items()
        ]

    def policies(self) -> Iterator[Policy]:
        return (policy for workload in self.workloads() for policy in self.policies_of(workload))

    @cached_property
    def _placed(self) -> "tuple[array[int], array[int]]":
        """Of each pod, its node and its number there: nodes have equally many, but for one."""
        nodes = array("I", (index % self.node_count for index in range(self.pod_count)))
        random.Random(f"{self.seed} placement").shuffle(nodes)  # noqa: S311
        taken, numbers = array("I", bytes(4 * self.node_count)), array("I", bytes(4 * self.pod_count))
        for index, node in enumerate(nodes):
            numbers[index] = taken[node]
            taken[node] += 1
        return nodes, numbers

    def _pod(self, workload: Workload, number: int) -> Pod:
        index = workload.first_pod + number
        nodes, numbers = self._placed
        node = self.node(nodes[index])
        name = f"{workload.name}-{workload.template_hash}-{self._digest('pod', index)[:3]}{number:02}"
        address = node.pod_cidr.replace(".0/24", f".{numbers[index] + 2}")
        return Pod(index, workload, name, self._uid("pod", index), node, address)

    def _service(self, index: int, workload: Workload, name: str, port_name: str, ports: tuple[int, int]) -> Service:
        high, low = divmod(index, 256)
        address = f"10.{96 + (high >> 8)}.{high & 255}.{low}"
        plain = Service(index, workload, name, self._uid("service", index), address, port_name, *ports)
        some, of = BALANCED
        number = index * some // of
        if (index + 1) * some // of == number:
            return plain
        high, low = divmod(number, 256)
        return replace(plain, load_balancer_ip=f"198.18.{high}.{low}", node_port=FIRST_NODE_PORT + number)

    def _digest(self, kind: str, what: int | str) -> str:
        return blake2b(f"{self.seed} {kind} {what}".encode(), digest_size=16).hexdigest()

    def _uid(self, kind: str, what: int | str) -> str:
        digest = self._digest(f"uid {kind}", what)
        return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:]))


def _tier(place: int) -> str:
    return "worker" if place >= SERVING else ("front", "back", "data")[min(place, 2)]


def _ingress(*peers: Object, port: int) -> Object:
    rule = {"from": list(peers), "ports": [{"protocol": "TCP", "port": port}]}
    return {"policyTypes": ["Ingress"], "ingress": [rule]}
