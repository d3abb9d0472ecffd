"""Two nodes with two pods each, an outside world, and the wire between them, in network namespaces of their own."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bpf.families import either, using
from tests.bpf.kernel import FIRST_PORT, LAST_PORT, TCX_EGRESS, TCX_INGRESS, Loaded, attach_tcx, entered

IDENTITIES = {"a": 1001, "b": 1002, "c": 1003, "d": 1004}
PREFIX = f"tgt-bpf-{os.getpid()}"


class Namespace:
    """A network namespace. Sockets made inside stay in it."""

    def __init__(self, name: str) -> None:
        self.name = f"{PREFIX}-{name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        with self.entered():
            # Addresses are usable at once, and nobody looks for routers.
            for name in ("accept_dad", "dad_transmits", "router_solicitations"):
                Path(f"/proc/sys/net/ipv6/conf/default/{name}").write_text("0")
            # Every ICMP error counts in these tests.
            for name in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
                Path(f"/proc/sys/net/{name}").write_text("0")
        self.run("ip", "link", "set", "lo", "up")

    def entered(self) -> AbstractContextManager[None]:
        """The calling thread, and what it starts, inside the namespace. /sys stays the machine's."""
        return entered(self.fd)

    def run(self, *command: str) -> str:
        with self.entered():
            result = subprocess.run(command, check=False, capture_output=True, text=True)
        assert result.returncode == 0, f"{self.name}: {' '.join(command)}: {result.stderr}{result.stdout}"
        return result.stdout

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self.entered():
            return socket.socket(family, kind, protocol)

    def set(self, name: str, value: str) -> None:
        with self.entered():
            Path(f"/proc/sys/net/{name}").write_text(value)

    def ifindex(self, device: str) -> int:
        with self.entered():
            return socket.if_nametoindex(device)

    def remove(self) -> None:
        os.close(self.fd)
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@dataclass
class Pod:
    name: str
    addresses: tuple[str, str]
    namespace: Namespace
    node: "Node"
    veth: str  # the host side, in the node's namespace
    ifindex: int  # of it

    @property
    def address(self) -> str:
        return either(*self.addresses)


@dataclass
class Node:
    name: str
    addresses: tuple[str, str]
    namespace: Namespace
    uplink: int
    pods: list[Pod] = field(default_factory=list)
    loaded: Loaded | None = None

    @property
    def address(self) -> str:
        return either(*self.addresses)

    @property
    def programs(self) -> Loaded:
        assert self.loaded is not None, "no programs on this node"
        return self.loaded


@dataclass
class Cluster:
    nodes: list[Node]
    outside: Namespace
    segment: Namespace

    @property
    def pods(self) -> list[Pod]:
        return [pod for node in self.nodes for pod in node.pods]

    def remove(self) -> None:
        for namespace in [
            *(pod.namespace for pod in self.pods),
            *(node.namespace for node in self.nodes),
            self.outside,
            self.segment,
        ]:
            namespace.remove()


OUTSIDE = ("172.31.0.250", "fd00:31::250")


def outside_address() -> str:
    return either(*OUTSIDE)


def build(label: str = "") -> Cluster:
    """n1 (172.31.0.11, fd00:31::11) with a and b, n2 (….12) with c and d; pods in 10.201.<node>.0/24 and
    fd00:201:<node>::/64, as `ptp` lays them. `label` is part of the namespaces' names, where there are several."""
    segment = Namespace(f"{label}seg")
    segment.run("ip", "link", "add", "br0", "type", "bridge")
    segment.run("ip", "link", "set", "br0", "up")
    outside = Namespace(f"{label}out")
    _plug(segment, outside, "out", OUTSIDE)
    nodes = []
    for number, names in ((1, "ab"), (2, "cd")):
        namespace = Namespace(f"{label}n{number}")
        namespace.set("ipv4/ip_forward", "1")
        namespace.set("ipv6/conf/all/forwarding", "1")
        addresses = _node_addresses(number)
        _plug(segment, namespace, f"n{number}", addresses)
        for theirs, via in zip(_pod_networks(3 - number), _node_addresses(3 - number), strict=True):
            namespace.run("ip", "route", "add", theirs, "via", via)
        for destination, via in zip(("0.0.0.0/0", "::/0"), OUTSIDE, strict=True):
            namespace.run("ip", "route", "add", destination, "via", via)
        for ours, via in zip(_pod_networks(number), addresses, strict=True):
            outside.run("ip", "route", "add", ours, "via", via)
        node = Node(f"n{number}", addresses, namespace, namespace.ifindex("eth0"))
        gateways = (f"10.201.{number}.1", f"fd00:201:{number}::1")
        for index, name in enumerate(names, 2):
            node.pods.append(
                _add_pod(node, name, label, (f"10.201.{number}.{index}", f"fd00:201:{number}::{index}"), gateways)
            )
        nodes.append(node)
    return Cluster(nodes, outside, segment)


