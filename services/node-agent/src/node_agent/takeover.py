"""Connections that are older than our programs: what kube-proxy's rules translate keeps the backend that they chose.

At its first start on a node the agent reads the kernel's conntrack, before any frontend stands in our maps. Of each
connection it decides (`decide`, pure) who translates it from here on:

- our programs, where the backend sees the client itself (and of a pod's own, masqueraded to the outside): they are
  given the entries that they would have made;
- the stack, as before, where rules masquerade beside (clients outside, hairpin), where the backend is the node itself,
  and where the client is: our programs pass those packets on. No policy is asked about them: the client is not in them.

The stack needs no rule for what it translates already, but something in the kernel must ask for conntrack and for NAT.
So a table of ours stands until the last of these connections has ended: kube-proxy's rules can go before. By a mark on
the connection it marks the packets, which the guard and our programs let pass then.
"""

import asyncio
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cache

from node_agent import nft
from node_agent.conntrack import End, Flow, read_flows, set_mark
from node_agent.entries import Entries
from node_agent.layout import Form
from node_agent.loader import MapEntry
from node_agent.table import Tables
from tidegate.runtime.logging import get_logger

TCP, UDP, SCTP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP
STREAMS = frozenset({TCP, SCTP})

CONN_SWAPPED, CONN_REPLIED, CONN_NAT, CONN_FROM_NODE, CONN_AS_NODE = 0x1, 0x2, 0x4, 0x8, 0x80
SLOT_STACK = 0xFFFFFFFF
MAPS = ("connections", "translations", "masquerades", "masqueraded")

TABLE = "inet tidegate-takeover"
RULESET = f"""
table {TABLE}
delete table {TABLE}
table {TABLE} {{
  chain translating {{
    type nat hook prerouting priority dstnat; policy accept;
  }}
  chain marking {{
    type filter hook prerouting priority mangle; policy accept;
    ct mark & {nft.MARK_MASK:#x} == {nft.MARK_JUDGED:#x} meta mark set meta mark & {~nft.MARK_MASK & 0xFFFFFFFF:#x} | {nft.MARK_JUDGED:#x}
  }}
}}
"""  # noqa: E501  # a rule is a line

Entry = tuple[bytes, bytes]

log = get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """What is known about the node and its Services when a connection is judged.

    `selection`: of a client for an address, port and protocol, None where that is no frontend. `slot`: of a backend in
    a selection, None where it is none.
    """

    own: Set[bytes]
    pods: Set[bytes]
    selection: Callable[[bytes, End, int], int | None]
    slot: Callable[[int, End], int | None]


def place_of(tables: Tables, entries: Entries, own: Set[bytes], pods: Set[bytes]) -> Place:
    """By what is wanted in the maps, whether it is there yet or not."""
    frontends, endpoints = tables.wanted("frontends"), tables.wanted("endpoints")

    def selection(client: bytes, to: End, protocol: int) -> int | None:
        found = frontends.get(entries.frontend_key(*to, protocol))
        return None if found is None else entries.frontend_of(found)[client not in endpoints]

    @cache
    def slots() -> dict[tuple[int, End], int]:
        numbered = ((entries.backend_slot(key), value) for key, value in tables.wanted("backends").items())
        return {(service, entries.backend_address(value)): slot for (service, slot), value in numbered}

    return Place(own, pods, selection, lambda service, backend: slots().get((service, backend)))


@dataclass(slots=True)
class Decision:
    """`entries`: map → what is to be written there. `kept`: connections that the stack goes on translating."""

    entries: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    kept: list[Flow] = field(default_factory=list)


class Writer:
    """Entries of the programs' own maps."""

    def __init__(self, maps: Mapping[str, MapEntry], now: int) -> None:
        self._keys = {name: Form(maps[name].key) for name in MAPS}
        self._values = {name: Form(maps[name].value) for name in MAPS}
        self._now = now

    def connection(
        self, protocol: int, opener: End, other: End, seconds: int, flags: int, vip: End | None, service: int
    ) -> Entry:
        swapped = other < opener
        (a, a_port), (b, b_port) = sorted((opener, other))
        key = self._keys["connections"].pack(a=a, a_port=a_port, b=b, b_port=b_port, protocol=protocol)
        # Generation 0: its next packet is judged.
        value = self._values["connections"].pack(
            expires=self._now + seconds,
            flags=flags | CONN_REPLIED | CONN_SWAPPED * swapped | CONN_NAT * (vip is not None),
            vip=vip[0] if vip else bytes(16),
            vip_port=vip[1] if vip else 0,
            service=service,
        )
        return key, value

    def translation(
        self, protocol: int, client: End, vip: End, backend: End, service: int, slot: int, seconds: int
    ) -> Entry:
        key = self._keys["translations"].pack(
            client=client[0], client_port=client[1], vip=vip[0], vip_port=vip[1], protocol=protocol
        )
        value = self._values["translations"].pack(
            backend=backend[0], backend_port=backend[1], service=service, slot=slot, expires=self._now + seconds
        )
        return key, value

    def masquerade(self, flow: Flow) -> tuple[Entry, Entry]:
        """Of a pod's connection to the outside: both directions."""
        (client, client_port), (outside, port), (node, node_port) = flow.client, flow.backend, flow.seen
        to: dict[str, bytes | int] = {"backend": outside, "backend_port": port, "protocol": flow.protocol}
        of: dict[str, bytes | int] = {"client": client, "client_port": client_port, "vip": outside, "vip_port": port}
        there = (
            self._keys["masquerades"].pack(**to, **of),
            self._values["masquerades"].pack(value=socket.htons(node_port)),
        )
        back = (
            self._keys["masqueraded"].pack(**to, node=node, node_port=node_port),
            self._values["masqueraded"].pack(**of, flags=CONN_REPLIED, expires=self._now + flow.seconds),
        )
        return there, back


