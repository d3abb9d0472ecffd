"""Network namespaces for an agent and what it looks at, and a way to run asyncio code inside one."""

import asyncio
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.bpf.kernel import entered

T = TypeVar("T")

PREFIX = "tgt-agent"
PATIENCE = 20.0  # seconds until a wait gives up


def name_of(part: str) -> str:
    return f"{PREFIX}-{os.getpid()}-{part}"


class Namespace:
    def __init__(self, part: str) -> None:
        self.name = name_of(part)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and the threads and processes that it starts, inside the namespace."""
        target = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            with entered(target):
                yield
        finally:
            os.close(target)

    def run(self, *command: str) -> str:
        with self.entered():
            result = subprocess.run(command, check=False, capture_output=True, text=True)
        assert result.returncode == 0, f"{self.name}: {' '.join(command)}: {result.stderr}{result.stdout}"
        return result.stdout

    def ip(self, *words: str) -> str:
        return self.run("ip", *words)

    def wait_for_devices(self) -> None:
        """The kernel tells itself of a carrier a little later, and sends nothing before."""
        ends = time.monotonic() + PATIENCE
        while any(link["operstate"] == "DOWN" for link in json.loads(self.ip("-j", "link"))):
            assert time.monotonic() < ends, f"{self.name}: a device has no carrier: {self.ip('link')}"
            time.sleep(0.01)

    def ifindex(self, device: str) -> int:
        with self.entered():
            return socket.if_nametoindex(device)

    def udp(self, family: int) -> socket.socket:
        with self.entered():
            return socket.socket(family, socket.SOCK_DGRAM)

    def runs(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, run by an event loop in a thread that lives in the namespace."""
        results: list[T] = []
        failures: list[BaseException] = []

        async def main() -> T:
            return await work()

        def body() -> None:
            try:
                with self.entered():
                    results.append(asyncio.run(main()))
            except BaseException as error:  # it is raised again in the test's own thread
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)


async def until(what: str, holds: Callable[[], object]) -> None:
    """Waits until `holds` says something true."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110  # what is waited for lies in the kernel
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None


class Network:
    """A node with one pod behind `vethpod` and the outside behind `eth0`, IPv4 and IPv6."""

    POD, GATEWAY, NODE, OUTSIDE = "10.202.1.2", "10.202.1.1", "172.31.2.11", "172.31.2.250"
    POD6, GATEWAY6, NODE6, OUTSIDE6 = "fd00:1::2", "fd00:1::1", "fd00:2::11", "fd00:2::250"

    def __init__(self) -> None:
        self.node, self.pod, self.outside = Namespace("node"), Namespace("pod"), Namespace("out")
        for namespace in (self.node, self.pod, self.outside):
            with namespace.entered():
                # A packet sent while an address is still being checked would be lost.
                Path("/proc/sys/net/ipv6/conf/default/dad_transmits").write_text("0")
        for device, peer, near, far in (
            ("vethpod", self.pod, (f"{self.GATEWAY}/32", f"{self.GATEWAY6}/64"), (f"{self.POD}/24", f"{self.POD6}/64")),
            (
                "eth0",
                self.outside,
                (f"{self.NODE}/24", f"{self.NODE6}/64"),
                (f"{self.OUTSIDE}/24", f"{self.OUTSIDE6}/64"),
            ),
        ):
            self.node.ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", peer.name)
            for namespace, name, addresses in ((self.node, device, near), (peer, "eth0", far)):
                for address in addresses:
                    namespace.ip("addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
                namespace.ip("link", "set", name, "up")
        self.node.ip("route", "add", self.POD, "dev", "vethpod")
        for namespace, gateway, gateway6 in (
            (self.pod, self.GATEWAY, self.GATEWAY6),
            (self.outside, self.NODE, self.NODE6),
        ):
            namespace.ip("route", "add", "default", "via", gateway)
            namespace.ip("-6", "route", "add", "default", "via", gateway6)
        with self.node.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")

        for namespace in (self.node, self.pod, self.outside):
            namespace.wait_for_devices()

    def remove(self) -> None:
        for namespace in (self.pod, self.outside, self.node):
            namespace.remove()
