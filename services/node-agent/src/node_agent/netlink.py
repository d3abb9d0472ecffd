"""What the node's network looks like: devices, the pods' host routes, addresses. Read once, then followed."""

import ctypes
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import AsyncIPRoute

from node_agent.routes import PROTOCOL
from tidegate.records.addresses import pack_address

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE = 0x100, 0x400
GROUPS = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE

IFF_UP = 0x1
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
RTM_NEWROUTE = 24
SO_ATTACH_FILTER = 26
FULL = {2: 32, 10: 128}  # AF_INET, AF_INET6 → length of a host route


@dataclass
class Host:
    """`pods`: address → ifindex of the device that a host route leads to. `assigned`: the node's own addresses, each
    with the ifindex of a device that has it: every pod's device may have the address of the pods' gateway."""

    devices: dict[int, str] = field(default_factory=dict)
    pods: dict[bytes, int] = field(default_factory=dict)
    assigned: set[tuple[bytes, int]] = field(default_factory=set)

    @property
    def addresses(self) -> frozenset[bytes]:
        return frozenset(address for address, _ in self.assigned)


def _ignore_own_routes(events: Any) -> None:
    """The kernel does not tell us of routes that we have set: thousands at once, with the nodes of a large cluster."""
    kind = int.from_bytes(RTM_NEWROUTE.to_bytes(2, sys.byteorder), "big")
    program = (
        (0x28, 0, 0, 4),  # nlmsg_type
        (0x15, 0, 2, kind),
        (0x30, 0, 0, 21),  # rtm_protocol, behind the 16 bytes of the header
        (0x15, 1, 0, PROTOCOL),
        (0x06, 0, 0, 0xFFFFFFFF),  # all of it
        (0x06, 0, 0, 0),  # nothing
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    events.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))


class HostWatch:
    """Keeps a Host up to date and calls `changed` after each change that matters."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.host = Host()
        self.told = 0  # so often has the kernel told of something: until it does again, `host` is as it was
        self._changed = changed
        self._lost: set[tuple[str, str]] = set()
        self._fallen: set[str] = set()
        self._down: set[int] = set()

    def take_losses(self) -> tuple[set[tuple[str, str]], set[str]]:
        """Since the last call: routes of ours that went, as (CIDR, gateway), and names of devices that went down or

        away, and with them, untold, their routes.
        """
        losses = self._lost, self._fallen
        self._lost, self._fallen = set(), set()
        return losses

    async def run(self, ready: Callable[[], None]) -> None:
        """Never returns. `ready` is called when all that is there has been read."""
        async with AsyncIPRoute() as events:
            _ignore_own_routes(events.socket)
            # Subscribed before the dump: what changes meanwhile comes again as an event.
            await events.bind(groups=GROUPS)
            await self._dump()
            ready()
            while True:
                async for message in events.get():
                    if self._apply(message):
                        self._changed()

    async def _dump(self) -> None:
        async with AsyncIPRoute() as route:
            async for message in await route.get_links():
                self._apply(message)
            async for message in await route.get_addr():
                self._apply(message)
            for family in FULL:
                async for message in await route.get_routes(family=family, table=RT_TABLE_MAIN):
                    self._apply(message)

    def _apply(self, message: Any) -> bool:
        self.told += 1
        kind = message.get("event")
        if kind in ("RTM_NEWLINK", "RTM_DELLINK"):
            return self._link(message, kind == "RTM_NEWLINK")
        if kind in ("RTM_NEWROUTE", "RTM_DELROUTE"):
            return self._route(message, kind == "RTM_NEWROUTE")
        if kind in ("RTM_NEWADDR", "RTM_DELADDR"):
            return self._address(message, kind == "RTM_NEWADDR")
        return False

    def _link(self, message: Any, new: bool) -> bool:
        index = message["index"]
        routed = False
        name = message.get_attr("IFLA_IFNAME")
        if not new or not message["flags"] & IFF_UP:
            # The kernel takes the routes of a device that is down or gone away without telling.
            self._fallen.add(name)
            self._down.add(index)
            routed = index in self.host.pods.values()
            self.host.pods = {address: device for address, device in self.host.pods.items() if device != index}
        else:
            # What needs the device, as routes do, can be had again.
            routed = index in self._down
            self._down.discard(index)
        if not new:
            self._down.discard(index)
            self.host.assigned = {pair for pair in self.host.assigned if pair[1] != index}
            return self.host.devices.pop(index, None) is not None
        if self.host.devices.get(index) == name:
            return routed
        self.host.devices[index] = name
        return True

    def _route(self, message: Any, new: bool) -> bool:
        if not new and message["proto"] == PROTOCOL and message.get_attr("RTA_GATEWAY"):
            self._lost.add((f"{message.get_attr('RTA_DST')}/{message['dst_len']}", message.get_attr("RTA_GATEWAY")))
            return True
        if message["dst_len"] != FULL.get(message["family"]) or message["type"] != RTN_UNICAST:
            return False
        if (message.get_attr("RTA_TABLE") or message["table"]) != RT_TABLE_MAIN or message.get_attr("RTA_GATEWAY"):
            return False
        device, text = message.get_attr("RTA_OIF"), message.get_attr("RTA_DST")
        if device is None or text is None:
            return False
        address = pack_address(text)
        if new:
            if self.host.pods.get(address) == device:
                return False
            self.host.pods[address] = device
            return True
        return self.host.pods.get(address) == device and self.host.pods.pop(address) is not None

    def _address(self, message: Any, new: bool) -> bool:
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if text is None:
            return False
        pair = pack_address(text), message["index"]
        if new == (pair in self.host.assigned):
            return False
        if new:
            self.host.assigned.add(pair)
        else:
            self.host.assigned.discard(pair)
        return True
