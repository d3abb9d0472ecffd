"""Tables of IPv6 packets, each run once through a program: what IPv6 has of its own, and what it shares."""

import pytest
from scapy.layers.inet import IP, TCP, UDP, TCPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    ICMPv6Unknown,
    IPerror6,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.packets import (
    IFINDEX,
    JUDGED,
    NODE6,
    OTHER6,
    POD6,
    REDIRECT,
    REMOTE6,
    SHOT,
    UNSPEC,
    VIP6,
    WORLD6,
    Case,
    closed,
    frame,
    isolated,
    run_case,
    service,
    set_state,
)

pytestmark = pytest.mark.root

LINK_LOCAL = "fe80::5"
TO_NODE, TO_VIP = IPv6(src=POD6, dst=NODE6), IPv6(src=POD6, dst=VIP6)
OPTIONS = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])


@pytest.fixture
def node(both_loaded: list[Loaded]) -> Loaded:
    set_state(both_loaded[0])
    return both_loaded[0]


def from_pod(name: str, packet: Packet, action: int, reason: str = "", **more: object) -> Case:
    return Case(name, "from_pod6", packet, action, reason, **more)  # type: ignore[arg-type]


def translated(name: str, *extensions: Packet, transport: Packet | None = None) -> Case:
    """A packet to the Service with these headers between, which goes on to the backend with them."""
    layers = transport or UDP(sport=4000, dport=53) / Raw(b"odd")
    port = layers.dport
    sent = frame(TO_VIP, *(header.copy() for header in extensions), layers.copy())
    layers.dport = 8080
    expected = frame(TO_NODE, *(header.copy() for header in extensions), layers)
    assert port in (53, 80)
    return from_pod(name, sent, UNSPEC, "FORWARDED", before=service, out=expected)


def connection(node: Loaded) -> None:
    """POD6:4000 has spoken to VIP6:80, and got NODE6:8080."""
    service(node)
    run_program(node.open_program("from_pod6"), bytes(frame(TO_VIP, TCP(sport=4000, dport=80))))


LINK = [
    from_pod("IPv4 is for the other program", frame(IP(src="10.9.0.2"), UDP()), UNSPEC),
    from_pod("ARP is, too", frame(ARP()), UNSPEC),
    from_pod("neighbour solicitation", frame(IPv6(src=POD6, dst="ff02::1:ff00:1"), ICMPv6ND_NS(tgt=NODE6)), UNSPEC),
    from_pod("address detection", frame(IPv6(src="::", dst="ff02::1:ff00:2"), ICMPv6ND_NS(tgt=POD6)), UNSPEC),
    from_pod("neighbour advertisement", frame(IPv6(src=LINK_LOCAL, dst=NODE6), ICMPv6ND_NA(tgt=POD6)), UNSPEC),
    from_pod("router solicitation", frame(IPv6(src=LINK_LOCAL, dst="ff02::2"), ICMPv6ND_RS()), UNSPEC),
    from_pod(
        "listener report",
        frame(IPv6(src="::", dst="ff02::16", hlim=1), IPv6ExtHdrHopByHop(), ICMPv6MLReport2()),
        UNSPEC,
    ),
    from_pod(
        "a solicitation that was routed",
        frame(IPv6(src=LINK_LOCAL, dst=POD6, hlim=254), ICMPv6ND_NS(tgt=POD6)),
        SHOT,
        "LINK_LOCAL",
    ),
    from_pod("link-local otherwise", frame(IPv6(src=LINK_LOCAL, dst="ff02::fb"), UDP()), SHOT, "LINK_LOCAL"),
]

FROM_POD = [
    from_pod("to the own node", frame(TO_NODE, UDP(), Raw(b"x")), UNSPEC, "FORWARDED"),
    from_pod("ping", frame(TO_NODE, ICMPv6EchoRequest()), UNSPEC, "FORWARDED"),
    from_pod("foreign source", frame(IPv6(src=OTHER6, dst=NODE6), UDP()), SHOT, "SPOOFED"),
    from_pod("source of another node's pod", frame(IPv6(src=REMOTE6, dst=NODE6), UDP()), SHOT, "SPOOFED"),
    from_pod("source that nobody has", frame(IPv6(src="fd00:9::9", dst=NODE6), UDP()), SHOT, "CLOSED"),
    from_pod("closed, to the own node", frame(TO_NODE, UDP()), UNSPEC, "FORWARDED", before=closed),
    from_pod("closed, to elsewhere", frame(IPv6(src=POD6, dst=WORLD6), UDP()), SHOT, "CLOSED", before=closed),
    from_pod("isolated", frame(TO_NODE, UDP()), SHOT, "POLICY_EGRESS", before=isolated(2)),
    from_pod("ping, isolated", frame(TO_NODE, ICMPv6EchoRequest()), SHOT, "POLICY_EGRESS", before=isolated(2)),
    from_pod("payload beyond the packet", frame(IPv6(src=POD6, dst=NODE6, plen=99), UDP()), SHOT, "MALFORMED"),
    from_pod("version 4", frame(IPv6(src=POD6, dst=NODE6, version=4), UDP()), SHOT, "MALFORMED"),
    from_pod("TCP header cut", frame(IPv6(src=POD6, dst=NODE6, nh=6), Raw(b"x" * 19)), SHOT, "MALFORMED"),
    from_pod("no next header", frame(IPv6(src=POD6, dst=NODE6, nh=59)), UNSPEC, "FORWARDED"),
    from_pod("no next header, isolated", frame(IPv6(src=POD6, dst=NODE6, nh=59)), SHOT, "PROTOCOL", before=isolated(2)),
    from_pod(
        "error about no connection",
        frame(TO_NODE, ICMPv6DestUnreach(), IPerror6(src=NODE6, dst=POD6), TCPerror(sport=1, dport=2)),
        SHOT,
        "ICMP_UNRELATED",
    ),
    from_pod("Service, ping", frame(TO_VIP, ICMPv6EchoRequest()), SHOT, "NO_SERVICE_PORT", before=service),
    from_pod("pod whose device is gone", frame(IPv6(src=POD6, dst=OTHER6), UDP(), Raw(bytes(1300))), SHOT, "NO_ROUTE"),
]

