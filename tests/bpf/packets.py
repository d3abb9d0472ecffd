"""One packet through one program: the words that the tables of packets are written in."""

from collections.abc import Callable
from dataclasses import dataclass, field

from scapy.layers.l2 import Ether
from scapy.packet import Packet
from tests.bpf.kernel import FIRST_PORT, LAST_PORT, Loaded, run_program

UNSPEC, SHOT, REDIRECT = -1, 2, 7
JUDGED = 0x00100000

# test_run gives the packet to the loopback device, which has this number in every namespace.
IFINDEX = 1
POD, OTHER, REMOTE, NODE, WORLD, VIP = "10.9.0.2", "10.9.0.3", "10.9.1.2", "192.0.2.1", "198.51.100.1", "10.98.0.1"
POD6, OTHER6, REMOTE6, NODE6, WORLD6, VIP6 = (
    *("fd00:9::2", "fd00:9::3", "fd00:9:1::2"),
    *("2001:db8::1", "2001:db8:ffff::1", "fd00:98::1"),
)
# A local pod that has no device to be redirected to where the tests run.
NOWHERE = 987654


def set_state(node: Loaded) -> None:
    """POD sits behind the device of test_run, OTHER behind one that is not there; nobody is isolated."""
    node.clear()
    node.set_ports((FIRST_PORT, LAST_PORT))
    maps = node.maps
    for pod, other, remote, own in ((POD, OTHER, REMOTE, NODE), (POD6, OTHER6, REMOTE6, NODE6)):
        maps["endpoints"].set({"addr": pod}, {"identity": 300, "ifindex": IFINDEX, "flags": 1})
        maps["endpoints"].set({"addr": other}, {"identity": 301, "ifindex": NOWHERE, "flags": 1})
        maps["endpoints"].set({"addr": remote}, {"identity": 302, "flags": 1})
        maps["endpoints"].set({"addr": own}, {"identity": 1, "flags": 2})
    for identity in (300, 301):
        maps["subjects"].set({"value": identity}, {"policy": identity})


Change = Callable[[Loaded], None]


@dataclass(frozen=True)
class Case:
    name: str
    program: str
    packet: Packet
    action: int
    reason: str = ""  # the counter that must be 1
    before: Change | None = None
    out: Packet | None = None  # None: unchanged
    judged: bool = False  # our mark is on it afterwards
    run: dict[str, int] = field(default_factory=dict)


def frame(*layers: Packet) -> Packet:
    packet: Packet = Ether(src="02:00:00:00:00:01", dst="00:00:00:00:00:00")
    for layer in layers:
        packet /= layer
    return packet


def isolated(flags: int) -> Change:
    return lambda node: node.maps["subjects"].set({"value": 300}, {"policy": 300, "flags": flags})


def closed(node: Loaded) -> None:
    for address in (POD, POD6):
        node.maps["endpoints"].set({"addr": address}, {"identity": 300, "ifindex": IFINDEX, "flags": 1 | 8})


def service(node: Loaded) -> None:
    """The own node is the backend of VIP (services 5 and 6) and VIP6 (7 and 8)."""
    for vip, backend, tcp, udp in ((VIP, NODE, 5, 6), (VIP6, NODE6, 7, 8)):
        node.maps["frontends"].set({"addr": vip}, {})
        node.maps["frontends"].set({"addr": vip, "port": 80, "protocol": 6}, {"service": tcp})
        node.maps["frontends"].set({"addr": vip, "port": 53, "protocol": 17}, {"service": udp})
        for number in (tcp, udp):
            node.maps["services"].set({"value": number}, {"count": 1})
            node.maps["backends"].set({"service": number, "slot": 0}, {"addr": backend, "port": 8080})


def run_case(node: Loaded, case: Case) -> None:
    if case.before:
        case.before(node)
    before = {name: node.counter(name) for name in node.reasons}
    action, out, mark = run_program(node.open_program(case.program), bytes(case.packet), **case.run)
    changed = {name: node.counter(name) - count for name, count in before.items()}
    assert (action, {name for name, count in changed.items() if count and name != "FORWARDED"}) == (
        case.action,
        {case.reason} - {"", "FORWARDED"},
    )
    if case.reason:
        assert changed[case.reason] == 1
    assert (mark & 0x00F00000 == JUDGED) == case.judged
    if action != SHOT:
        assert Ether(out) == Ether(bytes(case.out or case.packet))
