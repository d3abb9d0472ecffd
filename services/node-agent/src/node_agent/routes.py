"""Routes to the pods of other nodes, from their pod CIDRs."""

import errno
import os
import socket
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pyroute2 import AsyncIPRoute

from node_agent.netlinkraw import Request, attribute, change_all, connect
from tidegate.records import Node
from tidegate.records.addresses import is_ipv4, unpack_address, unpack_cidr

PROTOCOL = 0x74  # rtm_protocol of our routes: how we know them after a restart

RTM_NEWROUTE, RTM_DELROUTE = 24, 25
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 0, 1
RTA_DST, RTA_GATEWAY, RTA_PRIORITY = 1, 5, 6
METRICS = 256
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg


def wanted(nodes: Mapping[str, Node], own: str) -> dict[str, str]:
    """CIDR → address of the node, for all nodes but our own. The node's first address of the CIDR's family counts."""
    found = {}
    for name, node in nodes.items():
        if name == own:
            continue
        for address, prefix in node.pod_cidrs:
            via = next((a for a in node.addresses if is_ipv4(a) == is_ipv4(address)), None)
            if via is not None:
                found[unpack_cidr(address, prefix)] = unpack_address(via)
    return found


class Routes:
    """Brings the kernel's routes to `wanted`. A route that cannot be set is a problem of that node alone."""

    def __init__(self) -> None:
        self._have: dict[str, str] | None = None
        self._done: Mapping[str, str] | None = None  # what `_have` has been brought to
        self.problems: dict[str, str] = {}

    def lost(self, routes: Iterable[tuple[str, str]]) -> None:
        """These (CIDR, gateway) are not in the kernel any more, whoever removed them."""
        for cidr, via in routes:
            if self._have is not None and self._have.get(cidr) == via:
                del self._have[cidr]
                self._done = None

    def forget(self) -> None:
        """The kernel may have dropped any of them without telling: they are read anew."""
        self._have = self._done = None

    async def apply(self, want: Mapping[str, str]) -> int:
        """Returns the number of changes. A mapping that was given before, and is in the kernel, costs nothing."""
        if (self._done is want or self._have == want) and not self.problems:
            self._done = want
            return 0
        others: list[tuple[str, str]] = []
        if self._have is None:
            found = await read()
            self._have = {route.cidr: route.via for route in found if route.is_current}
            others = [(route.cidr, route.via) for route in found if not route.is_current]
        have, self._done = self._have, None
        changes = [("replace", cidr, via) for cidr, via in want.items() if have.get(cidr) != via]
        changes += [("del", cidr, via) for cidr, via in have.items() if cidr not in want]
        changes += [("del", *other) for other in others]
        refused = change(changes)
        self.problems = {
            cidr: f"route to {cidr} via {via}: {os.strerror(refused[index])}"
            for index, (command, cidr, via) in enumerate(changes)
            if index in refused and (command, refused[index]) != ("del", errno.ESRCH)  # gone already
        }
        self._have = {cidr: via for cidr, via in want.items() if cidr not in self.problems}
        self._done = want
        return len(changes) - len(refused)


def change(changes: Sequence[tuple[str, str, str]]) -> dict[int, int]:
    """Command ("replace", "del"), CIDR and gateway; index → errno of those that the kernel refused.

    A thousand take some milliseconds. Raises OSError.
    """
    if not changes:
        return {}
    with connect(socket.NETLINK_ROUTE) as to:
        return change_all(to, [_request(*each) for each in changes])


def _request(command: str, cidr: str, via: str) -> Request:
    address, _, length = cidr.partition("/")
    family = socket.AF_INET6 if ":" in cidr else socket.AF_INET
    kind, flags = (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE) if command == "replace" else (RTM_DELROUTE, 0)
    body = _ROUTE.pack(family, int(length), 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    packed = socket.inet_pton(family, address)
    body += attribute(RTA_DST, packed) + attribute(RTA_GATEWAY, socket.inet_pton(family, via))
    if command == "replace" and family == socket.AF_INET:
        body += attribute(RTA_PRIORITY, struct.pack("=I", metric(packed)))
    return Request(kind, flags, body)


def metric(packed: bytes) -> int:
    """Of the route to a CIDR of IPv4 that begins with these 4 bytes, where there is but one: it says nothing.

    The kernel looks for equal next hops among all those of one device and one metric, one by one: with the same for
    thousands of routes it takes most of a second to set them.
    """
    return 1 + zlib.crc32(packed) % METRICS


class Route(NamedTuple):
    """`is_current`: it is as `change` sets it. Otherwise it is an earlier version's, without a metric, and the first
    that a "del" of its CIDR and gateway comes upon."""

    cidr: str
    via: str
    is_current: bool


async def read() -> list[Route]:
    """Those that are ours. Raises NetlinkError, OSError."""
    found = []
    async with AsyncIPRoute() as route:
        for family in (socket.AF_INET, socket.AF_INET6):
            message: Any
            async for message in await route.get_routes(family=family):
                if message["proto"] == PROTOCOL and message.get_attr("RTA_GATEWAY"):
                    address = message.get_attr("RTA_DST")
                    current = family == socket.AF_INET6 or (
                        message.get_attr("RTA_PRIORITY") == metric(socket.inet_pton(family, address))
                    )
                    found.append(Route(f"{address}/{message['dst_len']}", message.get_attr("RTA_GATEWAY"), current))
    return found
