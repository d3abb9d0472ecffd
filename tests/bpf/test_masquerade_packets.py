"""Tables of packets of pods that speak as the node: each once through the programs, with checksums computed anew."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPerror6, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.packets import IFINDEX, JUDGED, NODE, NODE6, POD, POD6, REDIRECT, SHOT, UNSPEC, WORLD, WORLD6, frame
from tests.bpf.packets import set_state as set_plain_state

pytestmark = pytest.mark.root

PORT = 5000  # the only one there is
INIT = SCTPChunkInit(init_tag=7)


@dataclass(frozen=True)
class Family:
    suffix: str
    pod: str
    node: str
    world: str

    def sent(self, source: str, ttl: int = 64) -> Packet:
        if self.suffix:
            return IPv6(src=source, dst=self.world, hlim=ttl)
        return IP(src=source, dst=self.world, ttl=ttl)

    def came(self, destination: str, ttl: int = 64) -> Packet:
        if self.suffix:
            return IPv6(src=self.world, dst=destination, hlim=ttl)
        return IP(src=self.world, dst=destination, ttl=ttl)

    def echo(self, identifier: int, reply: bool = False) -> Packet:
        if self.suffix:
            return (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=identifier, seq=1)
        return ICMP(type=0 if reply else 8, id=identifier, seq=1)

    def closed_port(self, source: str, destination: str, sport: int, dport: int) -> Packet:
        """That nobody listens there, about a datagram between these ends."""
        about = UDPerror(sport=sport, dport=dport, chksum=1)
        if self.suffix:
            return ICMPv6DestUnreach(code=4) / IPerror6(src=source, dst=destination, plen=8) / about
        return ICMP(type=3, code=3) / IPerror(src=source, dst=destination) / about


IPV4, IPV6 = Family("", POD, NODE, WORLD), Family("6", POD6, NODE6, WORLD6)


@pytest.fixture(params=[IPV4, IPV6], ids=["ipv4", "ipv6"])
def words(request: pytest.FixtureRequest) -> Family:
    family: Family = request.param
    return family


@pytest.fixture
def node(both_loaded: list[Loaded]) -> Loaded:
    """The device of the packets is POD's, and the uplink as well."""
    loaded = both_loaded[0]
    set_plain_state(loaded)
    for index, flags in ((0, 2), (IFINDEX, 1)):
        loaded.maps["devices"].set({"value": index}, {"flags": flags, "addr": NODE, "addr6": NODE6})
    loaded.set_ports((PORT, PORT))
    return loaded


def leaves(node: Loaded, words: Family, packet: Packet) -> tuple[int, bytes]:
    """First judged by from_pod, which finds no way here and leaves it to the stack; then at the uplink."""
    assert run_program(node.open_program(f"from_pod{words.suffix}"), bytes(packet)) == (UNSPEC, bytes(packet), 0)
    forwarded = {"mark": JUDGED, "ingress_ifindex": 5}
    return run_program(node.open_program(f"to_network{words.suffix}"), bytes(packet), **forwarded)[:2]


def comes(node: Loaded, words: Family, packet: Packet) -> tuple[int, bytes]:
    return run_program(node.open_program(f"from_network{words.suffix}"), bytes(packet))[:2]


Content = Callable[[int], Packet]
CONTENTS: list[tuple[str, Content, Content]] = [
    ("TCP", lambda port: TCP(sport=port, dport=80, flags="S"), lambda port: TCP(sport=80, dport=port, flags="SA")),
    ("UDP", lambda port: UDP(sport=port, dport=53) / Raw(b"odd"), lambda port: UDP(sport=53, dport=port) / Raw(b"a")),
    ("SCTP", lambda port: SCTP(sport=port, dport=9) / INIT, lambda port: SCTP(sport=9, dport=port) / Raw(b"1234")),
]


