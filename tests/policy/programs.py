"""What the loaded programs of two nodes say to a connection's packets."""

import os
from collections.abc import Mapping, Sequence
from functools import cache

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet as Layers
from scapy.packet import Raw
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.packets import IFINDEX, REDIRECT, SHOT, frame
from tests.endpoint_sync.world import KEYS, Object
from tests.node_agent.world import ENTRIES, MARKS, Agent
from tests.policy.model import Documentation, Packet

from node_agent.maps import Maps
from node_agent.table import POLICY, Step, Tables
from node_agent.view import View
from tidegate.records.addresses import pack_address

EGRESS, INGRESS = "POLICY_EGRESS", "POLICY_INGRESS"
AUDITED = {EGRESS: "AUDITED_EGRESS", INGRESS: "AUDITED_INGRESS"}
SETTING_AUDIT = 13  # enum setting of types.h
CONNECTIONS = ("connections", "connections_new")
Sent = list[tuple[int, Packet]]  # with their numbers: source ports, or identifiers

IPV4_AT, IPV6_AT = 26, 22  # addresses in a frame
TRANSPORTS: Mapping[str, Layers] = {
    "TCP": TCP(flags="S"),
    "UDP": UDP() / Raw(b"as much as TCP has"),
    "SCTP": SCTP() / SCTPChunkInit(init_tag=7, n_out_streams=1, n_in_streams=1),
}


class Node(Agent):
    """The pure part of a node's agent, over loaded programs' maps. All of its pods have one device: test_run's."""

    def __init__(self, name: str, loaded: Loaded) -> None:
        loaded.clear()
        super().__init__()
        self.name = name
        self.loaded = loaded
        self.generation = 0
        self.audited = False
        self.passed: dict[int, int] = {}  # number of a packet that has been judged and passed → in which generation
        self.view = View(name, KEYS, self.tables, ENTRIES)
        self._maps = Maps(loaded.manifest.maps)
        names = [f"{name}{suffix}" for name in ("from_pod", "to_pod", "from_network") for suffix in ("", "6")]
        self._programs = {name: loaded.open_program(name) for name in names}
        loaded.maps["devices"].set({"value": 0}, {})
        loaded.maps["devices"].set({"value": IFINDEX}, {"flags": 1})

    def close(self) -> None:
        self._maps.close()
        for fd in self._programs.values():
            os.close(fd)
        self.loaded.clear()

    def forget(self) -> None:
        """As on the first day."""
        for name in (*self.kernel, *CONNECTIONS):
            if name != "devices":
                self.loaded.maps[name].clear()
        self.kernel = {name: {} for name in self.kernel}
        self.tables = Tables(self.kernel)
        self.view = View(self.name, KEYS, self.tables, ENTRIES)
        self.passed = {}

    def answer(self) -> None:
        """As if all connections had been answered: they are live."""
        fresh, live = (self.loaded.maps[name] for name in ("connections_new", "connections"))
        for key, entry in fresh.items():
            live.set(key, entry)
        fresh.clear()

    def audit(self, whole: bool) -> None:
        """As an agent starts with or without --policy-audit."""
        if whole != self.audited:
            self.audited = whole
            self.loaded.maps["settings"].set({"value": SETTING_AUDIT}, {"value": int(whole)})
            self.raise_generation()

    def raise_generation(self) -> None:
        self.generation += 1
        self.loaded.maps["settings"].set({"value": 0}, {"value": self.generation})

    def apply(self, values: Mapping[str, bytes], pods: Sequence[Object]) -> list[Step]:
        """As an agent does it: the steps, then the generation, where they may change a verdict."""
        here = [each for each in pods if each["spec"]["nodeName"] == self.name]
        ips = [pack_address(entry["ip"]) for each in here for entry in each["status"]["podIPs"]]
        self.view.set_host(dict.fromkeys(ips, IFINDEX), frozenset())
        self.view.snapshot({**MARKS, **values})
        steps = self.write()
        if any(step.map in POLICY for step in steps):
            self.raise_generation()
        return steps

    def carry_out(self, step: Step) -> None:
        super().carry_out(step)
        if step.map == "devices":
            return
        assert self._maps[step.map].update_all(step.puts) == len(step.puts)
        self._maps[step.map].delete_all(step.deletes)

    def run(self, program: str, raw: bytes, family: int) -> tuple[list[str], int]:
        """Which policies deny the packet, the one that drops it last; and the program's action."""
        before = {name: self.loaded.counter(name) for name in (*AUDITED.values(), EGRESS, INGRESS)}
        fd = self._programs[program if family == 4 else f"{program}6"]
        action, _, _ = run_program(fd, raw)
        counted = [name for name, count in before.items() if self.loaded.counter(name) != count]
        dropped = {EGRESS, INGRESS} & set(counted)
        assert len(dropped) <= 1
        assert not dropped or action == SHOT
        return counted, action

    def differs(
        self, program: str, number: int, raw: bytes, family: int, denying: Sequence[str], delivered: bool
    ) -> str:
        """What is otherwise than that these deny it, in their order, and that it is `delivered` by a redirect where it
        passes; empty where nothing is."""
        dropped = {EGRESS, INGRESS} & set(denying)
        # Of a connection that has been judged the next packet is not, until something changes.
        known = self.passed.get(number) == self.generation
        expected = [] if known and not dropped else list(denying)
        said, action = self.run(program, raw, family)
        if not dropped:
            self.passed[number] = self.generation
        wrong = said != expected or (delivered and not dropped and action != REDIRECT)
        return f"at {program} of {self.name}: {said} ({action}), not {expected}" if wrong else ""


