"""What is done inside of pods' network namespaces: sockets are ended, and asked which namespace has an address.

To enter them takes rights over the whole machine (CAP_SYS_ADMIN, CAP_SYS_PTRACE). An agent without these has a process
of its own do it (`node_agent.visitor`), which can do nothing else. Blocking.
"""

import errno
import socket
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgpack

from node_agent import sockdiag
from node_agent.namespaces import cookie_of, enter, open_namespaces, processes, returning

PATIENCE = 10.0  # seconds until an answer: less than an agent has to end
LARGEST = 64 << 20  # bytes of a message


@dataclass(frozen=True, slots=True)
class Wanted:
    """A socket with a peer: IP protocol, cookie, the peer's address (16 bytes, IPv4 mapped) and port."""

    protocol: int
    cookie: int
    peer: bytes
    port: int


class Visits(Protocol):
    """Both raise OSError, which says what to do about it."""

    def end(self, sockets: Collection[Wanted]) -> tuple[frozenset[int], int]:
        """Ends those of the sockets, of the node and of the pods' processes, that still have this peer.

        The cookies of those that were ended; how many of the processes could not be looked at.
        """

    def cookie_of(self, address: bytes) -> int:
        """The cookie of the network namespace that has the address; 0 where there is none to be seen."""


class OwnVisits:
    """By the calling thread, which is back where it was afterwards."""

    def __init__(self, cgroup: Path) -> None:
        self._cgroup = cgroup

    def end(self, sockets: Collection[Wanted]) -> tuple[frozenset[int], int]:
        pids = list(processes(self._cgroup))
        ended: set[int] = set()
        hidden: list[int] = [pid for pid in pids if not pid]
        with returning() as own:
            for namespace in open_namespaces(own, filter(None, pids), hidden.append):
                enter(namespace)
                ended.update(_end_here(sockets))
        return frozenset(ended), len(hidden)

    def cookie_of(self, address: bytes) -> int:
        return cookie_of(address, self._cgroup)


def _end_here(sockets: Collection[Wanted]) -> Iterator[int]:
    """Those that are in this thread's namespace: netlink tells of the sockets of one only."""
    wanted = frozenset(sockets)

    def is_wanted(found: sockdiag.Connected) -> bool:
        # A socket may have been connected to somebody else meanwhile.
        return Wanted(found.protocol, found.cookie, found.peer, found.port) in wanted

    with sockdiag.open_diag() as diag:
        for protocol in sorted({each.protocol for each in sockets}):
            for found in [*filter(is_wanted, sockdiag.connected(diag, protocol))]:
                if sockdiag.destroy(diag, found):
                    yield found.cookie


class SentVisits:
    """By the process that listens on the unix socket `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def end(self, sockets: Collection[Wanted]) -> tuple[frozenset[int], int]:
        ended, hidden = self._ask("end", [[each.protocol, each.cookie, each.peer, each.port] for each in sockets])
        return frozenset(ended), hidden

    def cookie_of(self, address: bytes) -> int:
        return int(self._ask("cookie_of", address))

    def _ask(self, what: str, argument: Any) -> Any:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(str(self._path))
                send(connection, msgpack.packb([what, argument]))
                code, answered = msgpack.unpackb(receive(connection))
        except (OSError, ValueError, TypeError) as error:
            who = f"tidegate-node-visitor at {self._path}"
            raise OSError(f"no answer from {who} ({error}): see whether it runs") from error
        if code:
            raise OSError(code, str(answered))
        return answered


def send(connection: socket.socket, message: bytes) -> None:
    """All that this side has to say: one message a connection and side. Raises OSError."""
    connection.sendall(message)
    connection.shutdown(socket.SHUT_WR)


def receive(connection: socket.socket) -> bytes:
    """Raises OSError, also for what is too large."""
    message = bytearray()
    while part := connection.recv(1 << 16):
        message += part
        if len(message) > LARGEST:
            raise OSError(errno.EMSGSIZE, f"a message of more than {LARGEST} bytes")
    return bytes(message)


def answer(visits: Visits, message: bytes) -> bytes:
    """What SentVisits gets for its message: 0 and the answer, or an errno and a text. Never raises."""
    return bytes(msgpack.packb(_answer(visits, message)))


def _answer(visits: Visits, message: bytes) -> tuple[int, Any]:
    try:
        return 0, _visit(visits, *msgpack.unpackb(message))
    except OSError as error:
        return error.errno or errno.EIO, str(error)
    except (TypeError, ValueError, OverflowError) as error:
        return errno.EINVAL, f"not understood: {error}"


def _visit(visits: Visits, what: Any, argument: Any) -> Any:
    """Raises OSError, and TypeError or ValueError for what cannot be asked for."""
    if what == "end":
        ended, hidden = visits.end(_read_wanted(argument))
        return sorted(ended), hidden
    if what == "cookie_of":
        return visits.cookie_of(_read_address(argument))
    raise ValueError(f"{what!r} is nothing that can be asked for")


def _read_wanted(items: Iterable[Any]) -> list[Wanted]:
    """Raises TypeError, ValueError."""
    return [
        Wanted(_read_number(protocol, 8), _read_number(cookie, 64), _read_address(peer), _read_number(port, 16))
        for protocol, cookie, peer, port in items
    ]


def _read_number(value: Any, bits: int) -> int:
    if not isinstance(value, int) or value < 0 or value >> bits:
        raise ValueError(f"{value!r} is no number of {bits} bits")
    return value


def _read_address(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != 16:
        raise ValueError(f"{value!r} is no address of 16 bytes")
    return value
