"""Programs of others on the same devices and the same cgroup, from before us or from after us, and when we are gone."""

import asyncio
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.bpf.kernel import Loaded
from tests.bpf.test_sockets import inside
from tests.node_agent.netns import Network, until
from tests.node_agent.test_agent import RECORDS, WEB
from tests.node_agent.test_resize import Stream
from tests.node_agent.test_uninstall import NODES, Node, filled_etcd
from tests.node_agent.test_upgrade import LISTENING, VIP, outside
from tests.node_agent.world import MARKS, rules, subject

from node_agent import links
from node_agent.loader import read_manifest
from node_agent.loader.pins import Definition
from node_agent.loader.programs import create_map
from node_agent.maps import libbpf
from node_agent.syscall import bpf

pytestmark = pytest.mark.root

PROG_LOAD = 5
SCHED_CLS, XDP, SOCK_ADDR = 3, 6, 18
CONNECT4 = 10  # BPF_CGROUP_INET4_CONNECT
NEXT, XDP_PASS, PROCEED = -1, 2, 1  # what each kind says of what goes on
PLACES = [(device, hook) for device in ("vethpod", "eth0") for hook in ("ingress", "egress")]


class Foreign:
    """Somebody's program, which counts what it sees and lets it go on."""

    def __init__(self, kind: int, verdict: int, attach: int = 0) -> None:
        self._map = create_map("others", Definition("array", 4, 8, 1, 0))
        instruction = struct.Struct("<BBhi").pack
        code = b"".join(
            (
                instruction(0x18, 0x11, 0, self._map), instruction(0, 0, 0, 0),  # r1 = the map
                instruction(0x62, 10, -4, 0),  # *(u32 *)(r10 - 4) = 0
                instruction(0xBF, 0xA2, 0, 0), instruction(0x07, 2, 0, -4),  # r2 = r10 - 4
                instruction(0x85, 0, 0, 1),  # bpf_map_lookup_elem
                instruction(0x15, 0, 2, 0),  # if (!r0) goto the end
                instruction(0xB7, 1, 0, 1), instruction(0xDB, 0x10, 0, 0),  # lock *(u64 *)r0 += 1
                instruction(0xB7, 0, 0, verdict), instruction(0x95, 0, 0, 0),
            )
        )  # fmt: skip
        instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
        addresses = ctypes.addressof(instructions), ctypes.addressof(licence)
        attributes = struct.pack(
            "=IIQQIIQII16sII", kind, len(code) // 8, *addresses, 0, 0, 0, 0, 0, b"others", 0, attach
        )
        self.fd = bpf(PROG_LOAD, attributes, "load a program of others")

    def seen(self) -> int:
        value = ctypes.create_string_buffer(8)
        assert libbpf().bpf_map_lookup_elem(self._map, bytes(4), value) == 0
        return int.from_bytes(value.raw, "little")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._map)


class Others:
    """Programs of others everywhere: tcx and clsact on both sides of a pod's device and of the uplink, XDP, cgroup."""

    def __init__(self, stack: ExitStack, network: Network, cgroup: Path, pins: Path) -> None:
        self.programs: dict[str, Foreign] = {}
        self._stack, self._node = stack, network.node
        for device, hook in PLACES:
            tcx = self._made(f"tcx {device} {hook}", SCHED_CLS, NEXT)
            with network.node.entered():
                stack.callback(os.close, links.create(tcx.fd, network.node.ifindex(device), f"tcx_{hook}"))
            clsact = self._made(f"clsact {device} {hook}", SCHED_CLS, NEXT)
            self._tc(device, hook, self._pinned(clsact, pins / f"{device}_{hook}"))
        for device in ("vethpod", "eth0"):
            path = self._pinned(self._made(f"xdp {device}", XDP, XDP_PASS), pins / f"{device}_xdp")
            network.node.ip("link", "set", "dev", device, "xdpgeneric", "pinned", str(path))
        directory = os.open(cgroup, os.O_RDONLY)
        stack.callback(os.close, directory)
        connect = self._made("cgroup", SOCK_ADDR, PROCEED, CONNECT4)
        stack.callback(os.close, links.create(connect.fd, directory, "cgroup_inet4_connect"))

    def _made(self, name: str, kind: int, verdict: int, attach: int = 0) -> Foreign:
        made = self.programs[name] = Foreign(kind, verdict, attach)
        self._stack.callback(made.close)
        return made

    def _pinned(self, program: Foreign, path: Path) -> Path:
        links.pin(program.fd, path)
        self._stack.callback(path.unlink)
        return path

    def _tc(self, device: str, hook: str, path: Path) -> None:
        if "clsact" not in self._node.run("tc", "qdisc", "show", "dev", device):
            self._node.run("tc", "qdisc", "add", "dev", device, "clsact")
        # The place that is ours, too, in which several programs of eBPF may stand.
        add = [
            "tc",
            "filter",
            "add",
            "dev",
            device,
            hook,
            "prio",
            "1",
            "protocol",
            "all",
            "bpf",
            "da",
            "pinned",
            str(path),
        ]
        self._node.run(*add)

    @contextmanager
    def see(self, *unseen: str) -> Iterator[None]:
        """All but these see something of what is done meanwhile; those see nothing."""
        before = {name: program.seen() for name, program in self.programs.items()}
        yield
        blind = {name for name, program in self.programs.items() if program.seen() == before[name]}
        assert blind == set(unseen)