def decide(flows: Iterable[Flow], place: Place, writer: Writer) -> Decision:
    """Pure."""
    decision = Decision()
    for flow in flows:
        if flow.protocol in (TCP, UDP, SCTP):
            _decide(flow, place, writer, decision)
    return decision


def _decide(flow: Flow, place: Place, writer: Writer, decision: Decision) -> None:
    translated, masked = flow.backend != flow.vip, flow.seen != flow.client
    selection = place.selection(flow.client[0], flow.vip, flow.protocol)
    ours = translated and not masked and selection is not None
    ours = ours and place.own.isdisjoint({flow.client[0], flow.backend[0]})
    outgoing = masked and not translated and flow.client[0] in place.pods and flow.seen[0] in place.own
    if (translated or masked) and not ours and not outgoing:
        _keep(flow, place, writer, decision)
    elif ours and selection is not None:
        slot = place.slot(selection, flow.backend)
        entry = writer.translation(
            flow.protocol, flow.client, flow.vip, flow.backend, selection, slot or 0, flow.seconds
        )
        decision.entries["translations"].append(entry)
    elif outgoing:
        there, back = writer.masquerade(flow)
        decision.entries["masquerades"].append(there)
        decision.entries["masqueraded"].append(back)
    if flow.replied and not place.pods.isdisjoint({flow.client[0], flow.backend[0]}):
        # Who has opened it to whom, so that replies are judged as replies.
        opener, vip = (flow.client, None) if outgoing else (flow.seen, flow.vip if ours else None)
        flags = CONN_AS_NODE * outgoing | CONN_FROM_NODE * (opener[0] in place.own)
        decision.entries["connections"].append(
            writer.connection(flow.protocol, opener, flow.backend, flow.seconds, flags, vip, selection or 0)
        )


def _keep(flow: Flow, place: Place, writer: Writer, decision: Decision) -> None:
    """UDP from elsewhere is given a backend anew: nothing tells when it ends, and whether its backend still lives."""
    if flow.protocol == UDP and flow.client[0] not in place.own:
        return
    decision.kept.append(flow)
    # Either end may address what is a frontend now: NodePorts, and a NodePort that was drawn as masquerading port.
    for source, destination in ((flow.client, flow.vip), (flow.backend, flow.seen)):
        selection = place.selection(source[0], destination, flow.protocol)
        if selection is not None:
            entry = writer.translation(
                flow.protocol, source, destination, destination, selection, SLOT_STACK, flow.seconds
            )
            decision.entries["translations"].append(entry)


class Takeover:
    """What the stack still translates, and the table for it. `problems`: why something of it cannot be done."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._standing = True  # an earlier agent's table, until we have looked

    async def begin(self, place: Place, maps: Mapping[str, MapEntry], write: Callable[[Decision], None]) -> None:
        """Before the first frontend is written. `write` puts entries into the maps."""
        try:
            flows = await asyncio.to_thread(read_flows)
            decision = decide(flows, place, Writer(maps, int(time.monotonic())))
            if decision.kept:
                await nft.run_script(RULESET)
                self._standing = True
                for flow in decision.kept:
                    await asyncio.to_thread(set_mark, flow, nft.MARK_JUDGED, nft.MARK_MASK)
            write(decision)
        except (OSError, nft.GuardError) as error:
            self._trouble(error)
            return
        counts = {name: len(entries) for name, entries in decision.entries.items()}
        log.info("connections taken over", read=len(flows), left_to_the_stack=len(decision.kept), **counts)

    async def look(self) -> None:
        """Takes the table away once the last connection has ended, and puts it back where others took it away."""
        if not self._standing:
            return
        try:
            present = await nft.has_table(TABLE)
            if await asyncio.to_thread(read_flows, nft.MARK_JUDGED, nft.MARK_MASK):
                if not present:
                    await nft.run_script(RULESET)
            else:
                if present:
                    await nft.run_script(f"delete table {TABLE}\n")
                self._standing = False
            self.problems = {}
        except (OSError, nft.GuardError) as error:
            self._trouble(error)

    def _trouble(self, error: Exception) -> None:
        problems = {"takeover": f"connections that are older than the agent may be lost: {error}"}
        if problems != self.problems:
            log.warning("cannot take over connections", reason=str(error))
        self.problems = problems