@pytest.mark.parametrize("row", CONTENTS, ids=[row[0] for row in CONTENTS])
def test_there_and_back(node: Loaded, words: Family, row: tuple[str, Content, Content]) -> None:
    _, out, back = row
    expected = frame(words.sent(words.node), out(PORT))
    assert leaves(node, words, frame(words.sent(words.pod), out(4000))) == (UNSPEC, bytes(expected))
    reply = frame(words.came(words.pod, ttl=63), back(4000))
    assert comes(node, words, frame(words.came(words.node), back(PORT))) == (REDIRECT, bytes(reply))
    assert node.drops() == {}


def test_echo(node: Loaded, words: Family) -> None:
    expected = frame(words.sent(words.node), words.echo(PORT))
    assert leaves(node, words, frame(words.sent(words.pod), words.echo(77))) == (UNSPEC, bytes(expected))
    reply = frame(words.came(words.pod, ttl=63), words.echo(77, reply=True))
    assert comes(node, words, frame(words.came(words.node), words.echo(PORT, reply=True))) == (REDIRECT, bytes(reply))
    others = frame(words.came(words.node), words.echo(PORT + 1, reply=True))
    assert comes(node, words, others) == (UNSPEC, bytes(others))


def test_a_datagram_without_a_checksum(node: Loaded) -> None:
    sent, expected = (
        frame(IPV4.sent(source), UDP(sport=port, dport=53, chksum=0), Raw(b"odd"))
        for source, port in ((POD, 4000), (NODE, PORT))
    )
    assert leaves(node, IPV4, sent) == (UNSPEC, bytes(expected))


def test_fragments(node: Loaded) -> None:
    """The sum over all of them stands in the first."""
    content = bytes(range(256)) * 5

    def cut(source: str, port: int) -> list[bytes]:
        whole = frame(IP(src=source, dst=WORLD, id=9), UDP(sport=port, dport=53), Raw(content))
        body = bytes(whole[IP].payload)
        return [
            bytes(frame(IP(src=source, dst=WORLD, id=9, proto=17, flags="MF"), Raw(body[:800]))),
            bytes(frame(IP(src=source, dst=WORLD, id=9, proto=17, frag=100), Raw(body[800:]))),
        ]

    for sent, expected in zip(cut(POD, 4000), cut(NODE, PORT), strict=True):
        assert leaves(node, IPV4, Ether(sent)) == (UNSPEC, expected)


def test_an_error_of_the_pods_about_what_came_for_it(node: Loaded, words: Family) -> None:
    leaves(node, words, frame(words.sent(words.pod), UDP(sport=4000, dport=53)))
    comes(node, words, frame(words.came(words.node), UDP(sport=53, dport=PORT)))
    sent = frame(words.sent(words.pod), words.closed_port(words.world, words.pod, 53, 4000))
    expected = frame(words.sent(words.node), words.closed_port(words.world, words.node, 53, PORT))
    action, out = leaves(node, words, sent)
    assert (action, Ether(out)) == (UNSPEC, Ether(bytes(expected)))


def test_an_error_from_outside_about_what_it_sent(node: Loaded, words: Family) -> None:
    leaves(node, words, frame(words.sent(words.pod), UDP(sport=4000, dport=53)))
    sent = frame(words.came(words.node), words.closed_port(words.node, words.world, PORT, 53))
    expected = frame(words.came(words.pod, ttl=63), words.closed_port(words.pod, words.world, 4000, 53))
    action, out = comes(node, words, sent)
    assert (action, Ether(out)) == (REDIRECT, Ether(bytes(expected)))
    assert node.drops() == {}


def test_an_error_about_nobodys_packet_is_the_nodes(node: Loaded, words: Family) -> None:
    about = frame(words.came(words.node), words.closed_port(words.node, words.world, PORT, 53))
    assert comes(node, words, about) == (UNSPEC, bytes(about))