class World:
    def __init__(self, node: Node, cgroup: Path) -> None:
        self.node, self.cgroup, self.network = node, cgroup, node.network

    def loaded(self) -> Loaded:
        manifest = read_manifest(self.node.state)
        assert manifest is not None
        return Loaded(manifest, self.node.bpffs, self.node.state)

    def exchange(self, at: str, address: str) -> None:
        """A datagram to the node, and the answer, from the pod or from outside: the stack has both."""
        client = getattr(self.network, at).udp(socket.AF_INET)
        server = self.network.node.udp(socket.AF_INET)
        with client, server:
            server.bind((address, 0))
            for end in (client, server):
                end.settimeout(20)
            client.sendto(b"x", server.getsockname())
            server.sendto(b"y", server.recvfrom(10)[1])
            assert client.recv(10) == b"y"

    def connect_in_cgroup(self, loaded: Loaded) -> None:
        """A socket of the pod is translated, and believes that it speaks to the Service."""
        with ExitStack() as stack:
            with self.network.outside.entered():
                for end in LISTENING:
                    stack.enter_context(socket.create_server(end))
            with inside(self.cgroup), self.network.pod.entered():
                client = stack.enter_context(socket.create_connection((VIP, 80), 20))
            assert client.getpeername() == (VIP, 80)
            assert loaded.maps["socket_peers"].items()

    def everything(self) -> None:
        """What all hooks see: Services by packets and by sockets, policies, and the stack's own."""
        stream = Stream(self.network, *LISTENING, to=(VIP, 80))
        for _ in range(3):
            stream.exchange()
        assert stream.retransmitted() == 0
        stream.close()
        self.exchange("pod", self.network.GATEWAY)
        self.exchange("outside", self.network.NODE)
        loaded = self.loaded()
        try:
            self.connect_in_cgroup(loaded)
            before = loaded.counter("POLICY_INGRESS")
            with self.network.outside.udp(socket.AF_INET) as sender:
                sender.sendto(b"z", (self.network.POD, 99))
            asyncio.run(until("the drop", lambda: loaded.counter("POLICY_INGRESS") > before))
        finally:
            loaded.close()


@pytest.fixture(params=["tcx", "clsact"])
def world(
    request: pytest.FixtureRequest, network: Network, cgroup: Path, all_loaded: Loaded, tmp_path: Path
) -> Iterator[World]:
    """With programs that are compiled."""
    isolated = {**RECORDS, **subject(WEB, 6), **rules(6)}
    etcd = filled_etcd(tmp_path, {**isolated, **NODES, **outside(), **MARKS})
    for address, _ in LISTENING:
        network.outside.ip("addr", "add", f"{address}/24", "dev", "eth0")
    made = Node(network, cgroup, tmp_path, etcd, request.param)
    yield World(made, cgroup)
    made.cleanup()
    etcd.kill()


@pytest.mark.parametrize("order", ["before", "after"])
def test_programs_of_others_see_what_they_would_and_ours_do_their_work(world: World, bpffs: Path, order: str) -> None:
    pins = bpffs / f"others_{order}"
    pins.mkdir()
    with ExitStack() as stack:
        stack.callback(pins.rmdir)
        if order == "before":
            others = Others(stack, world.network, world.cgroup, pins)
        with world.node.agent():
            if order == "after":
                others = Others(stack, world.network, world.cgroup, pins)
            with others.see():
                world.everything()
        assert world.node.cleanup().exit_code == 0
        with others.see("cgroup"):
            world.exchange("pod", world.network.GATEWAY)
            world.exchange("outside", world.network.NODE)
