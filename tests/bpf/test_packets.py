"""Tables of IPv4 packets, each run once through a program: description, packet, state, expected action and packet."""

import time
from itertools import permutations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.packets import (
    IFINDEX,
    JUDGED,
    NODE,
    NODE6,
    OTHER,
    POD,
    POD6,
    REDIRECT,
    REMOTE,
    SHOT,
    UNSPEC,
    VIP,
    WORLD,
    Case,
    closed,
    frame,
    isolated,
    run_case,
    service,
    set_state,
)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(both_loaded: list[Loaded]) -> Loaded:
    return both_loaded[0]


@pytest.fixture(autouse=True)
def state(node: Loaded) -> None:
    set_state(node)


def translated_connection(node: Loaded) -> None:
    """POD:4000 has spoken to VIP:80, and got NODE:8080."""
    service(node)
    run_program(node.open_program("from_pod"), bytes(frame(IP(src=POD, dst=VIP), TCP(sport=4000, dport=80))))


TO_NODE = frame(IP(src=POD, dst=NODE), UDP(sport=4000, dport=53), Raw(b"x"))
SYN = IP(src=POD, dst=VIP, ttl=9) / TCP(sport=4000, dport=80, flags="S")

FROM_POD = [
    Case("ARP passes", "from_pod", frame(ARP()), UNSPEC),
    Case("IPv6 is for the other program", "from_pod", frame(IPv6(src=POD6, dst=NODE6), UDP()), UNSPEC),
    Case("IPv6 in a VLAN", "from_pod", frame(Dot1Q(vlan=5), IPv6(src=POD6, dst=NODE6), UDP()), SHOT, "NOT_IP"),
    Case("to the own node", "from_pod", TO_NODE, UNSPEC, "FORWARDED"),
    Case("neither IP nor ARP", "from_pod", frame() / Raw(b"\x00" * 40), SHOT, "NOT_IP"),
    Case("VLAN", "from_pod", frame(Dot1Q(vlan=5), IP(src=POD, dst=NODE), UDP()), SHOT, "NOT_IP"),
    Case("foreign source", "from_pod", frame(IP(src=OTHER, dst=NODE), UDP()), SHOT, "SPOOFED"),
    Case("source of another node's pod", "from_pod", frame(IP(src=REMOTE, dst=NODE), UDP()), SHOT, "SPOOFED"),
    Case("source that nobody has", "from_pod", frame(IP(src="10.9.0.9", dst=NODE), UDP()), SHOT, "CLOSED"),
    Case("closed, to the own node", "from_pod", TO_NODE, UNSPEC, "FORWARDED", closed),
    Case("closed, to elsewhere", "from_pod", frame(IP(src=POD, dst=WORLD), UDP()), SHOT, "CLOSED", closed),
    Case("isolated", "from_pod", TO_NODE, SHOT, "POLICY_EGRESS", isolated(2)),
    Case("isolated for ingress only", "from_pod", TO_NODE, UNSPEC, "FORWARDED", isolated(1)),
    Case(
        "protocol without ports",
        "from_pod",
        frame(IP(src=POD, dst=NODE, proto=47), Raw(b"x" * 20)),
        UNSPEC,
        "FORWARDED",
    ),
    Case(
        "protocol without ports, isolated",
        "from_pod",
        frame(IP(src=POD, dst=NODE, proto=47), Raw(b"x" * 20)),
        SHOT,
        "PROTOCOL",
        isolated(2),
    ),
    Case("length beyond the packet", "from_pod", frame(IP(src=POD, dst=NODE, len=99), UDP()), SHOT, "MALFORMED"),
    Case("header length of 4 words", "from_pod", frame(IP(src=POD, dst=NODE, ihl=4), UDP()), SHOT, "MALFORMED"),
    Case(
        "header longer than the packet",
        "from_pod",
        frame(IP(src=POD, dst=NODE, ihl=15, len=30), UDP()),
        SHOT,
        "MALFORMED",
    ),
    Case("TCP header cut", "from_pod", frame(IP(src=POD, dst=NODE, proto=6), Raw(b"x" * 19)), SHOT, "MALFORMED"),
    Case(
        "first fragment too short for ports",
        "from_pod",
        frame(IP(src=POD, dst=NODE, proto=17, flags="MF"), Raw(b"x" * 6)),
        SHOT,
        "MALFORMED",
    ),
    Case(
        "later fragment first",
        "from_pod",
        frame(IP(src=POD, dst=NODE, proto=17, frag=100), Raw(b"x" * 100)),
        SHOT,
        "FRAGMENT_UNKNOWN",
    ),
    Case(
        "IP options",
        "from_pod",
        frame(IP(src=POD, dst=NODE, options=[b"\x01\x01\x01\x01"]), UDP(sport=1, dport=2)),
        UNSPEC,
        "FORWARDED",
    ),
    Case(
        "error about no connection",
        "from_pod",
        frame(IP(src=POD, dst=NODE), ICMP(type=3, code=3), IPerror(src=NODE, dst=POD), TCPerror(sport=1, dport=2)),
        SHOT,
        "ICMP_UNRELATED",
    ),
    Case("to a device that is no uplink", "from_pod", frame(IP(src=POD, dst="127.0.0.5"), UDP()), UNSPEC),
    Case(
        "pod whose device is gone", "from_pod", frame(IP(src=POD, dst=OTHER), UDP(), Raw(b"x" * 60)), SHOT, "NO_ROUTE"
    ),
    Case(
        "Service, TCP",
        "from_pod",
        frame(SYN),
        UNSPEC,
        "FORWARDED",
        service,
        frame(IP(src=POD, dst=NODE, ttl=9), TCP(sport=4000, dport=8080, flags="S")),
    ),
    Case(
        "Service, UDP",
        "from_pod",
        frame(IP(src=POD, dst=VIP), UDP(sport=4000, dport=53), Raw(b"odd")),
        UNSPEC,
        "FORWARDED",
        service,
        frame(IP(src=POD, dst=NODE), UDP(sport=4000, dport=8080), Raw(b"odd")),
    ),
    Case(
        "Service, UDP without a checksum",
        "from_pod",
        frame(IP(src=POD, dst=VIP), UDP(sport=4000, dport=53, chksum=0), Raw(b"odd")),
        UNSPEC,
        "FORWARDED",
        service,
        frame(IP(src=POD, dst=NODE), UDP(sport=4000, dport=8080, chksum=0), Raw(b"odd")),
    ),
    Case("Service, ping", "from_pod", frame(IP(src=POD, dst=VIP), ICMP()), SHOT, "NO_SERVICE_PORT", service),
]

