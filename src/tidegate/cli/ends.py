"""Who opens a connection, and to what: the arguments of `tidegate services trace`."""

from dataclasses import dataclass

import click

from tidegate.cli import render
from tidegate.cli.cluster import Cluster
from tidegate.records import Endpoint, Node, Protocol
from tidegate.records.addresses import is_ipv4, pack_address, unpack_address, write_end

PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "sctp": Protocol.SCTP, "icmp": Protocol.ICMP}


@dataclass(frozen=True, slots=True)
class Client:
    """Who opens the connection: `kind` is pod, node or outside; `node` is where its packets meet us first."""

    name: str
    kind: str
    node: str
    addresses: tuple[bytes, ...]

    def address(self, like: bytes) -> bytes:
        """Its address of the family of another one. Raises ClickException."""
        found = next((one for one in self.addresses if is_ipv4(one) == is_ipv4(like)), None)
        if found is None:
            family = "IPv4" if is_ipv4(like) else "IPv6"
            raise click.ClickException(f"{self.name} has no {family} address to reach {unpack_address(like)} from")
        return found


@dataclass(frozen=True, slots=True)
class Target:
    address: bytes
    port: int
    protocol: int

    @property
    def text(self) -> str:
        return f"{write_end(self.address, self.port)}/{render.protocol(self.protocol)}"


def find_client(cluster: Cluster, text: str, via: str | None) -> Client:
    """`text` is a pod (NAMESPACE/NAME), a node, or an address. Raises ClickException."""
    pods = cluster.all(Endpoint)
    if "/" in text:
        namespace, _, name = text.partition("/")
        pod = pods.get((namespace, name))
        if pod is None:
            hint = "a pod of the host network is its node: name that"
            raise click.ClickException(f"no endpoint {text} (tidegate endpoints lists them; {hint})")
        return Client(text, "pod", pod.node, pod.addresses)
    nodes = {name[0]: node for name, node in cluster.all(Node).items()}
    if text in nodes:
        return Client(f"node {text}", "node", text, nodes[text].addresses)
    try:
        address = pack_address(text)
    except ValueError as error:
        raise click.ClickException(f"--from {text}: neither NAMESPACE/POD nor a node nor an address") from error
    for name, node in nodes.items():
        if address in node.addresses:
            return Client(f"node {name}", "node", name, (address,))
    for (namespace, name), pod in pods.items():
        if address in pod.addresses:
            return Client(f"{namespace}/{name}", "pod", pod.node, (address,))
    return Client(text, "outside", via or "", (address,))


def read_target(text: str) -> Target:
    """`10.96.0.1:80`, `[fd00::1]:53/UDP`. Raises ClickException."""
    end, _, protocol = text.partition("/")
    host, _, port = end.rpartition(":")
    try:
        address, number = pack_address(host.removeprefix("[").removesuffix("]")), int(port)
    except ValueError:
        address, number = b"", 0
    kind = PROTOCOLS.get((protocol or "tcp").lower())
    if kind in (None, Protocol.ICMP) or not 1 <= number <= 65535:
        example = "10.96.0.1:80, 10.96.0.1:53/UDP or [fd00::1]:80"
        raise click.ClickException(f"--to {text}: write an address, a port and a protocol, as in {example}")
    return Target(address, number, kind)


def entry_node(cluster: Cluster, client: Client, target: Target) -> str:
    """The node at which the packets of a client outside arrive. Raises ClickException."""
    if client.node:
        return client.node
    owner = node_with(cluster, target.address)
    if owner is None:
        text = f"--via is missing: {client.name} may come to {unpack_address(target.address)} by any node; name one"
        raise click.ClickException(text)
    return owner


def node_with(cluster: Cluster, address: bytes) -> str | None:
    return next((name[0] for name, node in cluster.all(Node).items() if address in node.addresses), None)