def test_what_nobody_has_judged_is_left_alone(node: Loaded, words: Family) -> None:
    packet = frame(words.sent(words.pod), UDP(sport=4000, dport=53))
    leaves(node, words, packet)
    program = node.open_program(f"to_network{words.suffix}")
    assert run_program(program, bytes(packet), ingress_ifindex=5)[1] == bytes(packet)


def test_an_exempt_range(node: Loaded, words: Family) -> None:
    node.maps["non_masquerade"].set({"prefix": 128, "addr": words.world}, {"value": 1})
    packet = frame(words.sent(words.pod), UDP(sport=4000, dport=53))
    assert leaves(node, words, packet) == (UNSPEC, bytes(packet))


MIDDLES = {"TCP": TCP(sport=4000, dport=80, flags="A"), "SCTP": SCTP(sport=4000, dport=9) / Raw(b"1234")}


@pytest.mark.parametrize("content", MIDDLES.values(), ids=MIDDLES.keys())
def test_a_stream_of_which_nothing_is_known_goes_on_as_it_is(node: Loaded, words: Family, content: Packet) -> None:
    packet = frame(words.sent(words.pod), content)
    assert leaves(node, words, packet) == (UNSPEC, bytes(packet))


def test_a_second_one_finds_no_port(node: Loaded, words: Family) -> None:
    """Towards the same port of the same address; towards another there is room."""
    leaves(node, words, frame(words.sent(words.pod), UDP(sport=4000, dport=53)))
    assert leaves(node, words, frame(words.sent(words.pod), UDP(sport=4001, dport=53)))[0] == SHOT
    assert node.drops() == {"NO_SOURCE_PORT": 1}
    expected = frame(words.sent(words.node), UDP(sport=PORT, dport=54))
    assert leaves(node, words, frame(words.sent(words.pod), UDP(sport=4001, dport=54))) == (UNSPEC, bytes(expected))


@pytest.mark.parametrize("field", ["client", "client_port", "vip", "vip_port"])
def test_a_port_that_is_anothers_by_now(node: Loaded, words: Family, field: str) -> None:
    """The connection's own entry had been lost, and somebody else drew its port."""
    packet = frame(words.sent(words.pod), UDP(sport=4000, dport=53))
    leaves(node, words, packet)
    key, value = node.maps["masqueraded"].items()[0]
    node.maps["masqueraded"].set(key, {**value, field: 4001 if field.endswith("port") else words.node})
    assert leaves(node, words, packet)[0] == SHOT
    assert node.drops() == {"NO_SOURCE_PORT": 1}


def test_an_entry_that_has_run_out(node: Loaded, words: Family) -> None:
    """What comes too late is the node's own; the port is free for the next one."""
    leaves(node, words, frame(words.sent(words.pod), UDP(sport=4000, dport=53)))
    for key, value in node.maps["masqueraded"].items():
        node.maps["masqueraded"].set(key, {**value, "expires": 1})
    reply = frame(words.came(words.node), UDP(sport=53, dport=PORT))
    error = frame(words.came(words.node), words.closed_port(words.node, words.world, PORT, 53))
    for packet in (reply, error):
        assert comes(node, words, packet) == (UNSPEC, bytes(packet))
    expected = frame(words.sent(words.node), UDP(sport=PORT, dport=53))
    assert leaves(node, words, frame(words.sent(words.pod), UDP(sport=4001, dport=53))) == (UNSPEC, bytes(expected))
    assert node.drops() == {}


def test_nobody_from_outside_says_to_be_the_pod(node: Loaded, words: Family) -> None:
    leaves(node, words, frame(words.sent(words.pod), UDP(sport=4000, dport=53)))
    key, value = node.maps["masqueraded"].items()[0]
    node.maps["masqueraded"].set({**key, "backend": words.node}, value)
    spoofed = words.came(words.node)
    spoofed.src = words.node
    assert comes(node, words, frame(spoofed, UDP(sport=53, dport=PORT)))[0] == SHOT
    assert node.drops() == {"SPOOFED": 1}
