"""What others do to our programs, the guard or forwarding, as the kernel tells it: so that it is looked at soon.

It is told that something has changed, not what: filters (tc), rules of nftables, forwarding, and pins of ours.
Whoever waits looks for himself; changes of our own wake him, too, and he finds all in order.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from node_agent.netlinkraw import connect

if TYPE_CHECKING:
    import socket

# linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nfnetlink.h, sys/inotify.h
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
RTNLGRP_TC, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF, NFNLGRP_NFTABLES = 4, 24, 25, 7
IN_DELETE, IN_DELETE_SELF = 0x200, 0x400

GROUPS = {
    NETLINK_ROUTE: (RTNLGRP_TC, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF),
    NETLINK_NETFILTER: (NFNLGRP_NFTABLES,),
}
ROOM = 1 << 16


class Tampering:
    """Of the network namespace in which `open` is called, and of these directories."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories = tuple(directories)
        self._changed = asyncio.Event()
        self._sockets: list[socket.socket] = []
        self._inotify = -1

    def open(self) -> None:
        """With a running event loop. Raises OSError."""
        loop = asyncio.get_running_loop()
        for protocol, groups in GROUPS.items():
            opened = connect(protocol)
            self._sockets.append(opened)
            opened.setblocking(False)
            opened.bind((0, 0))  # one without an address of its own is told nothing
            for group in groups:
                opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            loop.add_reader(opened, self._take, lambda s=opened: s.recv(ROOM))
        self._inotify = _watch(self._directories)
        loop.add_reader(self._inotify, self._take, lambda: os.read(self._inotify, ROOM))

    def _take(self, read: Callable[[], bytes]) -> None:
        # More than fits in the socket's buffer (ENOBUFS) is a change as well.
        with suppress(BlockingIOError, OSError):
            while True:
                read()
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Until something has changed since the last time, or so long; whether it was the former."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for opened in self._sockets:
            loop.remove_reader(opened)
            opened.close()
        self._sockets.clear()
        if self._inotify >= 0:
            loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1


def _watch(directories: Iterable[Path]) -> int:
    """A descriptor that tells of files that are removed from them. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    for path in directories:
        if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(path), IN_DELETE | IN_DELETE_SELF) < 0:
            code = ctypes.get_errno()
            if fd >= 0:
                os.close(fd)
            raise OSError(code, f"watch the directory {path}: {os.strerror(code)}")
    return int(fd)
