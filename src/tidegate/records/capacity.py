"""How much Services take of what the nodes have room for. Pure.

endpoint-sync counts by `cost` over all Services and holds back what is beyond the capacity; agents have maps of
`map_sizes`, which hold whatever has been let through (a test compares both with what an agent writes).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from tidegate.records.addresses import is_ipv4
from tidegate.records.schema import Backend, Service

# On how many addresses of each family a node may serve NodePorts without more room than the default.
NODE_ADDRESSES = 6
# What the maps of one node hold of policies by default (bpf/include/maps.h): no more can be one subject's.
POLICY_SIZES = {"rules": 65_536, "members": 1_048_576, "peer_blocks": 262_144}
HOST_PORTS = 512  # of the pods of one node: each is a selection with one backend


@dataclass(frozen=True, slots=True)
class Amount:
    """Of all Services together, or of one.

    - `backends`: an endpoint address counts once for each port of the Service that it serves, ready or not;
    - `frontends`: address, port and protocol; a NodePort counts once for each family of the Service;
    - `source_ranges`: each of loadBalancerSourceRanges counts once for each port.
    """

    backends: int = 0
    frontends: int = 0
    source_ranges: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(*(getattr(self, name) + getattr(other, name) for name in DIMENSIONS))

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(*(getattr(self, name) - getattr(other, name) for name in DIMENSIONS))


# Of a backend, what it takes depends on: whether it is IPv4, and for which ports of the Service it has one.
Shape = tuple[bool, frozenset[str]]

DIMENSIONS = tuple(field.name for field in fields(Amount))
DEFAULT = Amount(backends=260_000, frontends=20_000, source_ranges=65_536)
NOTHING = Amount()


def shape(backend: Backend) -> Shape:
    return is_ipv4(backend.address), frozenset(backend.ports)


def cost(service: Service | None, backends: Iterable[Backend]) -> Amount:
    """What the Service takes; without a record, nothing."""
    return cost_of_shapes(service, Counter(map(shape, backends)))


def cost_of_shapes(service: Service | None, shapes: Mapping[Shape, int]) -> Amount:
    """The same, for so many backends of each shape."""
    if service is None:
        return NOTHING
    spoken = {is_ipv4(address) for address in service.cluster_ips}
    names = {port.name for port in service.ports}
    others = [a for a in (*service.load_balancer_ips, *service.external_ips) if is_ipv4(a) in spoken]
    node_ports = sum(1 for port in service.ports if port.node_port)
    addresses = len(service.cluster_ips) + len(others)
    return Amount(
        backends=sum(len(names & ports) * count for (family, ports), count in shapes.items() if family in spoken),
        # An address without ports takes an entry of its own.
        frontends=addresses * max(1, len(service.ports)) + node_ports * len(spoken),
        source_ranges=len(service.source_ranges) * len(service.ports) if service.load_balancer_ips else 0,
    )


def map_sizes(capacity: Amount) -> dict[str, int]:
    """Map of the agent → entries with which everything within the capacity fits, on every node.

    A backend stands in up to two selections of its port, those of the traffic policies Cluster and Local, and in the
    ring of one. Beside each frontend may stand an entry for its address alone.
    """
    return {
        "backends": 2 * capacity.backends + HOST_PORTS,
        "slots": 2 * capacity.backends,
        "ring": capacity.backends,
        "services": 2 * capacity.frontends + HOST_PORTS,
        "frontends": NODE_ADDRESSES * (capacity.frontends + HOST_PORTS),
        "source_ranges": capacity.source_ranges,
    }


def grows(held: Amount, wanted: Amount) -> bool:
    """Whether it takes more of anything."""
    return any(getattr(wanted, name) > getattr(held, name) for name in DIMENSIONS)


def lacking(limit: Amount, used: Amount, held: Amount, wanted: Amount) -> str:
    """Why one that holds so much of what is used cannot have what it wants; empty where it can.

    Who does not grow is never refused, whatever the others hold.
    """
    missing = []
    for name in DIMENSIONS:
        most, all_, own, want = (getattr(amount, name) for amount in (limit, used, held, wanted))
        if want > own and all_ - own + want > most:
            label = name.replace("_", " ")
            missing.append(f"{want} {label} where it has {own}, and all Services may have {most}")
    return "; ".join(missing)