@cache
def _template(family: int, protocol: str) -> bytes:
    if protocol == "ICMP":
        return bytes(frame(IP() / ICMP(id=0, seq=1) if family == 4 else IPv6() / ICMPv6EchoRequest(id=0, seq=1)))
    return bytes(frame(IP() if family == 4 else IPv6(), TRANSPORTS[protocol]))


def raw(packet: Packet, source: bytes, target: bytes, number: int) -> bytes:
    """`number` is the source port, or the identifier. Checksums are whatever they are: nothing looks at them here."""
    found = bytearray(_template(packet.family, packet.protocol))
    at, size = (IPV4_AT, 4) if packet.family == 4 else (IPV6_AT, 16)
    found[at : at + 2 * size] = source + target
    l4 = at + 2 * size
    if packet.protocol == "ICMP":
        found[l4 + 4 : l4 + 6] = number.to_bytes(2, "big")
    else:
        found[l4 : l4 + 4] = number.to_bytes(2, "big") + packet.port.to_bytes(2, "big")
    return bytes(found)


def differences(
    nodes: Mapping[str, Node],
    documented: Documentation,
    homes: Mapping[str, str],
    packets: Sent,
) -> list[str]:
    """Each packet through the hooks on its way (`homes`: pod → node), beside what the documentation says."""
    found = []
    for number, packet in packets:
        source, target = (documented.address(name, packet.family).packed for name in (packet.source, packet.target))
        bytes_ = raw(packet, source, target, number)
        leaves, enters = homes.get(packet.source), homes.get(packet.target)
        out, into = _denying(documented, packet, "Egress", EGRESS), _denying(documented, packet, "Ingress", INGRESS)
        hooks = []
        if leaves:
            # Whom the first end drops, the second is not asked about.
            both = leaves == enters and EGRESS not in out
            hooks.append((leaves, "from_pod", out + into if both else out, leaves == enters))
        if enters and enters != leaves:
            # "From my own node" is what no device has received.
            own = packet.source == enters
            hooks.append((enters, "to_pod" if own else "from_network", into, not own))
        for node, program, denying, delivered in hooks:
            wrong = nodes[node].differs(program, number, bytes_, packet.family, denying, delivered)
            found += [f"{packet} {wrong}"] if wrong else []
    return found


def _denying(documented: Documentation, packet: Packet, direction: str, reason: str) -> list[str]:
    """The reason by which that end denies it, if it does."""
    if packet.source == packet.target or documented.direction(direction, packet):
        return []
    return [AUDITED[reason] if documented.audits(direction, packet) else reason]
