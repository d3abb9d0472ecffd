"""Connections that the stack translates since before our programs: their packets pass as they are."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror, TCPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6, IPv6
from scapy.packet import Packet
from tests.bpf.kernel import Loaded
from tests.bpf.packets import NODE, POD, POD6, UNSPEC, VIP, VIP6, WORLD, WORLD6, Case, frame, run_case, service
from tests.bpf.packets import set_state as set_plain_state

pytestmark = pytest.mark.root

SLOT_STACK = 0xFFFFFFFF


def known(node: Loaded) -> None:
    """Port 4000 of each client."""
    service(node)
    for vip, number in ((VIP, 5), (VIP6, 7)):
        key = {"addr": vip, "port": 80, "protocol": 6}
        node.maps["frontends"].set(key, {"service": number, "outside": number})
    for client, vip, number in ((POD, VIP, 5), (WORLD, VIP, 5), (POD6, VIP6, 7), (WORLD6, VIP6, 7)):
        key = {"client": client, "vip": vip, "client_port": 4000, "vip_port": 80, "protocol": 6}
        value = {"backend": vip, "backend_port": 80, "service": number, "slot": SLOT_STACK, "expires": 1 << 60}
        node.maps["translations"].set(key, value)


def ip(source: str, destination: str) -> Packet:
    return (IPv6 if ":" in source else IP)(src=source, dst=destination)


def sent(source: str, destination: str, flags: str = "A", port: int = 4000) -> Packet:
    return frame(ip(source, destination), TCP(sport=port, dport=80, flags=flags))


def error(source: str, vip: str) -> Packet:
    """Of the client, about what came from the Service's address."""
    about = TCPerror(sport=80, dport=4000)
    if ":" in source:
        return frame(ip(source, vip), ICMPv6DestUnreach(code=4) / IPerror6(src=vip, dst=source, plen=20) / about)
    return frame(ip(source, vip), ICMP(type=3, code=3) / IPerror(src=vip, dst=source) / about)


CASES = [
    case
    for suffix, pod, world, vip in (("", POD, WORLD, VIP), ("6", POD6, WORLD6, VIP6))
    for case in (
        Case(f"a pod's{suffix}", f"from_pod{suffix}", sent(pod, vip), UNSPEC, before=known),
        Case(f"an outsider's{suffix}", f"from_network{suffix}", sent(world, vip), UNSPEC, before=known),
        Case(f"an error about one{suffix}", f"from_network{suffix}", error(world, vip), UNSPEC, before=known),
    )
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_passes_as_it_is(both_loaded: list[Loaded], case: Case) -> None:
    node = both_loaded[0]
    set_plain_state(node)
    run_case(node, case)
    assert node.maps["connections_new"].items() == []


@pytest.mark.parametrize(("flags", "port"), [("S", 4000), ("A", 4001)])
def test_others_are_given_a_backend(both_loaded: list[Loaded], flags: str, port: int) -> None:
    """One that opens with the same port is another one."""
    node = both_loaded[0]
    set_plain_state(node)
    known(node)
    out = frame(ip(WORLD, NODE), TCP(sport=port, dport=8080, flags=flags))
    run_case(node, Case("new", "from_network", sent(WORLD, VIP, flags, port), UNSPEC, out=out))