TO_POD = [
    Case("from the own node", "to_pod", frame(IP(src=NODE, dst=POD), UDP()), UNSPEC, "FORWARDED"),
    Case(
        "from the own node, isolated", "to_pod", frame(IP(src=NODE, dst=POD), UDP()), UNSPEC, "FORWARDED", isolated(1)
    ),
    Case("own node's broadcast", "to_pod", frame(IP(src=NODE, dst="224.0.0.251"), UDP()), UNSPEC, "FORWARDED"),
    Case(
        "forwarded with the node's address, isolated",
        "to_pod",
        frame(IP(src=NODE, dst=POD), UDP()),
        SHOT,
        "POLICY_INGRESS",
        isolated(1),
        run={"ingress_ifindex": IFINDEX},
    ),
    Case(
        "forwarded and judged before",
        "to_pod",
        frame(IP(src=WORLD, dst=POD), UDP()),
        UNSPEC,
        before=isolated(1),
        judged=True,
        run={"ingress_ifindex": IFINDEX, "mark": JUDGED},
    ),
    Case(
        "forwarded to nobody that is known",
        "to_pod",
        frame(IP(src=WORLD, dst="10.9.0.9"), UDP()),
        SHOT,
        "CLOSED",
        run={"ingress_ifindex": IFINDEX},
    ),
    Case(
        "reply of a Service's backend",
        "to_pod",
        frame(IP(src=NODE, dst=POD), TCP(sport=8080, dport=4000, flags="SA"), Raw(b"abc")),
        UNSPEC,
        "",
        translated_connection,
        frame(IP(src=VIP, dst=POD), TCP(sport=80, dport=4000, flags="SA"), Raw(b"abc")),
    ),
    Case(
        "error about a Service's backend",
        "to_pod",
        frame(
            IP(src=NODE, dst=POD),
            ICMP(type=3, code=4),
            IPerror(src=POD, dst=NODE),
            TCPerror(sport=4000, dport=8080, chksum=1),
        ),
        UNSPEC,
        "",
        translated_connection,
        frame(
            IP(src=VIP, dst=POD),
            ICMP(type=3, code=4),
            IPerror(src=POD, dst=VIP),
            TCPerror(sport=4000, dport=80, chksum=1),
        ),
    ),
    Case(
        "error of a router about a Service's backend",
        "to_pod",
        frame(
            IP(src=WORLD, dst=POD),
            ICMP(type=11),
            IPerror(src=POD, dst=NODE),
            TCPerror(sport=4000, dport=8080, chksum=1),
        ),
        UNSPEC,
        "",
        translated_connection,
        frame(
            IP(src=WORLD, dst=POD), ICMP(type=11), IPerror(src=POD, dst=VIP), TCPerror(sport=4000, dport=80, chksum=1)
        ),
    ),
]

