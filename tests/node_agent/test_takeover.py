"""An agent starts where kube-proxy's rules translate: streams go on over its start and the removal of the rules."""

import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.bpf.kernel import Loaded
from tests.node_agent.netns import PATIENCE, Namespace, Network, until
from tests.node_agent.test_agent import World
from tests.node_agent.world import KEYS, MARKS, OWN, Values, backend, backends, judged, node, pod, puts, rules, subject

from node_agent import nft
from node_agent.kubeproxy import clean
from node_agent.takeover import TABLE
from tidegate.records import Service, ServicePort, encode
from tidegate.records.addresses import pack_address

pytestmark = pytest.mark.root

WEB = 1001
NEW = 9000  # where new connections to every Service are served: in the pod
MASKED = 0x4000


@dataclass(frozen=True)
class Family:
    version: int
    pod: str
    node: str
    outside: str
    remote: str  # a pod of another node
    other: str  # that node
    network: str  # of its pods
    world: str  # what pods address under the node's address
    vips: str  # ClusterIPs begin so

    @property
    def default(self) -> str:
        return "::/0" if self.version == 6 else "0.0.0.0/0"

    def end(self, address: str, port: int) -> str:
        return f"[{address}]:{port}" if self.version == 6 else f"{address}:{port}"


V4 = Family(
    4,
    *(Network.POD, Network.NODE, Network.OUTSIDE),
    *("10.202.2.2", "172.31.2.12", "10.202.2.0/24", "198.51.100.1", "10.96.0."),
)
V6 = Family(
    6,
    *(Network.POD6, Network.NODE6, Network.OUTSIDE6),
    *("fd00:1:2::2", "fd00:2::12", "fd00:1:2::/64", "2001:db8:51::1", "fd00:96::"),
)


@dataclass(frozen=True)
class Stream:
    """A Service, a client of it, and what the rules do: which backend, and whether it sees the node instead."""

    number: int  # of the Service and its ports
    client: str  # name of a namespace
    server: str
    masked: bool = False
    node_port: bool = False

    @property
    def port(self) -> int:
        return 8000 + self.number

    def target(self, family: Family) -> tuple[str, int]:
        return (family.node, 30000 + self.number) if self.node_port else (f"{family.vips}{self.number}", 80)


STREAMS = {
    "a pod's to another node": Stream(1, "pod", "remote"),
    "a pod's to another node, masqueraded": Stream(2, "pod", "remote", masked=True),
    "a pod's to itself": Stream(3, "pod", "pod", masked=True),
    "a pod's to the node": Stream(4, "pod", "node"),
    "the node's to its pod": Stream(5, "node", "pod", masked=True),
    "the node's to another node": Stream(6, "node", "remote"),
    "from outside to the pod": Stream(7, "outside", "pod", node_port=True),
    "from outside to the pod, masqueraded": Stream(8, "outside", "pod", masked=True, node_port=True),
    "from outside to another node": Stream(9, "outside", "remote", masked=True, node_port=True),
    "from outside to the node": Stream(10, "outside", "node", node_port=True),
    "from outside to a load balancer's, masqueraded": Stream(11, "outside", "pod", masked=True),
}


def place(family: Family, name: str) -> str:
    return {"pod": family.pod, "node": family.node, "outside": family.outside, "remote": family.remote}[name]


def nftables(family: Family) -> str:
    ip = "ip" if family.version == 4 else "ip6"
    lines = []
    for stream in STREAMS.values():
        address, port = stream.target(family)
        mark = f"meta mark set {MASKED:#x}" if stream.masked else ""
        to = family.end(place(family, stream.server), stream.port)
        lines.append(f"{ip} daddr {address} tcp dport {port} {mark} dnat to {to}")
    services = "\n".join(lines)
    return f"""table {ip} kube-proxy {{
chain services {{
{services}
}}
chain nat-prerouting {{
type nat hook prerouting priority dstnat; jump services
}}
chain nat-output {{
type nat hook output priority -100; jump services
}}
chain nat-postrouting {{
type nat hook postrouting priority srcnat
meta mark {MASKED:#x} masquerade fully-random
{ip} daddr {family.world} masquerade
}}
}}
"""


def iptables(family: Family) -> str:
    lines = ["*nat", ":KUBE-SERVICES - [0:0]", ":KUBE-POSTROUTING - [0:0]"]
    lines += [f"-A {hook} -j KUBE-SERVICES" for hook in ("PREROUTING", "OUTPUT")]
    lines += ["-A POSTROUTING -j KUBE-POSTROUTING"]
    for stream in STREAMS.values():
        address, port = stream.target(family)
        rule = f"-A KUBE-SERVICES -d {address} -p tcp -m tcp --dport {port}"
        if stream.masked:
            lines.append(f"{rule} -j MARK --set-xmark {MASKED:#x}/{MASKED:#x}")
        lines.append(f"{rule} -j DNAT --to-destination {family.end(place(family, stream.server), stream.port)}")
    lines.append(f"-A KUBE-POSTROUTING -m mark --mark {MASKED:#x}/{MASKED:#x} -j MASQUERADE --random-fully")
    lines.append(f"-A KUBE-POSTROUTING -d {family.world} -j MASQUERADE")
    return "\n".join([*lines, "COMMIT\n"])


