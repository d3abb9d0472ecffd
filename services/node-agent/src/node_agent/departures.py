"""Backends that have gone, or serve no more: which sockets are stuck to them. Pure.

A TCP connection stays with its backend until the pod is gone: after that nobody answers, not even by RST. A connected
UDP socket is stuck as soon as its Service has another backend that serves, and this one does not: then kube-proxy, too,
removes the flow (`CleanStaleEntries` of its conntrack package). A Service's traffic policies do not count here.
"""

from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass

from node_agent.endpoints import EndpointView
from node_agent.frontends import HOST_PORT, IPV6, LOCAL
from node_agent.services import ServiceView
from tidegate.records import Backend, BackendShard, Endpoint, Protocol, Record, Service

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Given:
    """A backend that a socket has been given: an address of 16 bytes, and the number of the selection it came from."""

    protocol: int
    address: bytes
    port: int
    selection: int


@dataclass(frozen=True, slots=True)
class Departed:
    """`addresses`: whose sockets are to be looked at, None for all. `pods`: those of pods that are no more."""

    addresses: frozenset[bytes] | None
    pods: frozenset[bytes] = frozenset()


class Departures:
    """Is told of changes after the views have taken them. The first `take` is about everything: what has gone while the
    agent was away. `unread`: whether there are records of a kind that nobody has understood since the start; what may
    stand in them has not gone."""

    def __init__(
        self, services: ServiceView, endpoints: EndpointView, unread: Callable[[type[Record]], bool] = lambda _: False
    ) -> None:
        self._services = services
        self._endpoints = endpoints
        self._unread = unread
        self._ports: dict[int, tuple[Key, str]] = {}  # number of a service port → its Service, its name
        self._addresses: set[bytes] = set()
        self._pods: set[bytes] = set()
        self._first = True

    def service(self, key: Key, before: Service | None, after: Service | None) -> None:
        gone = {port.id for port in before.ports} if before else set()
        for port in after.ports if after else ():
            self._ports[port.id] = key, port.name
            gone.discard(port.id)
        for number in gone:
            if self._ports.get(number, (None, ""))[0] == key:  # not of another that says that the number is its own
                del self._ports[number]
        if gone:
            self._addresses |= {backend.address for backend in self._services.backends(key)}

    def shard(self, key: Key, before: BackendShard | None, after: BackendShard | None) -> None:
        if self._first:
            return  # everything will be looked at
        earlier = {backend.address: backend for backend in before.backends} if before else {}
        now = {backend.address: backend for backend in after.backends} if after else {}
        self._addresses |= {address for address, backend in earlier.items() if _leaves(backend, now.get(address))}
        if not self._services.has_ready(key) and any(_arrives(b, earlier.get(address)) for address, b in now.items()):
            # Those that do not serve may have been the best there was.
            self._addresses |= {b.address for b in self._services.backends(key) if not b.serving}

    def endpoint(self, before: Iterable[bytes], after: Collection[bytes]) -> None:
        """Addresses of a pod that has changed."""
        gone = [address for address in before if address not in after]
        self._addresses.update(gone)
        self._pods.update(gone)

    def everything(self) -> None:
        """The next `take` is about everything again: a record that nobody had understood is understood, or gone."""
        self._first = True

    @property
    def pending(self) -> bool:
        return self._first or bool(self._addresses)

    def take(self) -> Departed:
        """What has gone since the last call."""
        addresses = None if self._first else frozenset(self._addresses)
        departed = Departed(addresses, frozenset(self._pods))
        self._first = False
        self._addresses.clear()
        self._pods.clear()
        return departed

    def again(self, departed: Departed) -> None:
        """Nothing could be done about it: the next `take` is about it, too."""
        self._first = self._first or departed.addresses is None
        self._addresses |= departed.addresses or set()
        self._pods |= departed.pods

    def is_stuck(self, given: Given, pods: Set[bytes]) -> bool:
        """`pods`: addresses of pods that are known to have gone."""
        if self._is_nobodys(given.address, pods):
            return True
        return given.protocol != Protocol.TCP and self._is_left(given)

    def _is_nobodys(self, address: bytes, pods: Set[bytes]) -> bool:
        if self._endpoints.is_held(address):
            return False
        return address in pods or (self._endpoints.is_for_pods(address) and not self._unread(Endpoint))

    def _is_left(self, given: Given) -> bool:
        if given.selection & HOST_PORT:
            return False  # its only backend is a pod: gone, or not
        owner = self._ports.get(given.selection & ~(LOCAL | IPV6))
        if owner is None:
            return not self._unread(Service)
        key, name = owner
        known = [backend for backend in self._services.backends(key) if name in backend.ports]
        same = [b for b in known if b.address == given.address and b.ports[name] == given.port]
        if not same:
            return not self._unread(BackendShard)
        return not same[0].serving and any(b.serving for b in known)


def _leaves(before: Backend, after: Backend | None) -> bool:
    return after is None or before.ports != after.ports or (before.serving and not after.serving)


def _arrives(after: Backend, before: Backend | None) -> bool:
    return after.serving and (before is None or not before.serving)