def _node_addresses(number: int) -> tuple[str, str]:
    return f"172.31.0.1{number}", f"fd00:31::1{number}"


def _pod_networks(number: int) -> tuple[str, str]:
    return f"10.201.{number}.0/24", f"fd00:201:{number}::/64"


def _plug(segment: Namespace, namespace: Namespace, port: str, addresses: tuple[str, str]) -> None:
    segment.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
    segment.run("ip", "link", "set", port, "master", "br0", "up")
    for address, length in zip(addresses, (24, 64), strict=True):
        namespace.run("ip", "addr", "add", f"{address}/{length}", "dev", "eth0")
    namespace.run("ip", "link", "set", "eth0", "up")


def _add_pod(node: Node, name: str, label: str, addresses: tuple[str, str], gateways: tuple[str, str]) -> Pod:
    namespace = Namespace(label + name)
    veth = f"veth{name}"
    host = node.namespace
    host.run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
    for gateway, address, length in zip(gateways, addresses, (32, 128), strict=True):
        host.run("ip", "addr", "add", f"{gateway}/{length}", "dev", veth)
        namespace.run("ip", "addr", "add", f"{address}/{length}", "dev", "eth0")
    host.run("ip", "link", "set", veth, "up")
    namespace.run("ip", "link", "set", "eth0", "up")
    for gateway, address, everywhere in zip(gateways, addresses, ("0.0.0.0/0", "::/0"), strict=True):
        namespace.run("ip", "route", "add", gateway, "dev", "eth0", "scope", "link")
        namespace.run("ip", "route", "add", everywhere, "via", gateway)
        host.run("ip", "route", "add", address, "dev", veth)
    return Pod(name, addresses, namespace, node, veth, host.ifindex(veth))


@contextmanager
def attached(node: Node, loaded: Loaded, how: str) -> Iterator[None]:
    """The tc programs on the node's devices, by `tcx` or `clsact`."""
    hooks = []
    for version in ("", "6"):
        hooks.append((node.uplink, "eth0", f"from_network{version}", TCX_INGRESS))
        hooks.append((node.uplink, "eth0", f"to_network{version}", TCX_EGRESS))
        for pod in node.pods:
            hooks.append((pod.ifindex, pod.veth, f"from_pod{version}", TCX_INGRESS))
            hooks.append((pod.ifindex, pod.veth, f"to_pod{version}", TCX_EGRESS))
    node.loaded = loaded
    with ExitStack() as stack:
        if how == "tcx":
            for ifindex, _, program, kind in hooks:
                fd = loaded.open_program(program)
                with node.namespace.entered():
                    stack.callback(os.close, attach_tcx(fd, ifindex, kind))
                os.close(fd)
        else:
            for device in {device for _, device, _, _ in hooks}:
                node.namespace.run("tc", "qdisc", "add", "dev", device, "clsact")
                stack.callback(node.namespace.run, "tc", "qdisc", "del", "dev", device, "clsact")
            for _, device, program, kind in hooks:
                side = "ingress" if kind == TCX_INGRESS else "egress"
                path = loaded.manifest.programs[program].path
                node.namespace.run("tc", "filter", "add", "dev", device, side, "bpf", "da", "pinned", path)
        try:
            yield
        finally:
            node.loaded = None


def set_endpoints(cluster: Cluster, node: Node, identities: dict[str, int]) -> None:
    """endpoints, devices and open subjects of a node, as the agent would write them."""
    maps = node.programs.maps
    node.programs.set_ports((FIRST_PORT, LAST_PORT))
    ipv4, ipv6 = node.addresses
    for device, flags in ((0, 0), (node.uplink, 1)):
        maps["devices"].set({"value": device}, {"flags": flags, "addr": ipv4, "addr6": ipv6})
    for other in cluster.nodes:
        own = other is node
        for address in other.addresses:
            maps["endpoints"].set({"addr": address}, {"identity": 1 if own else 2, "flags": 2 if own else 4})
        for pod in other.pods:
            for address in pod.addresses:
                maps["endpoints"].set(
                    {"addr": address},
                    {"identity": identities[pod.name], "ifindex": pod.ifindex if own else 0, "flags": 1},
                )
            if own:
                maps["subjects"].set({"value": identities[pod.name]}, {"policy": identities[pod.name]})


def attached_world(cluster: Cluster, loaded: list[Loaded], how: str, version: int = 4) -> Iterator[Cluster]:
    """The cluster with programs attached, everybody known, nobody isolated, no connections; once, then without. Tests
    use its addresses of this IP version."""
    with ExitStack() as stack:
        stack.enter_context(using(version))
        for node, programs in zip(cluster.nodes, loaded, strict=True):
            programs.clear()
            stack.enter_context(attached(node, programs, how))
            set_endpoints(cluster, node, IDENTITIES)
        yield cluster
