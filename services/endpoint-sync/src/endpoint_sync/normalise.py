"""API objects to records. Pure; what cannot be understood raises ObjectError with the reason."""

import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import msgspec
from msgspec import structs

from tidegate.kube import objects
from tidegate.records import Backend, HostPort, Identity, Node, Protocol, Service
from tidegate.records.addresses import is_ipv4, pack_address, pack_cidr
from tidegate.records.labels import HIGH_CARDINALITY

SERVICE_NAME = "kubernetes.io/service-name"
# A Service with this label belongs to another proxy (kube-proxy: --proxy-name, apis/well-known-labels).
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
HEADLESS = "service.kubernetes.io/headless"

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
LOCAL = "Local"
DEFAULT_AFFINITY = 10800  # seconds, API documentation of ClientIPConfig
FINISHED = frozenset({"Succeeded", "Failed"})


class ObjectError(ValueError):
    """The object cannot be understood; the text says which field and why."""


H = TypeVar("H", bound=Hashable)
Labels = tuple[tuple[str, str], ...]  # sorted
NamedPorts = tuple[tuple[str, tuple[int, int]], ...]  # name → (protocol, number), sorted

_one_of_each = lru_cache(1 << 14)(lambda value: value)


def shared(value: H) -> H:
    """One object for equal ones, as far as they were asked for lately: pods of one workload are alike in most."""
    return cast("H", _one_of_each(value))


# A Struct, and without dictionaries: there are as many of them as pods.
class PodFacts(msgspec.Struct, frozen=True, gc=False):
    """What matters of a pod. `addresses` is empty until it has one."""

    node: str
    labels: Labels
    ports: NamedPorts
    addresses: tuple[bytes, ...]
    workload: tuple[str, str]
    uid: str
    created: str
    terminating: bool
    host_ports: tuple[HostPort, ...] = ()


def address(text: str, field: str) -> bytes:
    try:
        return pack_address(text)
    except ValueError as error:
        raise ObjectError(f"{field}: {error}") from error


def port(number: int, field: str) -> int:
    if not 1 <= number <= 65535:
        raise ObjectError(f"{field}: {number} is no port (1–65535)")
    return number


def protocol(name: str | None, field: str) -> int:
    known = PROTOCOLS.get(name or "TCP")
    if known is None:
        raise ObjectError(f"{field}: protocol {name!r} is none of TCP, UDP, SCTP")
    return known


def node_record(node: objects.Node) -> Node:
    """InternalIPs first: the first of each family is where other nodes route to."""
    reported = [a for a in node.status.addresses or () if a.type in ("InternalIP", "ExternalIP")]
    reported.sort(key=lambda a: a.type != "InternalIP")
    cidrs = node.spec.pod_cidrs or ((node.spec.pod_cidr,) if node.spec.pod_cidr else ())
    return Node(
        addresses=tuple(address(a.address, "status.addresses") for a in reported),
        pod_cidrs=tuple(cidr(text, "spec.podCIDRs") for text in cidrs),
        zone=node.labels.get("topology.kubernetes.io/zone", ""),
        region=node.labels.get("topology.kubernetes.io/region", ""),
    )


def pod_facts(pod: objects.Pod) -> PodFacts | None:
    """None for pods that are no endpoints: of the host network (they are their node), finished, or not scheduled."""
    if pod.spec.host_network or pod.status.phase in FINISHED or not pod.spec.node_name:
        return None
    ips = tuple(item.ip for item in pod.status.pod_ips or ()) or ((pod.status.pod_ip,) if pod.status.pod_ip else ())
    ports: dict[str, tuple[int, int]] = {}
    host_ports: list[HostPort] = []
    # Sidecars are init containers that go on (KEP-753); other init containers serve nothing.
    sidecars = tuple(c for c in pod.spec.init_containers or () if c.restart_policy == "Always")
    for container in (*sidecars, *(pod.spec.containers or ())):
        for item in container.ports or ():
            if not item.name and not item.host_port:
                continue
            number = port(item.container_port, f"containers.ports[{item.name}]")
            kind = protocol(item.protocol, "containers.ports")
            if item.name:
                ports.setdefault(item.name, (kind, number))
            if item.host_port:
                host_ports.append(host_port(item, kind, number))
    return PodFacts(
        node=sys.intern(pod.spec.node_name),
        labels=shared(tuple(sorted(pod.labels.items()))),
        ports=shared(tuple(sorted(ports.items()))),
        addresses=tuple(dict.fromkeys(address(ip, "status.podIPs") for ip in ips)),
        workload=shared(workload(pod)),
        uid=pod.metadata.uid,
        created=pod.metadata.creation_timestamp or "",
        terminating=pod.metadata.deletion_timestamp is not None,
        host_ports=tuple(host_ports),
    )


