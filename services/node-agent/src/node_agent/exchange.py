"""What changed shards of a Service change in its selections, where it has its ready backends everywhere. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from node_agent.frontends import families, family, is_external
from node_agent.ring import Address
from tidegate.records import Backend, BackendShard, Service, ServicePort


@dataclass(frozen=True, slots=True)
class Exchange:
    """Of the backends (address, port) of a selection, `gone` go and `come` come."""

    number: int
    gone: set[Address]
    come: set[Address]
    outside: bool


ShardChanges = dict[int, tuple[BackendShard | None, BackendShard | None]]  # number → what it was, what it is
Changed = dict[bytes, tuple[Backend | None, Backend | None]]  # address → what it was, what it is


def is_simple(backend: Backend) -> bool:
    """Whether it says nothing of where its clients are to be, and serves where it is ready."""
    return not (backend.for_nodes or backend.for_zones or (backend.ready and not backend.serving))


def differing(shards: Iterable[tuple[BackendShard | None, BackendShard | None]]) -> Changed | None:
    """Address → what stood there and stands there now, where that differs; None where one has gone to another shard."""
    found: Changed = {}
    for one, other in shards:
        before, after = ({b.address: b for b in shard.backends} if shard else {} for shard in (one, other))
        for address in before.keys() | after.keys():
            change = before.get(address), after.get(address)
            if change[0] == change[1]:
                continue
            if address in found:
                return None
            found[address] = change
    return found


def exchanges(service: Service, changed: Changed) -> Iterator[Exchange]:
    """One for each selection that changes, as `choice.select` has it where no backend says more than is_simple lets it
    say and somebody is ready: the ready ones."""
    for port in service.ports:
        for bit in families(service):
            before = _ready((one for one, _ in changed.values()), port, bit)
            after = _ready((other for _, other in changed.values()), port, bit)
            if before != after:
                yield Exchange(port.id | bit, before - after, after - before, is_external(service))


def _ready(backends: Iterable[Backend | None], port: ServicePort, bit: int) -> set[Address]:
    return {
        (backend.address, backend.ports[port.name])
        for backend in backends
        if backend and backend.ready and port.name in backend.ports and family(backend.address) == bit
    }
