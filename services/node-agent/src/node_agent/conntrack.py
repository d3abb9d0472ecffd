"""The kernel's own connection tracking (netfilter), over ctnetlink: what it translates, and our mark on that. Blocking.

pyroute2's classes take 0.4 ms for a connection, this 0.03: a node may have some 100,000.
"""

import errno
import socket
import struct
from dataclasses import dataclass, field

from node_agent.netlinkraw import ATTRIBUTE, attributes, change, connect, dump
from tidegate.records.addresses import MAPPED

NETLINK_NETFILTER = 12
CT_NEW, CT_GET = 1 << 8 | 0, 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_…
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_TIMEOUT, CTA_MARK, CTA_MARK_MASK = 1, 2, 3, 7, 8, 21
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
NESTED = 0x8000  # of an attribute's type
IPS_SEEN_REPLY = 1 << 1
# What a kernel without nfnetlink, or without its part for conntrack, says.
WITHOUT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)

_HEAD = struct.Struct("=BBH")  # struct nfgenmsg

End = tuple[bytes, int]  # address (16 bytes, IPv4 mapped) and port, or 0 where the protocol has none


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection: its ends as its first packet had them, and as that packet left (`seen` by `backend`)."""

    protocol: int
    client: End
    vip: End
    seen: End  # what the backend takes for the client
    backend: End
    replied: bool
    seconds: int  # until the kernel forgets it
    family: int = socket.AF_INET
    name: bytes = field(default=b"", compare=False)  # what the kernel knows it by: CTA_TUPLE_ORIG


def read_flows(mark: int = 0, mask: int = 0) -> list[Flow]:
    """All connections of this network namespace, or those with this mark in the bits of `mask`; none where the kernel

    tracks none. Raises OSError.
    """
    wanted = _number(CTA_MARK, mark) + _number(CTA_MARK_MASK, mask) if mask else b""
    try:
        with connect(NETLINK_NETFILTER) as opened:
            return [
                parse(body)
                for family in (socket.AF_INET, socket.AF_INET6)
                for body in dump(opened, CT_GET, _HEAD.pack(family, 0, 0) + wanted, "read the kernel's connections")
            ]
    except OSError as error:
        if error.errno in WITHOUT:
            return []
        raise


def set_mark(flow: Flow, mark: int, mask: int) -> bool:
    """The bits of `mask`; whether the connection was still there. Raises OSError."""
    body = _HEAD.pack(flow.family, 0, 0) + _attribute(CTA_TUPLE_ORIG | NESTED, flow.name)
    with connect(NETLINK_NETFILTER) as opened:
        try:
            change(opened, CT_NEW, body + _number(CTA_MARK, mark) + _number(CTA_MARK_MASK, mask), "mark a connection")
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
    return True


def parse(body: bytes) -> Flow:
    """A message of ctnetlink."""
    found = dict(attributes(body[_HEAD.size :]))
    protocol, client, vip = _ends(found[CTA_TUPLE_ORIG])
    _, backend, seen = _ends(found[CTA_TUPLE_REPLY])
    replied = bool(_value(found.get(CTA_STATUS)) & IPS_SEEN_REPLY)
    seconds = _value(found.get(CTA_TIMEOUT))
    return Flow(protocol, client, vip, seen, backend, replied, seconds, body[0], found[CTA_TUPLE_ORIG])


def _ends(raw: bytes) -> tuple[int, End, End]:
    """Protocol, source and destination of a tuple."""
    parts = dict(attributes(raw))
    addresses, ports = dict(attributes(parts[CTA_TUPLE_IP])), dict(attributes(parts[CTA_TUPLE_PROTO]))
    if CTA_IP_V4_SRC in addresses:
        source, destination = MAPPED + addresses[CTA_IP_V4_SRC], MAPPED + addresses[CTA_IP_V4_DST]
    else:
        source, destination = addresses[CTA_IP_V6_SRC], addresses[CTA_IP_V6_DST]
    from_port, to_port = _value(ports.get(CTA_PROTO_SRC_PORT)), _value(ports.get(CTA_PROTO_DST_PORT))
    return _value(ports[CTA_PROTO_NUM]), (source, from_port), (destination, to_port)


def _value(raw: bytes | None) -> int:
    """ctnetlink's numbers are in network order."""
    return int.from_bytes(raw or b"", "big")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, value.to_bytes(4, "big"))


def _attribute(kind: int, content: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(content), kind) + content + bytes(-len(content) % 4)
