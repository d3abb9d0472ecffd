"""What the programs would do with the first packet of a connection: their look-ups, in their order. Pure.

Each hook asks the maps as its program does (bpf/include/socket_lb.h, lb.h, network.c); nothing is chosen, and nothing
is written: where a program would draw one backend, all that it draws from are named.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from node_agent.entries import (
    EP_CLOSED,
    EP_OWN_NODE,
    EP_POD,
    EP_REMOTE_NODE,
    FRONTEND_OPEN,
    FRONTEND_RANGES,
    SERVICE_DROP,
)
from node_agent.frontends import HOST_PORT, LOCAL
from node_agent.layout import Form
from tidegate.records import Protocol
from tidegate.records.addresses import unpack_address, write_end

Fields = dict[str, Any]
SOCKET_PROTOCOLS = (Protocol.TCP, Protocol.UDP)
ADDRESS_BITS = 128
RANGE_BITS = 32 + ADDRESS_BITS  # source_ranges: the number of a service port, then an address


class Hook(Enum):
    """Where a packet, or a call, meets the first of our programs."""

    SOCKET = "socket"
    POD = "from_pod"
    NETWORK = "from_network"
    OWN = "to_network"  # what the node itself sends


class Outcome(Enum):
    CHOSEN = "chosen"  # one of the backends
    REFUSED = "refused"  # RST, ICMP port unreachable, ECONNREFUSED
    DROPPED = "dropped"
    PASSED = "passed"  # not to a Service: it goes where it is addressed
    UNDECIDED = "undecided"  # the socket stays as it is: its packets are for the next hook


@dataclass(frozen=True, slots=True)
class Question:
    """A new connection as a hook sees it. `source` may be unknown (zeroes) at a socket; `cookie` is of the socket's

    network namespace, 0 where that is not known.
    """

    hook: Hook
    source: bytes
    destination: bytes
    port: int
    protocol: int
    cookie: int = 0

    @property
    def client(self) -> bytes:
        """As `affinities` has it: at a socket, where no address is known yet, by the network namespace."""
        if self.hook is Hook.SOCKET:
            return struct.pack("=IIII", self.cookie >> 32, self.cookie & 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        return self.source


@dataclass(slots=True)
class Walk:
    """`steps` are for people, in order; `reason` is one of reasons.h."""

    outcome: Outcome = Outcome.PASSED
    reason: str = ""
    selection: int | None = None
    backends: list[tuple[bytes, int]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def end(self, outcome: Outcome, step: str, reason: str = "") -> "Walk":
        self.outcome, self.reason = outcome, reason
        self.steps.append(step)
        return self


class Kernel:
    """The maps, with fields by name. `lookup` is the kernel's: map, key → value."""

    def __init__(
        self, forms: Mapping[str, tuple[Form, Form]], lookup: Callable[[str, bytes], bytes | None], now: float = 0
    ) -> None:
        """`now`: seconds of the clock by which the programs let entries expire."""
        self._forms = forms
        self._lookup = lookup
        self.now = now

    def get(self, name: str, **key: Any) -> Fields | None:
        """The entry's value; None also where there is no such map."""
        if name not in self._forms:
            return None
        key_form, value_form = self._forms[name]
        raw = self._lookup(name, key_form.pack(**key))
        return value_form.unpack(raw) if raw is not None else None

    def endpoint(self, address: bytes) -> Fields | None:
        return self.get("endpoints", addr=address)

    def slot(self, selection: int, index: int) -> tuple[bytes, int] | None:
        found = self.get("backends", service=selection, slot=index)
        return (found["addr"], found["port"]) if found else None


def walk(kernel: Kernel, question: Question) -> Walk:
    found = Walk()
    if question.hook is Hook.SOCKET and question.protocol not in SOCKET_PROTOCOLS:
        return found.end(Outcome.UNDECIDED, "sockets of this protocol are not translated, their packets are")
    before = _before_frontends(kernel, question, found)
    if before is not None:
        return before
    end = write_end(question.destination, question.port)
    frontend = kernel.get("frontends", addr=question.destination, port=question.port, protocol=question.protocol)
    if frontend is None and question.hook is Hook.OWN:
        return found.end(Outcome.PASSED, "it leaves as it is")
    if frontend is None:
        return _without_frontend(kernel, question, found)
    inside = question.hook is not Hook.NETWORK or kernel.endpoint(question.source) is not None
    selection = int(frontend["service"] if inside else frontend["outside"])
    whom = "clients in the cluster" if inside else "clients outside"
    found.steps.append(f"{end} is a frontend; {whom} get {describe(selection)}")
    if frontend["flags"] & FRONTEND_RANGES and not _in_ranges(kernel, question, frontend["service"], found):
        return found
    found.selection = selection
    return _choose(kernel, question, found)


def describe(selection: int) -> str:
    """A selection in words."""
    if selection & HOST_PORT:
        return f"the pod of this host port (selection {selection})"
    where = "on this node (traffic policy Local" if selection & LOCAL else "on all nodes (traffic policy Cluster"
    return f"backends {where}, selection {selection})"