EXTENSIONS = [
    from_pod(
        "an extension header cut", frame(IPv6(src=POD6, dst=NODE6, nh=60), Raw(b"\x11\x01\0\0\0\0")), SHOT, "MALFORMED"
    ),
    from_pod("eight", frame(TO_NODE, *(OPTIONS.copy() for _ in range(8)), UDP()), UNSPEC),
    from_pod("nine", frame(TO_NODE, *(OPTIONS.copy() for _ in range(9)), UDP()), SHOT, "EXTENSIONS"),
    from_pod(
        "a first fragment too short for ports",
        frame(TO_NODE, IPv6ExtHdrFragment(m=1, nh=17), Raw(b"x" * 4)),
        SHOT,
        "MALFORMED",
    ),
    from_pod(
        "a later fragment first",
        frame(TO_NODE, IPv6ExtHdrFragment(offset=100, nh=17), Raw(b"x" * 100)),
        SHOT,
        "FRAGMENT_UNKNOWN",
    ),
]

TRANSLATED = [
    translated("UDP"),
    translated("TCP", transport=TCP(sport=4000, dport=80, flags="S")),
    translated("destination options", OPTIONS),
    translated("hop-by-hop and destination options", IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(12))]), OPTIONS),
    translated("a routing header", IPv6ExtHdrRouting(addresses=[], segleft=0)),
    translated("an authentication header", AH(nh=17, icv=bytes(12), payloadlen=4)),
    translated("a fragment that is the whole packet", IPv6ExtHdrFragment(id=9)),
    translated("four kinds", IPv6ExtHdrHopByHop(), OPTIONS, IPv6ExtHdrFragment(id=9), OPTIONS),
]

ABOUT = IPerror6(src=POD6, dst=NODE6) / TCPerror(sport=4000, dport=8080, chksum=1)
ABOUT_VIP = IPerror6(src=POD6, dst=VIP6) / TCPerror(sport=4000, dport=80, chksum=1)

TO_POD = [
    Case("from the own node", "to_pod6", frame(IPv6(src=NODE6, dst=POD6), UDP()), UNSPEC, "FORWARDED"),
    Case("own node, isolated", "to_pod6", frame(IPv6(src=NODE6, dst=POD6), UDP()), UNSPEC, "FORWARDED", isolated(1)),
    Case("solicitation", "to_pod6", frame(IPv6(src=NODE6, dst="ff02::1:ff00:2"), ICMPv6ND_NS(tgt=POD6)), UNSPEC),
    Case(
        "forwarded with the node's address, isolated",
        "to_pod6",
        frame(IPv6(src=NODE6, dst=POD6), UDP()),
        SHOT,
        "POLICY_INGRESS",
        isolated(1),
        run={"ingress_ifindex": IFINDEX},
    ),
    Case(
        "forwarded and judged before",
        "to_pod6",
        frame(IPv6(src=WORLD6, dst=POD6), UDP()),
        UNSPEC,
        before=isolated(1),
        judged=True,
        run={"ingress_ifindex": IFINDEX, "mark": JUDGED},
    ),
    Case(
        "reply of a Service's backend",
        "to_pod6",
        frame(IPv6(src=NODE6, dst=POD6), TCP(sport=8080, dport=4000, flags="SA"), Raw(b"abc")),
        UNSPEC,
        "",
        connection,
        frame(IPv6(src=VIP6, dst=POD6), TCP(sport=80, dport=4000, flags="SA"), Raw(b"abc")),
    ),
    Case(
        "error of a Service's backend",
        "to_pod6",
        frame(IPv6(src=NODE6, dst=POD6), ICMPv6DestUnreach(code=4), ABOUT),
        UNSPEC,
        "",
        connection,
        frame(IPv6(src=VIP6, dst=POD6), ICMPv6DestUnreach(code=4), ABOUT_VIP),
    ),
    Case(
        "error of a router about a Service's backend",
        "to_pod6",
        frame(IPv6(src=WORLD6, dst=POD6), ICMPv6PacketTooBig(mtu=1300), ABOUT),
        UNSPEC,
        "",
        connection,
        frame(IPv6(src=WORLD6, dst=POD6), ICMPv6PacketTooBig(mtu=1300), ABOUT_VIP),
    ),
    Case(
        "error about a packet with options",
        "to_pod6",
        frame(
            IPv6(src=WORLD6, dst=POD6),
            ICMPv6TimeExceeded(),
            IPerror6(src=POD6, dst=NODE6),
            OPTIONS.copy(),
            TCP(sport=4000, dport=8080, chksum=1),
        ),
        UNSPEC,
        "",
        connection,
        frame(
            IPv6(src=WORLD6, dst=POD6),
            ICMPv6TimeExceeded(),
            IPerror6(src=POD6, dst=VIP6),
            OPTIONS.copy(),
            TCP(sport=4000, dport=80, chksum=1),
        ),
    ),
]

