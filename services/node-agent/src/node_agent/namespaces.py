"""Network namespaces: this node's own, and those in which the processes of a cgroup live. Blocking."""

import ctypes
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tidegate.records.addresses import is_ipv4, unpack_address

SO_NETNS_COOKIE = 71  # linux/socket.h
CLONE_NEWNET = 0x40000000


def namespace_cookie() -> int:
    """The kernel's number for the caller's network namespace, by which eBPF programs know it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


def processes(cgroup: Path) -> Iterator[int]:
    """The processes in the cgroup and below; 0 stands for one that this PID namespace does not show."""
    for directory, _, _ in os.walk(cgroup):
        try:
            listed = (Path(directory) / "cgroup.procs").read_text()
        except OSError:  # the cgroup has gone meanwhile, or is a threaded one, whose processes stand further up
            continue
        yield from map(int, listed.split())


def open_own() -> int:
    """A descriptor for the network namespace that the calling thread is in."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def open_namespaces(own: int, pids: Iterable[int], refused: Callable[[int], None] = lambda _: None) -> Iterator[int]:
    """First this one, then a descriptor for each other network namespace that one of the processes lives in.

    It is closed when the next one is asked for. `refused` is told of processes that may not be looked at.
    """
    seen = {os.fstat(own).st_ino}
    yield own
    for pid in pids:
        path = Path("/proc") / str(pid) / "ns" / "net"
        try:
            inode = path.stat().st_ino
            if inode in seen:
                continue
            fd = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        except PermissionError:
            refused(pid)
            continue
        seen.add(inode)
        try:
            yield fd
        finally:
            os.close(fd)


def cookie_of(address: bytes, cgroup: Path) -> int:
    """The cookie of the network namespace that has the address (16 bytes, IPv4 mapped): this one, or that of a process

    in the cgroup; 0 where there is none to be seen. The calling thread visits them. Raises OSError.
    """
    family = socket.AF_INET if is_ipv4(address) else socket.AF_INET6
    with returning() as own:
        for fd in open_namespaces(own, processes(cgroup)):
            enter(fd)
            with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.bind((unpack_address(address), 0))  # refused where the address is not its own
                return int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        return 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def enter(fd: int) -> None:
    """The calling thread, and no other one, into a network namespace. Raises OSError."""
    if _libc().setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"enter a network namespace: {os.strerror(code)}")


@contextmanager
def returning() -> Iterator[int]:
    """A descriptor for the network namespace that the calling thread is in, and is in again afterwards.

    Raises OSError.
    """
    own = open_own()
    try:
        yield own
    finally:
        enter(own)
        os.close(own)