def lay_nftables(at: Namespace, family: Family) -> None:
    with at.entered():
        subprocess.run(["nft", "-f", "-"], input=nftables(family), text=True, check=True)


def lay_iptables(at: Namespace, family: Family) -> None:
    command = "iptables-legacy-restore" if family.version == 4 else "ip6tables-legacy-restore"
    with at.entered():
        subprocess.run([command], input=iptables(family), text=True, check=True)


def records(family: Family) -> Values:
    """Every Service has one backend, which is none of those that the rules lead to."""
    found: Values = {
        **node(OWN, family.node),
        **node("n2", family.other, cidrs=(family.network,)),
        **judged(WEB),
        **pod("web", WEB, family.pod),
        **pod("remote", WEB, family.remote, node="n2"),
    }
    for stream in STREAMS.values():
        port = ServicePort(id=5000 + stream.number, name="http", port=80, node_port=30000 + stream.number)
        address = pack_address(f"{family.vips}{stream.number}")
        name = f"s{stream.number}"
        found[KEYS.service("default", name)] = encode(
            Service(cluster_ips=(address,), load_balancer_ips=(address,), ports=(port,))
        )
        shard = backend(family.pod)
        found.update(backends(name, 0, type(shard)(address=shard.address, ports={"http": NEW})))
    return found


class Lab:
    """The network with kube-proxy's rules in it, and sockets that live as long as it."""

    def __init__(self, network: Network, family: Family, stack: ExitStack) -> None:
        self.network, self.family, self.stack = network, family, stack
        self._servers: dict[tuple[str, int], socket.socket] = {}
        for address in (family.other, family.remote, family.world):
            network.outside.ip("addr", "add", address, "dev", "eth0", *(["nodad"] if family.version == 6 else []))
        network.node.ip("route", "add", family.network, "via", family.other, "proto", "0x74")
        network.node.ip("route", "replace", family.pod, "dev", "vethpod")
        network.node.ip("route", "add", family.default, "via", family.outside)
        network.outside.ip("route", "add", f"{family.vips}{STREAMS[LOAD_BALANCER].number}", "via", family.node)
        # Ended connections are soon forgotten.
        for name in ("close", "time_wait", "last_ack", "fin_wait", "close_wait"):
            network.node.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_timeout_{name}=1")
        self.new = self.listen("pod", family.pod, NEW)

    def namespace(self, name: str) -> Namespace:
        network = self.network
        return {"pod": network.pod, "node": network.node}.get(name, network.outside)

    def made(self, name: str) -> socket.socket:
        family = socket.AF_INET if self.family.version == 4 else socket.AF_INET6
        with self.namespace(name).entered():
            made = self.stack.enter_context(socket.socket(family))
        made.settimeout(PATIENCE)
        return made

    def listen(self, name: str, address: str, port: int) -> socket.socket:
        made = self.made(name)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen()
        return made

    def connect(self, name: str, target: tuple[str, int]) -> socket.socket:
        made = self.made(name)
        if name == "outside":  # by the address that the node has a way to
            made.bind((self.family.outside, 0))
        made.connect(target)
        return made

    def accept(self, server: socket.socket) -> socket.socket:
        accepted = self.stack.enter_context(server.accept()[0])
        accepted.settimeout(PATIENCE)
        return accepted

    def open(self, stream: Stream) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection that the rules have translated."""
        server = self.listen(stream.server, place(self.family, stream.server), stream.port)
        client = self.connect(stream.client, stream.target(self.family))
        accepted = self.accept(server)
        assert (accepted.getpeername()[0] != place(self.family, stream.client)) == stream.masked
        return client, accepted

    def open_to_world(self) -> tuple[socket.socket, socket.socket]:
        server = self.listen("outside", self.family.world, 8000)
        client = self.connect("pod", (self.family.world, 8000))
        accepted = self.accept(server)
        assert accepted.getpeername()[0] == self.family.node
        return client, accepted


LOAD_BALANCER = "from outside to a load balancer's, masqueraded"


def check(what: str, client: socket.socket, server: socket.socket) -> None:
    """Both ways, the server first: that is a reply, whose connection nobody has seen begin."""
    for word in (b"one", b"two"):
        for sender, receiver in ((server, client), (client, server)):
            try:
                sender.sendall(word)
                assert receiver.recv(10) == word
            except OSError as error:
                raise AssertionError(f"{what}: {'server' if sender is server else 'client'}: {error}") from error


def end(connections: dict[str, tuple[socket.socket, socket.socket]]) -> None:
    for client, server in connections.values():
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.close()


def node_connects(lab: Lab, cgroup: Path, target: tuple[str, int]) -> None:
    """A process of the node, in the agent's cgroup, opens a connection."""
    script = f"import socket; socket.create_connection({target!r}, {PATIENCE}).close()"
    enter = f'echo $$ > {cgroup}/cgroup.procs; exec "$0" "$@"'
    with lab.network.node.entered():
        subprocess.run(["sh", "-c", enter, sys.executable, "-c", script], check=True)