def host_port(item: objects.ContainerPort, kind: int, target: int) -> HostPort:
    """`hostIP` 0.0.0.0 and :: mean every address, as the empty one does."""
    where = b"" if item.host_ip in ("", "0.0.0.0", "::") else address(item.host_ip, "containers.ports.hostIP")  # noqa: S104  # compared, not bound
    return HostPort(protocol=kind, port=port(item.host_port, "containers.ports.hostPort"), target=target, address=where)


def workload(pod: objects.Pod) -> tuple[str, str]:
    """Kind and name of what made the pod; a Deployment instead of its ReplicaSet."""
    owners = pod.metadata.owner_references or ()
    owner = next((o for o in owners if o.controller), owners[0] if owners else None)
    if owner is None:
        return "Pod", pod.metadata.name
    template = pod.labels.get("pod-template-hash")
    if owner.kind == "ReplicaSet" and template and owner.name.endswith(f"-{template}"):
        return "Deployment", owner.name.removesuffix(f"-{template}")
    return owner.kind, owner.name


def identity_of(
    namespace: str, labels: Labels, ports: NamedPorts, label_keys: frozenset[str], port_names: frozenset[str]
) -> Identity:
    """`label_keys` and `port_names` are those that policies ask for (records.IdentityKeys)."""
    dropped = HIGH_CARDINALITY - label_keys
    return Identity(
        namespace=namespace,
        labels={key: value for key, value in labels if key not in dropped},
        ports={name: where for name, where in ports if name in port_names},
    )


@dataclass(frozen=True, slots=True)
class FrontendPort:
    name: str
    protocol: int
    port: int
    node_port: int


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """`record` is the Service's record but for its ports, whose numbers are given elsewhere."""

    record: Service
    ports: tuple[FrontendPort, ...]


def service_facts(service: objects.Service) -> ServiceFacts | None:
    """None for Services without frontends of ours: headless, ExternalName, of another proxy."""
    spec = service.spec
    if spec.type == "ExternalName" or PROXY_NAME in service.labels or HEADLESS in service.labels:
        return None
    ips = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    ips = tuple(ip for ip in ips if ip not in ("None", ""))
    if not ips:
        return None
    ports = tuple(
        FrontendPort(
            name=item.name,
            protocol=protocol(item.protocol, "spec.ports.protocol"),
            port=port(item.port, "spec.ports.port"),
            node_port=port(item.node_port, "spec.ports.nodePort") if item.node_port else 0,
        )
        for item in spec.ports or ()
    )
    record = Service(
        type=spec.type,
        cluster_ips=tuple(address(ip, "spec.clusterIPs") for ip in ips),
        external_ips=tuple(address(ip, "spec.externalIPs") for ip in spec.external_ips or ()),
        load_balancer_ips=load_balancer_ips(service.status),
        internal_local=spec.internal_traffic_policy == LOCAL,
        external_local=spec.external_traffic_policy == LOCAL,
        affinity_seconds=affinity(spec),
        source_ranges=tuple(
            cidr(text, "spec.loadBalancerSourceRanges", host_bits=True)
            for text in spec.load_balancer_source_ranges or ()
        ),
        health_port=port(spec.health_check_node_port, "spec.healthCheckNodePort") if spec.health_check_node_port else 0,
    )
    return ServiceFacts(record, ports)


