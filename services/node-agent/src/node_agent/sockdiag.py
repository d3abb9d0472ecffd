"""Sockets of a network namespace: which are connected to whom, and how they are ended (sock_diag(7)). Blocking.

A socket that is ended so tells its application ECONNABORTED (kernel: `tcp_abort`, `udp_abort`); a TCP peer gets RST.
UDP is then without a peer: an application that does not wait but sends is told EDESTADDRREQ.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from node_agent.netlinkraw import change, connect, dump

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21

# All states of enum tcp_states in which a socket has a peer that it may wait for. Connected UDP is in the first one.
_WAITING = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))

_REQUEST = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2
_ANSWER = struct.Struct("=BBBB48s")  # the head of struct inet_diag_msg
_ID = struct.Struct("=2s2s16s16sIQ")  # struct inet_diag_sockid


@dataclass(frozen=True, slots=True)
class Connected:
    """A socket with a peer: 16 bytes, IPv4 mapped. `id` is what the kernel knows it by (struct inet_diag_sockid)."""

    family: int
    protocol: int
    cookie: int
    peer: bytes
    port: int
    id: bytes


def open_diag() -> socket.socket:
    """For the network namespace that the calling thread is in at this moment. Raises OSError."""
    return connect(NETLINK_SOCK_DIAG)


def connected(diag: socket.socket, protocol: int) -> Iterator[Connected]:
    """The sockets of this IP protocol that have a peer. Raises OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, protocol, 0, _WAITING, bytes(48))
        for body in dump(diag, SOCK_DIAG_BY_FAMILY, request, "list sockets"):
            yield parse(protocol, body)


def parse(protocol: int, body: bytes) -> Connected:
    """A struct inet_diag_msg."""
    family, _, _, _, identity = _ANSWER.unpack_from(body)
    _, port, _, peer, _, cookie = _ID.unpack(identity)
    if family == socket.AF_INET:
        peer = bytes(10) + b"\xff\xff" + peer[:4]
    return Connected(family, protocol, cookie, peer, int.from_bytes(port, "big"), identity)


def destroy(diag: socket.socket, found: Connected) -> bool:
    """Ends the socket, which `connected` has shown; False where it has ended meanwhile. Raises OSError."""
    request = _REQUEST.pack(found.family, found.protocol, 0, _WAITING, found.id)
    try:
        change(diag, SOCK_DESTROY, request, "end a socket")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True
