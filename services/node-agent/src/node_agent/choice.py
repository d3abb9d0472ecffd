"""Which backends of a Service a client may be given on this node. Pure; the rules are kube-proxy's and the API's.

A client is given one of a *selection*: `cluster` for the traffic policy Cluster, `local` for the policy Local. Clients
inside the cluster that use an external address (NodePort, load balancer, external IP) are given `cluster` whatever
externalTrafficPolicy says: they need no second hop (API documentation of externalTrafficPolicy).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from tidegate.records import Backend


class Refusal(Enum):
    """What a client gets where the selection is empty."""

    REJECT = "no backend is ready"  # TCP RST, ICMP port unreachable
    DROP = "the traffic policy is Local and no backend on this node is ready"


@dataclass(frozen=True, slots=True)
class Place:
    """The node that chooses."""

    node: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    backends: tuple[Backend, ...]
    refusal: Refusal | None = None  # None: there are backends


@dataclass(frozen=True, slots=True)
class Selections:
    cluster: Selection
    local: Selection


def select(backends: Sequence[Backend], place: Place) -> Selections:
    """`backends`: all of one port and address family."""
    here = [backend for backend in backends if backend.node == place.node]
    cluster = able(backends, lambda ready: near(ready, place))
    local = able(here, lambda ready: ready)
    # Where there is a backend elsewhere, a load balancer is to look for it there: no answer, rather than a refusal.
    elsewhere = Refusal.DROP if cluster else Refusal.REJECT
    return Selections(
        cluster=Selection(tuple(cluster), None if cluster else Refusal.REJECT),
        local=Selection(tuple(local), None if local else elsewhere),
    )


def able(backends: Sequence[Backend], among: Callable[[Sequence[Backend]], Sequence[Backend]]) -> Sequence[Backend]:
    """The ready ones; only where there is none, those that still serve while they end (KEP-1669)."""
    ready = [backend for backend in backends if backend.ready]
    return among(ready) if ready else [b for b in backends if b.serving and b.terminating]


def near(ready: Sequence[Backend], place: Place) -> Sequence[Backend]:
    """Follows the hints for this node, else for its zone; all of them, where the hints are not safe to follow.

    They are safe when every ready backend has one and some backend is meant for us (KEP-2433, KEP-3015).
    """
    if all(backend.for_nodes for backend in ready):
        found = [backend for backend in ready if place.node in backend.for_nodes]
        if found:
            return found
    if place.zone and all(backend.for_zones for backend in ready):
        found = [backend for backend in ready if place.zone in backend.for_zones]
        if found:
            return found
    return ready


def why_not(backend: Backend, selection: Selection, place: Place, local: bool) -> str:
    """Why the backend is not in the selection (`local`: that of the policy Local); empty where it is."""
    if backend in selection.backends:
        return ""
    if local and backend.node != place.node:
        return f"on {backend.node or 'no node'}; the traffic policy is Local"
    if not backend.ready:
        if not backend.serving:
            return "not ready"
        return "terminating; others are ready" if backend.terminating else "not ready, though it serves"
    if backend.for_nodes and place.node not in backend.for_nodes:
        return f"meant for clients on {', '.join(backend.for_nodes)}"
    return f"meant for clients in {', '.join(backend.for_zones)}"