FROM_NETWORK = [
    Case("not for a pod", "from_network", frame(IP(src=WORLD, dst=NODE), UDP()), UNSPEC),
    Case("for a remote pod", "from_network", frame(IP(src=WORLD, dst=REMOTE), UDP()), UNSPEC),
    Case("IPv6", "from_network", frame(IPv6(dst="fd00::3"), UDP()), UNSPEC),
    Case("a local pod's address from outside", "from_network", frame(IP(src=OTHER, dst=POD), UDP()), SHOT, "SPOOFED"),
    Case("our own address from outside", "from_network", frame(IP(src=NODE, dst=POD), UDP()), SHOT, "SPOOFED"),
    Case("isolated", "from_network", frame(IP(src=WORLD, dst=POD), UDP()), SHOT, "POLICY_INGRESS", isolated(1)),
    Case("closed", "from_network", frame(IP(src=WORLD, dst=POD), UDP()), SHOT, "CLOSED", closed),
    Case("last hop", "from_network", frame(IP(src=WORLD, dst=POD, ttl=1), UDP()), UNSPEC, "FORWARDED", judged=True),
    Case(
        "into a pod",
        "from_network",
        frame(IP(src=REMOTE, dst=POD, ttl=64), TCP(sport=1, dport=2)),
        REDIRECT,
        "FORWARDED",
        out=frame(IP(src=REMOTE, dst=POD, ttl=63), TCP(sport=1, dport=2)),
    ),
    Case(
        "into a pod, checksum on the edge of a carry",
        "from_network",
        frame(IP(src=REMOTE, dst=POD, ttl=64, id=0x4EBB), TCP(sport=1, dport=2)),
        REDIRECT,
        "FORWARDED",
        out=frame(IP(src=REMOTE, dst=POD, ttl=63, id=0x4EBB), TCP(sport=1, dport=2)),
    ),
]


@pytest.mark.parametrize("case", [*FROM_POD, *TO_POD, *FROM_NETWORK], ids=lambda case: f"{case.program}: {case.name}")
def test_packet(node: Loaded, case: Case) -> None:
    run_case(node, case)


def test_a_pod_cannot_complain_about_packets_to_others(node: Loaded) -> None:
    translated_connection(node)
    node.maps["endpoints"].set({"addr": OTHER}, {"identity": 301, "ifindex": IFINDEX, "flags": 1})
    quoted = IPerror(src=POD, dst=NODE) / TCPerror(sport=4000, dport=8080)
    forged = frame(IP(src=OTHER, dst=POD), ICMP(type=3, code=3), quoted)
    assert run_program(node.open_program("from_pod"), bytes(forged))[0] == SHOT
    assert node.drops() == {"ICMP_UNRELATED": 1}


def test_lost_entry_of_a_translated_connection_comes_back(node: Loaded) -> None:
    """The backend's packet, which opens an entry of its own, does not stand in the way."""
    translated_connection(node)
    for name in ("connections", "connections_new"):
        node.maps[name].clear()
    reply = bytes(frame(IP(src=NODE, dst=POD), TCP(sport=8080, dport=4000, flags="A")))
    assert Ether(run_program(node.open_program("to_pod"), reply)[1])[IP].src == NODE
    run_program(node.open_program("from_pod"), bytes(frame(IP(src=POD, dst=VIP), TCP(sport=4000, dport=80, flags="A"))))
    assert Ether(run_program(node.open_program("to_pod"), reply)[1])[IP].src == VIP


def test_a_connection_stays_with_a_backend_that_gets_no_new_ones(node: Loaded) -> None:
    translated_connection(node)
    program = node.open_program("from_pod")
    node.maps["backends"].set({"service": 5, "slot": 0}, {"addr": WORLD, "port": 8080})
    for sport, flags, backend in ((4000, "A", NODE), (4001, "S", WORLD), (4000, "S", WORLD)):
        packet = frame(IP(src=POD, dst=VIP), TCP(sport=sport, dport=80, flags=flags))
        assert Ether(run_program(program, bytes(packet))[1])[IP].dst == backend