def _before_frontends(kernel: Kernel, question: Question, found: Walk) -> Walk | None:
    """What a hook does before it looks for a Service; a walk that has come to its end, or None."""
    destination = kernel.endpoint(question.destination)
    if question.hook is Hook.POD:
        source = kernel.endpoint(question.source)
        if source is None or not source["ifindex"]:
            return found.end(Outcome.DROPPED, f"{unpack_address(question.source)} is no pod's of this node", "CLOSED")
        if destination is not None and destination["flags"] & EP_POD:
            return found.end(Outcome.PASSED, f"{unpack_address(question.destination)} is a pod's own address")
    elif question.hook is Hook.NETWORK and destination is not None:
        if destination["ifindex"]:
            return found.end(Outcome.PASSED, f"{unpack_address(question.destination)} is a pod of this node")
        if not destination["flags"] & EP_OWN_NODE:
            return found.end(Outcome.PASSED, "it is for another node, and passes this one untouched")
    return None


def _without_frontend(kernel: Kernel, question: Question, found: Walk) -> Walk:
    end, address = write_end(question.destination, question.port), unpack_address(question.destination)
    mark = kernel.get("frontends", addr=question.destination, port=0, protocol=0)
    endpoint = kernel.endpoint(question.destination)
    is_node = endpoint is not None and endpoint["flags"] & (EP_OWN_NODE | EP_REMOTE_NODE)
    if mark is None or mark["flags"] & FRONTEND_OPEN or is_node:
        return found.end(Outcome.PASSED, f"{end} is no frontend of this node: it passes as it is")
    return found.end(Outcome.REFUSED, f"{address} is a Service's, this port is not", "NO_SERVICE_PORT")


def _in_ranges(kernel: Kernel, question: Question, service: int, found: Walk) -> bool:
    client = kernel.endpoint(question.source)
    if question.hook is Hook.SOCKET and not (client is not None and client["flags"] & EP_OWN_NODE):
        found.end(Outcome.UNDECIDED, "it has source ranges: who the client is shows in its packets only")
        return False
    source = unpack_address(question.source)
    if kernel.get("source_ranges", prefix=RANGE_BITS, service=service, addr=question.source) is None:
        text = f"{source} is in none of the Service's source ranges"
        if question.hook is Hook.SOCKET:
            found.end(Outcome.UNDECIDED, f"{text}: its packets will be dropped")
        else:
            found.end(Outcome.DROPPED, text, "SOURCE_RANGE")
        return False
    found.steps.append(f"{source} is in the Service's source ranges")
    return True


def _choose(kernel: Kernel, question: Question, found: Walk) -> Walk:
    selection = found.selection or 0
    service = kernel.get("services", value=selection)
    if service is None or not service["count"]:
        if service is not None and service["flags"] & SERVICE_DROP:
            text = "it has no backend on this node while there are some elsewhere, and its traffic policy is Local"
            if question.hook is Hook.SOCKET:
                return found.end(Outcome.UNDECIDED, f"{text}: its packets will be dropped")
            return found.end(Outcome.DROPPED, text, "NO_LOCAL_BACKEND")
        if question.hook is Hook.OWN:
            return found.end(Outcome.PASSED, "it leaves as it is")
        return found.end(Outcome.REFUSED, "it has no backend", "NO_BACKEND")
    if question.hook is Hook.OWN:
        return found.end(Outcome.PASSED, "no socket program has seen the client: it leaves as it is")
    slots = (kernel.slot(selection, index) for index in range(service["count"]))
    found.backends = sorted({slot for slot in slots if slot is not None})
    if service["affinity_seconds"]:
        kept = _affine(kernel, question, selection)
        if kept is not None:
            found.backends = [kept]
            return found.end(Outcome.CHOSEN, f"session affinity: this client stays with {write_end(*kept)}")
    how = "at random"
    if question.hook is Hook.NETWORK and service["positions"]:
        how = "by consistent hashing of the connection"
        if service["affinity_seconds"]:
            how = "by consistent hashing of the client"
    if service["affinity_seconds"]:
        how += f"; the client stays with it for {service['affinity_seconds']} s"
    return found.end(Outcome.CHOSEN, f"one of {len(found.backends)} backends, {how}")


def _affine(kernel: Kernel, question: Question, selection: int) -> tuple[bytes, int] | None:
    """The backend that the client stays with, if it still is one."""
    known = kernel.get("affinities", client=question.client, service=selection)
    if known is None or known["expires"] <= kernel.now:
        return None
    slot = kernel.get("slots", service=selection, addr=known["backend"], port=known["port"])
    return kernel.slot(selection, slot["value"]) if slot else None


def delivery(kernel: Kernel, hook: Hook, source: bytes, backend: bytes) -> str:
    """How a packet gets from the hook's node to the backend."""
    if backend == source:
        if hook is Hook.SOCKET:
            return "the client itself, inside its own namespace"
        return "the client itself (hairpin: it sees a connection from its node's address)"
    client, endpoint = kernel.endpoint(source), kernel.endpoint(backend)
    # The node's own packets reach no program of ours on their way out.
    ours = hook is Hook.NETWORK or (client is not None and client["ifindex"])
    if endpoint is not None and endpoint["ifindex"]:
        closed = ", which is closed: its rules do not stand yet" if endpoint["flags"] & EP_CLOSED else ""
        return f"a pod of this node{closed}, {'by redirect_peer' if ours else 'through the stack'}"
    if endpoint is not None and endpoint["flags"] & EP_OWN_NODE:
        return "this node itself, through its stack"
    where = "a pod of another node" if endpoint is not None and endpoint["flags"] & EP_POD else "another node"
    if endpoint is None:
        where = "an address outside the cluster"
    if hook is Hook.NETWORK:
        return f"{where}, by redirect_neigh and masqueraded: it sees this node's address"
    return f"{where}, {'by redirect_neigh' if ours else 'through the stack'}"
