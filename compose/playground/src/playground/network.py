"""Namespaces and links of the playground. Pods are laid out as the standard `ptp` CNI plugin leaves them."""

from collections.abc import Sequence

from playground.layout import EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6, Layout, NodeAddresses, veth
from playground.shell import ip, run

# As systemd sets it on Debian: replies may leave by another device than the request came in on.
SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.rp_filter=2",
    "net.ipv4.conf.default.rp_filter=2",
    "net.ipv6.conf.all.forwarding=1",
)


async def create_segment(layout: Layout, nodes: Sequence[NodeAddresses], dual_stack: bool) -> None:
    """The shared segment (a bridge), the nodes' namespaces on it, and the outside world."""
    for name in (layout.segment, layout.external, *(layout.node_namespace(node.name) for node in nodes)):
        await run("ip", "netns", "add", name)
    await ip(["link set lo up", "link add br0 type bridge", "link set br0 up"], layout.segment)
    await _plug(layout, layout.external, "external", EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6 if dual_stack else None)
    for node in nodes:
        namespace = layout.node_namespace(node.name)
        await _plug(layout, namespace, node.name, node.address, node.address6 if dual_stack else None)
        await run("ip", "netns", "exec", namespace, "sysctl", "-q", "-w", *SYSCTLS)
    # The world knows the way to pods, as a router of the data centre would.
    ways = [f"route add {node.pod_cidr} via {node.address}" for node in nodes]
    if dual_stack:
        ways += [f"route add {node.pod_cidr6} via {node.address6}" for node in nodes]
    await ip(ways, layout.external)


async def _plug(layout: Layout, namespace: str, port: str, address: str, address6: str | None) -> None:
    await ip([f"link add p-{port} netns {layout.segment} type veth peer name eth0 netns {namespace}"])
    await ip([f"link set p-{port} master br0", f"link set p-{port} up"], layout.segment)
    lines = ["link set lo up", f"address add {address}/24 dev eth0"]
    if address6:
        lines.append(f"address add {address6}/64 dev eth0 nodad")
    await ip([*lines, "link set eth0 up"], namespace)


async def create_pod(
    layout: Layout, node: NodeAddresses, namespace: str, pod: str, uid: str, number: int, dual_stack: bool
) -> list[str]:
    """The pod's namespace and its link to the node; returns its addresses."""
    inner, outer = layout.pod_namespace(namespace, pod), layout.node_namespace(node.name)
    device, address = veth(namespace, pod, uid), node.pod(number)
    await run("ip", "netns", "add", inner)
    await ip([f"link add {device} netns {outer} type veth peer name eth0 netns {inner}"])
    pod_side = [
        "link set lo up",
        f"address add {address}/32 dev eth0",
        "link set eth0 up",
        f"route add {node.gateway} dev eth0 scope link",
        f"route add default via {node.gateway}",
    ]
    node_side = [
        f"address add {node.gateway}/32 dev {device}",
        f"link set {device} up",
        f"route add {address}/32 dev {device}",
    ]
    addresses = [address]
    if dual_stack:
        address6 = node.pod6(number)
        addresses.append(address6)
        pod_side += [
            f"address add {address6}/128 dev eth0 nodad",
            f"route add {node.gateway6} dev eth0",
            f"route add ::/0 via {node.gateway6}",
        ]
        node_side += [
            f"address add {node.gateway6}/128 dev {device} nodad",
            f"route add {address6}/128 dev {device}",
        ]
    await ip(node_side, outer)
    await ip(pod_side, inner)
    return addresses


async def delete_pod(layout: Layout, namespace: str, pod: str) -> None:
    """The namespace, and with it the link."""
    await run("ip", "netns", "delete", layout.pod_namespace(namespace, pod), ok=(0, 1))
