"""Messages of netlink as bytes, for what pyroute2 has no call for, or too slow a one. Blocking."""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ROOM = 1 << 18
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_TYPE = 0x3FFF  # without the flags
AT_ONCE = 100  # requests: the answers to so many find room in a socket


class Request(NamedTuple):
    """A change that is asked for: type of message, flags beside those of every request, body."""

    kind: int
    flags: int
    body: bytes


def connect(protocol: int) -> socket.socket:
    """For the network namespace that the calling thread is in at this moment. Raises OSError."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def dump(to: socket.socket, kind: int, body: bytes, what: str) -> Iterator[bytes]:
    """The bodies of the answers. `what` is asked for stands in errors. Raises OSError."""
    to.send(_message(kind, NLM_F_REQUEST | NLM_F_DUMP, body))
    while True:
        for answer, found in _messages(to.recv(_ROOM)):
            if answer == NLMSG_DONE:
                return
            if answer == NLMSG_ERROR:
                _raise(found, what)
            else:
                yield found


def change(to: socket.socket, kind: int, body: bytes, what: str) -> None:
    """Raises OSError."""
    to.send(_message(kind, NLM_F_REQUEST | NLM_F_ACK, body))
    for answer, found in _messages(to.recv(_ROOM)):
        if answer == NLMSG_ERROR:
            _raise(found, what)


def change_all(to: socket.socket, requests: Sequence[Request]) -> dict[int, int]:
    """Many changes, some of them at a time; index → errno of those that were refused. Raises OSError."""
    refused: dict[int, int] = {}
    for start in range(0, len(requests), AT_ONCE):
        part = requests[start : start + AT_ONCE]
        flags = NLM_F_REQUEST | NLM_F_ACK
        to.send(b"".join(_message(each.kind, flags | each.flags, each.body, start + n) for n, each in enumerate(part)))
        answered = 0
        while answered < len(part):
            for kind, found, number in _numbered(to.recv(_ROOM)):
                if kind == NLMSG_ERROR:
                    answered += 1
                    (code,) = struct.unpack_from("=i", found)
                    if code:
                        refused[number] = -code
    return refused


def attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each, in order; nested ones are content like any other."""
    start = 0
    while start + ATTRIBUTE.size <= len(raw):
        length, kind = ATTRIBUTE.unpack_from(raw, start)
        yield kind & _TYPE, raw[start + ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3


def attribute(kind: int, content: bytes) -> bytes:
    length = ATTRIBUTE.size + len(content)
    return ATTRIBUTE.pack(length, kind) + content + bytes(-length % 4)


def _message(kind: int, flags: int, body: bytes, number: int = 1) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body


def _messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    return ((kind, body) for kind, body, _ in _numbered(raw))


def _numbered(raw: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Kind, body, and number of the request."""
    start = 0
    while start + _HEADER.size <= len(raw):
        length, kind, _, number, _ = _HEADER.unpack_from(raw, start)
        yield kind, raw[start + _HEADER.size : start + length], number
        start += (length + 3) & ~3


def _raise(body: bytes, what: str) -> None:
    """Raises OSError, unless the message only acknowledges."""
    (code,) = struct.unpack_from("=i", body)
    if code:
        raise OSError(-code, f"{what}: {os.strerror(-code)}")
