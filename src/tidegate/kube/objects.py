"""API objects, partly: the fields that decide where a packet goes. Everything else is skipped while decoding.

Names and meanings are those of the Kubernetes API reference; a field that is absent or null has its zero value, unless
absence means something (then it is None).
"""

from typing import TypeVar

import msgspec

# What decoding raises: for what is no JSON or of other types, for text that is none, for too much inside of each other.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# gc=False: nothing here refers back, and a hundred thousand of them would be looked through at each collection.
class Part(msgspec.Struct, frozen=True, rename="camel", gc=False):
    pass


class OwnerReference(Part, frozen=True):
    kind: str = ""
    name: str = ""
    controller: bool = False


class Metadata(Part, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: tuple[OwnerReference, ...] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Object(Part, frozen=True):
    metadata: Metadata = Metadata()

    @property
    def key(self) -> tuple[str, str]:
        return self.metadata.namespace, self.metadata.name

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.labels or {}


T = TypeVar("T", bound=Object)


class Namespace(Object, frozen=True):
    pass


class NodeAddress(Part, frozen=True):
    type: str = ""
    address: str = ""


class NodeSpec(Part, frozen=True):
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="podCIDRs")


class NodeStatus(Part, frozen=True):
    addresses: tuple[NodeAddress, ...] | None = None


class Node(Object, frozen=True):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ContainerPort(Part, frozen=True):
    container_port: int = 0
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")


class Container(Part, frozen=True):
    name: str = ""
    ports: tuple[ContainerPort, ...] | None = None
    restart_policy: str | None = None  # Always makes a sidecar of an init container (KEP-753)


class PodSpec(Part, frozen=True):
    node_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] | None = None
    init_containers: tuple[Container, ...] | None = None


class PodIP(Part, frozen=True):
    ip: str = ""


class Condition(Part, frozen=True):
    type: str = ""
    status: str = ""


class PodStatus(Part, frozen=True):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] | None = msgspec.field(default=None, name="podIPs")
    conditions: tuple[Condition, ...] | None = None


class Pod(Object, frozen=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(Part, frozen=True):
    port: int = 0
    name: str = ""
    protocol: str = "TCP"
    node_port: int = 0
    target_port: int | str | None = None


class LoadBalancerIngress(Part, frozen=True):
    ip: str = ""
    ip_mode: str | None = None


class LoadBalancerStatus(Part, frozen=True):
    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(Part, frozen=True):
    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class ClientIP(Part, frozen=True):
    timeout_seconds: int | None = None


class AffinityConfig(Part, frozen=True):
    client_ip: ClientIP | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Part, frozen=True):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: tuple[str, ...] | None = msgspec.field(default=None, name="externalIPs")
    ports: tuple[ServicePort, ...] | None = None
    selector: dict[str, str] | None = None
    ip_families: tuple[str, ...] | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    publish_not_ready_addresses: bool = False
    load_balancer_source_ranges: tuple[str, ...] | None = None
    traffic_distribution: str | None = None
    health_check_node_port: int = 0


class Service(Object, frozen=True):
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(Part, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class TargetRef(Part, frozen=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""


class Hint(Part, frozen=True):
    name: str = ""


class Hints(Part, frozen=True):
    for_zones: tuple[Hint, ...] | None = None
    for_nodes: tuple[Hint, ...] | None = None


class SliceEndpoint(Part, frozen=True):
    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: Hints | None = None
    target_ref: TargetRef | None = None


class SlicePort(Part, frozen=True):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointSlice(Object, frozen=True):
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None


class ConfigMap(Object, frozen=True):
    data: dict[str, str] | None = None


class LogAction(Part, frozen=True):
    log: bool = False
    delegate: bool = False


class ClusterLogging(Part, frozen=True):
    allow: LogAction | None = None
    deny: LogAction | None = None


class NetworkLoggingSpec(Part, frozen=True):
    cluster: ClusterLogging | None = None


class NetworkLogging(Object, frozen=True):
    spec: NetworkLoggingSpec | None = None


class Requirement(Part, frozen=True):
    key: str
    operator: str
    values: tuple[str, ...] | None = None


class LabelSelector(Part, frozen=True):
    match_labels: dict[str, str] | None = None
    match_expressions: tuple[Requirement, ...] | None = None


class IPBlock(Part, frozen=True):
    cidr: str
    except_: tuple[str, ...] | None = msgspec.field(default=None, name="except")


class PolicyPeer(Part, frozen=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class PolicyPort(Part, frozen=True):
    port: int | str | None = None
    end_port: int | None = None
    protocol: str | None = None


class IngressRule(Part, frozen=True):
    from_: tuple[PolicyPeer, ...] | None = msgspec.field(default=None, name="from")
    ports: tuple[PolicyPort, ...] | None = None


class EgressRule(Part, frozen=True):
    to: tuple[PolicyPeer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None


class NetworkPolicySpec(Part, frozen=True):
    pod_selector: LabelSelector = LabelSelector()
    ingress: tuple[IngressRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None
    policy_types: tuple[str, ...] | None = None


class NetworkPolicy(Object, frozen=True):
    spec: NetworkPolicySpec = NetworkPolicySpec()
