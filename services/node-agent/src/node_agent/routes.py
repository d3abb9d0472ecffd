"""Routes to the pods of other nodes, from their pod CIDRs."""

from collections.abc import Iterable, Mapping
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate.records import Node
from tidegate.records.addresses import is_ipv4, unpack_address, unpack_cidr

PROTOCOL = 0x74  # rtm_protocol of our routes: how we know them after a restart
AF_INET, AF_INET6 = 2, 10


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
        self.problems: dict[str, str] = {}

    def lost(self, routes: Iterable[tuple[str, str]]) -> None:
        """These (CIDR, gateway) are not in the kernel any more, whoever removed them."""
        for cidr, via in routes:
            if self._have is not None and self._have.get(cidr) == via:
                del self._have[cidr]

    def forget(self) -> None:
        """The kernel may have dropped any of them without telling: they are read anew."""
        self._have = None

    async def apply(self, want: Mapping[str, str]) -> int:
        """Returns the number of changes."""
        if self._have == want and not self.problems:
            return 0
        changes = 0
        async with AsyncIPRoute() as route:
            have = self._have if self._have is not None else await _read(route)
            self.problems = {}
            for cidr, via in want.items():
                if have.get(cidr) != via:
                    changes += await self._set(route, "replace", cidr, via)
            for cidr, via in have.items():
                if cidr not in want:
                    changes += await self._set(route, "del", cidr, via)
        self._have = {cidr: via for cidr, via in want.items() if cidr not in self.problems}
        return changes

    async def _set(self, route: AsyncIPRoute, command: str, cidr: str, via: str) -> int:
        family = AF_INET6 if ":" in cidr else AF_INET
        try:
            await route.route(command, dst=cidr, gateway=via, family=family, proto=PROTOCOL)
        except NetlinkError as error:
            if command == "del" and error.code == 3:  # ESRCH: gone already
                return 0
            self.problems[cidr] = f"route to {cidr} via {via}: {error}"
            return 0
        return 1


async def _read(route: AsyncIPRoute) -> dict[str, str]:
    found = {}
    for family in (AF_INET, AF_INET6):
        message: Any
        async for message in await route.get_routes(family=family):
            if message["proto"] == PROTOCOL and message.get_attr("RTA_GATEWAY"):
                found[f"{message.get_attr('RTA_DST')}/{message['dst_len']}"] = message.get_attr("RTA_GATEWAY")
    return found