def load_balancer_ips(status: objects.ServiceStatus) -> tuple[bytes, ...]:
    """Without those of ipMode Proxy: traffic to them goes through the load balancer also from inside (KEP-1860)."""
    ingress = status.load_balancer.ingress or ()
    ours = [item.ip for item in ingress if item.ip and item.ip_mode in (None, "VIP")]
    return tuple(address(ip, "status.loadBalancer.ingress") for ip in ours)


def affinity(spec: objects.ServiceSpec) -> int:
    """Seconds for which a client stays with its backend; 0: none."""
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return DEFAULT_AFFINITY
    if not 0 < seconds <= 86400:
        raise ObjectError(f"spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not 1–86400")
    return seconds


def cidr(text: str, field: str, host_bits: bool = False) -> tuple[bytes, int]:
    try:
        return pack_cidr(text.strip(), legacy=host_bits)
    except ValueError as error:
        raise ObjectError(f"{field}: {error}") from error


_FAMILY = {"IPv4": True, "IPv6": False}


def slice_owner(labels: Mapping[str, str]) -> str:
    """Name of the Service that an EndpointSlice is of; empty where it is none's, or of another proxy or headless.

    kube-proxy watches neither Services nor slices with these labels.
    """
    return "" if PROXY_NAME in labels or HEADLESS in labels else labels.get(SERVICE_NAME, "")


def slice_backends(item: objects.EndpointSlice) -> dict[bytes, Backend]:
    """Address → backend. Of an endpoint only the first address counts, as the API documentation says.

    Raises ObjectError for an address of another family than `addressType`, or a port out of range.
    """
    if item.address_type not in _FAMILY:
        return {}  # FQDN: nothing to send packets to
    ports = {
        slice_port.name or "": port(slice_port.port, "ports.port")
        for slice_port in item.ports or ()
        if slice_port.port is not None
    }
    for slice_port in item.ports or ():
        protocol(slice_port.protocol, "ports.protocol")
    backends: dict[bytes, Backend] = {}
    for endpoint in item.endpoints or ():
        if not endpoint.addresses:
            continue
        packed = address(endpoint.addresses[0], "endpoints.addresses")
        if is_ipv4(packed) != _FAMILY[item.address_type]:
            raise ObjectError(f"endpoints.addresses: {endpoint.addresses[0]} is not {item.address_type}")
        backends[packed] = _backend(packed, endpoint, ports)
    return backends


_UNKNOWN = objects.EndpointConditions()


def _backend(packed: bytes, endpoint: objects.SliceEndpoint, ports: dict[str, int]) -> Backend:
    # Absent conditions (discovery/v1): ready counts as true, serving as ready, terminating as false.
    conditions = endpoint.conditions or _UNKNOWN
    ready = conditions.ready is not False
    return Backend(
        address=packed,
        ports=ports,
        ready=ready,
        serving=ready if conditions.serving is None else conditions.serving,
        terminating=bool(conditions.terminating),
        node=sys.intern(endpoint.node_name or ""),
        zone=sys.intern(endpoint.zone or ""),
        for_zones=_names(endpoint.hints.for_zones) if endpoint.hints else (),
        for_nodes=_names(endpoint.hints.for_nodes) if endpoint.hints else (),
    )


def _names(hints: tuple[objects.Hint, ...] | None) -> tuple[str, ...]:
    return tuple(sorted({hint.name for hint in hints or ()}))


def merge(backends: list[Backend]) -> Backend:
    """One address in several slices, as while a controller moves it: the more able state, and all ports."""
    if len(backends) == 1:
        return backends[0]
    best = max(backends, key=lambda b: (b.ready, b.serving, not b.terminating))
    ports = {name: number for backend in (*backends, best) for name, number in backend.ports.items()}
    return structs.replace(best, ports=ports)
