"""What clients may address: the frontends of a Service on this node, and what is behind each. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tidegate.records import Service, ServicePort
from tidegate.records.addresses import is_ipv4

# The selection for the policy Local of a service port has the port's number with this bit (types.h).
LOCAL = 1 << 30
# Numbers of the selections of host ports have this bit.
HOST_PORT = 1 << 29
# Numbers of the selections of IPv6 backends have this bit.
IPV6 = 1 << 31

LOOPBACK, LOOPBACK6 = bytes(10) + b"\xff\xff\x7f", bytes(15) + b"\x01"
LINK_LOCAL6 = 0xFE80  # the first ten bits of the first two bytes


@dataclass(frozen=True, slots=True)
class Frontend:
    """`service` is what clients in the cluster get, `outside` what those outside of it get (numbers of selections).

    With port 0 it stands for the address itself: its other ports are refused, or left alone if `open` is set.
    """

    address: bytes
    port: int = 0
    protocol: int = 0
    service: int = 0
    outside: int = 0
    open: bool = False
    ranges: bool = False  # only for clients in the Service's source ranges


def internal(service: Service, port: ServicePort) -> int:
    """The selection behind the ClusterIP."""
    return port.id | LOCAL * service.internal_local


def external(service: Service, port: ServicePort) -> int:
    """The selection that clients outside the cluster get behind NodePorts, load balancers and external IPs."""
    return port.id | LOCAL * service.external_local


def is_external(service: Service) -> bool:
    """Whether it can be addressed by anything else than its ClusterIP."""
    return bool(service.external_ips or service.load_balancer_ips or any(port.node_port for port in service.ports))


def family(address: bytes) -> int:
    """The bit that numbers of selections have for this address's family."""
    return 0 if is_ipv4(address) else IPV6


def families(service: Service) -> set[int]:
    """Those of its ClusterIPs (`spec.ipFamilies`): other addresses of it count in these families only."""
    return {family(address) for address in service.cluster_ips}


def numbers(service: Service, port: ServicePort) -> set[int]:
    """The selections of a port that are needed, in each family."""
    found = {internal(service, port)}
    if is_external(service):
        found |= {port.id, external(service, port)}
    return found


def is_served(address: bytes) -> bool:
    """Whether NodePorts and host ports are served on this address of the node's."""
    link_local = int.from_bytes(address[:2], "big") & 0xFFC0 == LINK_LOCAL6
    return not address.startswith(LOOPBACK) and address != LOOPBACK6 and not link_local


def ranges(service: Service) -> Iterator[tuple[int, bytes, int]]:
    """Who may use the load balancer's addresses: number of a port, address, prefix length in the 128-bit form."""
    if service.load_balancer_ips:
        for port in service.ports:
            for address, prefix in service.source_ranges:
                yield port.id | family(address), address, prefix


def frontends(service: Service, own: Iterable[bytes]) -> Iterator[Frontend]:
    """All frontends; `own` are the node's own addresses, on which NodePorts are served (not on loopback ones)."""
    spoken = families(service)
    for address in service.cluster_ips:
        yield Frontend(address)
        for port in service.ports:
            number = internal(service, port) | family(address)
            yield Frontend(address, port.port, port.protocol, number, number)
    for addresses, is_open in ((service.load_balancer_ips, False), (service.external_ips, True)):
        for address in (address for address in addresses if family(address) in spoken):
            bit = family(address)
            yield Frontend(address, open=is_open)
            for port in service.ports:
                number, outside = port.id | bit, external(service, port) | bit
                ranges = bool(service.source_ranges) and not is_open
                yield Frontend(address, port.port, port.protocol, number, outside, ranges=ranges)
    for address in (address for address in filter(is_served, own) if family(address) in spoken):
        bit = family(address)
        for port in service.ports:
            if port.node_port:
                number, outside = port.id | bit, external(service, port) | bit
                yield Frontend(address, port.node_port, port.protocol, number, outside)