def test_checksums_of_every_ttl(node: Loaded) -> None:
    """The incremental update agrees with a full one for all first values."""
    program = node.open_program("from_network")
    for ttl in range(2, 256):
        packet = frame(IP(src=REMOTE, dst=POD, ttl=ttl), TCP(sport=1, dport=2))
        expected = frame(IP(src=REMOTE, dst=POD, ttl=ttl - 1), TCP(sport=1, dport=2))
        assert run_program(program, bytes(packet))[1] == bytes(expected)


def test_two_services_with_one_backend_clash_on_one_source_port(node: Loaded) -> None:
    service(node)
    program = node.open_program("from_pod")
    node.maps["frontends"].set({"addr": VIP, "port": 81, "protocol": 6}, {"service": 5})
    assert run_program(program, bytes(frame(SYN)))[0] == UNSPEC
    assert run_program(program, bytes(frame(IP(src=POD, dst=VIP), TCP(sport=4000, dport=81))))[0] == SHOT
    assert node.drops() == {"TRANSLATION_CLASH": 1}
    # With a second backend there is a way out.
    node.maps["backends"].set({"service": 5, "slot": 1}, {"addr": WORLD, "port": 8080})
    node.maps["services"].set({"value": 5}, {"count": 2})
    action, out, _ = run_program(program, bytes(frame(IP(src=POD, dst=VIP), TCP(sport=4000, dport=81))))
    assert (action, Ether(out)[IP].dst) == (UNSPEC, WORLD)


def handshake(node: Loaded, addressed: str, port: int) -> None:
    """POD:4000 opens a connection to NODE:8080 by that address."""
    out, back = node.open_program("from_pod"), node.open_program("to_pod")
    for flags in ("S", "A"):
        packet = frame(IP(src=POD, dst=addressed), TCP(sport=4000, dport=port, flags=flags))
        assert run_program(out, bytes(packet))[0] == UNSPEC
        if flags == "S":
            assert reply_source(node, "SA") == (addressed, port)
    assert run_program(back, bytes(frame(IP(src=NODE, dst=POD), TCP(sport=8080, dport=4000, flags="PA"))))[0] == UNSPEC


def reply_source(node: Loaded, flags: str = "A") -> tuple[str, int]:
    """From what address POD:4000 gets a packet that NODE:8080 sends."""
    packet = frame(IP(src=NODE, dst=POD), TCP(sport=8080, dport=4000, flags=flags))
    reply = Ether(run_program(node.open_program("to_pod"), bytes(packet))[1])
    return reply[IP].src, reply[TCP].sport


WAYS = {"service": (VIP, 80), "another": (VIP, 81), "backend": (NODE, 8080)}


@pytest.mark.parametrize(("first", "second"), list(permutations(WAYS, 2)))
def test_no_connection_is_opened_beside_one_that_lives(node: Loaded, first: str, second: str) -> None:
    """On the wire both would be one. Once the first is over the other may, whatever ways were known before."""
    service(node)
    node.maps["frontends"].set({"addr": VIP, "port": 81, "protocol": 6}, {"service": 5})
    out = node.open_program("from_pod")
    for _ in range(2):
        for one, other in ((first, second), (second, first)):
            address, port = WAYS[one]
            handshake(node, address, port)
            beside = frame(IP(src=POD, dst=WAYS[other][0]), TCP(sport=4000, dport=WAYS[other][1], flags="S"))
            assert run_program(out, bytes(beside))[0] == SHOT
            assert reply_source(node) == (address, port)
            run_program(out, bytes(frame(IP(src=POD, dst=address), TCP(sport=4000, dport=port, flags="FA"))))
            reply_source(node, "FA")
    assert node.drops() == {"TRANSLATION_CLASH": 4}


@pytest.mark.parametrize(("silent", "action"), [(290, SHOT), (310, UNSPEC)])
def test_a_connection_that_has_been_silent_gives_way(node: Loaded, silent: int, action: int) -> None:
    """Its client may have gone without a word, and another one have its address."""
    service(node)
    out = node.open_program("from_pod")
    handshake(node, VIP, 80)
    ((key, value),) = node.maps["connections"].items()
    node.maps["connections"].set(key, {**value, "expires": value["expires"] - silent})
    beside = bytes(frame(IP(src=POD, dst=NODE), TCP(sport=4000, dport=8080, flags="S")))
    assert run_program(out, beside)[0] == action