LAYOUTS: dict[str, tuple[Callable[[Namespace, Family], None], Family]] = {
    "nftables-ipv4": (lay_nftables, V4),
    "nftables-ipv6": (lay_nftables, V6),
    "iptables-ipv4": (lay_iptables, V4),
    "iptables-ipv6": (lay_iptables, V6),
}


@pytest.fixture(params=LAYOUTS)
def lab(request: pytest.FixtureRequest, network: Network) -> Iterator[Lab]:
    lay, family = LAYOUTS[request.param]
    with ExitStack() as stack:
        made = Lab(network, family, stack)
        lay(network.node, family)
        yield made


def test_streams_outlive_kube_proxy(lab: Lab, loaded: Loaded, cgroup: Path) -> None:
    family, network = lab.family, lab.network
    open_now = {name: lab.open(stream) for name, stream in STREAMS.items()}
    open_now["a pod's to the outside"] = lab.open_to_world()

    def check_all(when: str) -> None:
        for name, (client, server) in open_now.items():
            check(f"{name}, {when}", client, server)

    async def work() -> None:
        world = World(network, loaded, cgroup)
        world.store.put_now(puts({**MARKS, **records(family)}))
        await nft.install("veth*")
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            assert agent.host_problems == {}
            check_all("the agent has started")
            for stream in STREAMS.values():
                if stream.client != "node":
                    lab.connect(stream.client, stream.target(family))
                else:
                    node_connects(lab, cgroup, stream.target(family))
                lab.accept(lab.new)
            assert await clean() != []
            check_all("the rules are gone")
            assert await nft.has_table(TABLE)
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            network.node.run("nft", "delete", "table", *TABLE.split())
            await agent.takeover.look()
            check_all("another agent, and somebody who flushed the table")
            end(open_now)

            async def forgotten() -> bool:
                await agent.takeover.look()
                return not await nft.has_table(TABLE)

            while not await forgotten():
                pass
            assert agent.host_problems == {}
        drops = {"UNJUDGED": (await nft.dropped())[0], **loaded.drops()}
        assert {name: count for name, count in drops.items() if count} == {}

    network.node.runs(work)


@pytest.mark.parametrize(("opener", "answering"), [("pod", "outside"), ("node", "pod")])
def test_replies_of_what_was_open_are_judged_as_replies(
    network: Network, loaded: Loaded, cgroup: Path, opener: str, answering: str
) -> None:
    """The other end speaks first. Nobody may open a connection to the pod but its node, and that pod opens none."""
    closed = {**records(V4), **subject(WEB, 5), **rules(5, egress=answering == "pod")}
    with ExitStack() as stack:
        lab = Lab(network, V4, stack)
        # Something must ask for conntrack, or there is none.
        network.node.run("nft", "add table ip t; add chain ip t c { type filter hook forward priority 0; }")
        network.node.run("nft", "add rule ip t c ct state new counter")
        server = lab.listen(answering, place(V4, answering), 8000)
        client = lab.connect(opener, (place(V4, answering), 8000))
        accepted = lab.accept(server)

        async def work() -> None:
            world = World(network, loaded, cgroup)
            world.store.put_now(puts({**MARKS, **closed}))
            async with world.agent() as (agent, health):
                await world.settled(agent, health)
                check(f"opened by the {opener}", client, accepted)
                assert not await nft.has_table(TABLE)

        network.node.runs(work)


def test_a_second_start_reads_nothing(network: Network, loaded: Loaded, cgroup: Path) -> None:
    """Of what our programs have begun the stack knows other things, if any."""

    async def work() -> None:
        world = World(network, loaded, cgroup)
        world.store.put_now(puts({**MARKS, **records(V4)}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
        async with world.agent() as (agent, health):

            async def begin(*_: object) -> None:
                pytest.fail("it took over again")

            agent.takeover.begin = begin  # type: ignore[method-assign,assignment]
            await world.settled(agent, health)
            await until("an apply more", lambda: agent.view.loaded)

    network.node.runs(work)