FROM_NETWORK = [
    Case("IPv4", "from_network6", frame(IP(src="192.0.2.9"), UDP()), UNSPEC),
    Case("not for a pod", "from_network6", frame(IPv6(src=WORLD6, dst=NODE6), UDP()), UNSPEC),
    Case("for a remote pod", "from_network6", frame(IPv6(src=WORLD6, dst=REMOTE6), UDP()), UNSPEC),
    Case(
        "solicitation of the node", "from_network6", frame(IPv6(src=WORLD6, dst=NODE6), ICMPv6ND_NS(tgt=NODE6)), UNSPEC
    ),
    Case(
        "a local pod's address from outside", "from_network6", frame(IPv6(src=OTHER6, dst=POD6), UDP()), SHOT, "SPOOFED"
    ),
    Case("our own address from outside", "from_network6", frame(IPv6(src=NODE6, dst=POD6), UDP()), SHOT, "SPOOFED"),
    Case("isolated", "from_network6", frame(IPv6(src=WORLD6, dst=POD6), UDP()), SHOT, "POLICY_INGRESS", isolated(1)),
    Case("closed", "from_network6", frame(IPv6(src=WORLD6, dst=POD6), UDP()), SHOT, "CLOSED", closed),
    Case(
        "routed neighbour discovery, isolated",
        "from_network6",
        frame(IPv6(src=WORLD6, dst=POD6, hlim=255), ICMPv6ND_NS(tgt=POD6)),
        SHOT,
        "POLICY_INGRESS",
        isolated(1),
    ),
    Case(
        "last hop", "from_network6", frame(IPv6(src=WORLD6, dst=POD6, hlim=1), UDP()), UNSPEC, "FORWARDED", judged=True
    ),
    Case(
        "into a pod",
        "from_network6",
        frame(IPv6(src=REMOTE6, dst=POD6, hlim=64, tc=0xB8, fl=12345), TCP(sport=1, dport=2)),
        REDIRECT,
        "FORWARDED",
        out=frame(IPv6(src=REMOTE6, dst=POD6, hlim=63, tc=0xB8, fl=12345), TCP(sport=1, dport=2)),
    ),
    Case(
        "an unknown message into a pod, isolated",
        "from_network6",
        frame(IPv6(src=REMOTE6, dst=POD6), ICMPv6Unknown(type=200), Raw(bytes(4))),
        SHOT,
        "POLICY_INGRESS",
        isolated(1),
    ),
]

CASES = [*LINK, *FROM_POD, *EXTENSIONS, *TRANSLATED, *TO_POD, *FROM_NETWORK]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.program}: {case.name}")
def test_packet(node: Loaded, case: Case) -> None:
    run_case(node, case)


def test_fragments_follow_their_first_one(node: Loaded) -> None:
    """Also behind destination options, which later fragments name as their protocol (RFC 8200, 4.5)."""
    service(node)
    whole = bytes(OPTIONS / UDP(sport=4000, dport=53, len=1008, chksum=0x1234) / Raw(bytes(1000)))
    for number, part in enumerate((whole[:512], whole[512:])):
        header = IPv6ExtHdrFragment(nh=60, id=77, offset=number * 64, m=number == 0)
        action, out, _ = run_program(node.open_program("from_pod6"), bytes(frame(TO_VIP, header, Raw(part))))
        assert (action, Ether(out)[IPv6].dst) == (UNSPEC, NODE6)
        if number:
            assert bytes(Ether(out)[IPv6])[48:] == part
    assert node.drops() == {}


def test_echo_requests_of_both_sides_are_two_connections(node: Loaded) -> None:
    isolated(1)(node)
    out, back = node.open_program("from_pod6"), node.open_program("from_network6")
    node.maps["endpoints"].set({"addr": NODE6}, {"identity": 302, "flags": 1})
    assert run_program(out, bytes(frame(TO_NODE, ICMPv6EchoRequest(id=7))))[0] == UNSPEC
    back_again = IPv6(src=NODE6, dst=POD6)
    assert run_program(back, bytes(frame(back_again, ICMPv6EchoRequest(id=7))))[0] == SHOT
    assert run_program(back, bytes(frame(back_again, ICMPv6EchoReply(id=7))))[0] == REDIRECT