def test_a_backend_of_before_that_the_client_speaks_to_by_now_is_not_taken(node: Loaded) -> None:
    """Its port has come back to the Service, while a connection of that port to the same backend lives."""
    service(node)
    out = node.open_program("from_pod")
    handshake(node, VIP, 80)
    run_program(out, bytes(frame(IP(src=POD, dst=VIP), TCP(sport=4000, dport=80, flags="FA"))))
    reply_source(node, "FA")
    handshake(node, NODE, 8080)
    node.maps["backends"].set({"service": 5, "slot": 1}, {"addr": WORLD, "port": 8080})
    node.maps["services"].set({"value": 5}, {"count": 2})
    action, packet, _ = run_program(out, bytes(frame(IP(src=POD, dst=VIP), TCP(sport=4000, dport=80, flags="S"))))
    assert (action, Ether(packet)[IP].dst) == (UNSPEC, WORLD)
    assert node.drops() == {}


def test_one_socket_towards_a_service_and_its_backend_in_turn(node: Loaded) -> None:
    """Of UDP nothing tells where one connection ends: what was addressed last is what answers."""
    service(node)
    out, back = node.open_program("from_pod"), node.open_program("to_pod")
    reply = bytes(frame(IP(src=NODE, dst=POD), UDP(sport=8080, dport=4000)))
    for addressed, port in ((VIP, 53), (NODE, 8080), (VIP, 53), (NODE, 8080)):
        assert run_program(out, bytes(frame(IP(src=POD, dst=addressed), UDP(sport=4000, dport=port))))[0] == UNSPEC
        answer = Ether(run_program(back, reply)[1])
        assert (answer[IP].src, answer[UDP].sport) == (addressed, port)
    assert node.drops() == {}


def test_echo_requests_of_both_sides_are_two_connections(node: Loaded) -> None:
    """With equal identifiers; the one that is allowed opens no way for the other."""
    isolated(1)(node)
    out, back = node.open_program("from_pod"), node.open_program("from_network")
    node.maps["endpoints"].set({"addr": NODE}, {"identity": 302, "flags": 1})
    assert run_program(out, bytes(frame(IP(src=POD, dst=NODE), ICMP(type=8, id=7))))[0] == UNSPEC
    assert run_program(back, bytes(frame(IP(src=NODE, dst=POD), ICMP(type=8, id=7))))[0] == SHOT
    assert run_program(back, bytes(frame(IP(src=NODE, dst=POD), ICMP(type=0, id=7))))[0] == REDIRECT


LIFETIMES = [
    ("handshake", ["S>"], "connections_new", 60),
    ("half open", ["S>", "SA<"], "connections_new", 60),
    ("established", ["S>", "SA<", "A>"], "connections", 86400),
    ("half closed", ["S>", "SA<", "A>", "FA>"], "connections", 3600),
    ("closed", ["S>", "SA<", "A>", "FA>", "FA<"], "connections", 30),
    ("reset", ["S>", "SA<", "A>", "RA<"], "connections", 10),
    ("refused", ["S>", "RA<"], "connections_new", 10),
    ("opened again", ["S>", "SA<", "A>", "RA<", "S>"], "connections", 60),
    ("refused, opened again", ["S>", "RA<", "S>"], "connections_new", 60),
    ("picked up", ["A>", "A<"], "connections", 86400),
]


@pytest.mark.parametrize(("name", "packets", "where", "lifetime"), LIFETIMES, ids=[row[0] for row in LIFETIMES])
def test_life_of_a_tcp_connection(node: Loaded, name: str, packets: list[str], where: str, lifetime: int) -> None:
    out, back = node.open_program("from_pod"), node.open_program("from_network")
    node.maps["endpoints"].set({"addr": NODE}, {"identity": 302, "flags": 1})
    for packet in packets:
        flags, direction = packet[:-1], packet[-1]
        if direction == ">":
            run_program(out, bytes(frame(IP(src=POD, dst=NODE), TCP(sport=4000, dport=80, flags=flags))))
        else:
            run_program(back, bytes(frame(IP(src=NODE, dst=POD), TCP(sport=80, dport=4000, flags=flags))))
    entries = {name: node.maps[name].items() for name in ("connections", "connections_new")}
    assert {name: len(found) for name, found in entries.items()} == {
        "connections": int(where == "connections"),
        "connections_new": int(where == "connections_new"),
    }
    left = entries[where][0][1]["expires"] - time.monotonic()
    assert lifetime - 5 <= left <= lifetime + 1
