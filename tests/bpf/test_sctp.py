"""SCTP to Services: real INIT and INIT ACK, with checksums that an independent implementation agrees with."""

import random
import re
import socket
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkData, SCTPChunkInit, SCTPChunkInitAck
from scapy.packet import Packet, Raw
from tests.bpf.families import family
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.packets import NODE, NODE6, POD, POD6, SHOT, UNSPEC, VIP, VIP6, WORLD, WORLD6, frame, set_state
from tests.bpf.topology import Cluster, Namespace, Pod
from tests.bpf.traffic import PORT, no_drops, pod, publish, serve, vip

from node_agent.loader.source import find_source

pytestmark = pytest.mark.root

NUMBER = 132
INIT = SCTPChunkInit(init_tag=7, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=1)
INIT_ACK = SCTPChunkInitAck(init_tag=8, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=2)


@dataclass(frozen=True)
class Family:
    """The programs of one family, and the addresses that packets go between."""

    suffix: str
    ip: type[Packet]
    pod: str
    vip: str
    node: str
    elsewhere: str

    def sent(self, destination: str, dport: int, *content: Packet, sport: int = 4000) -> Packet:
        return frame(self.ip(src=self.pod, dst=destination), SCTP(sport=sport, dport=dport), *content)

    def answered(self, source: str, sport: int, *content: Packet) -> Packet:
        return frame(self.ip(src=source, dst=self.pod), SCTP(sport=sport, dport=4000), *content)


IPV4 = Family("", IP, POD, VIP, NODE, WORLD)
IPV6 = Family("6", IPv6, POD6, VIP6, NODE6, WORLD6)


@pytest.fixture
def node(both_loaded: list[Loaded]) -> Loaded:
    """The own node is the backend: port 9000 of VIP leads to its 9001, port 9001 to the same."""
    loaded = both_loaded[0]
    set_state(loaded)
    for addresses, number in ((IPV4, 5), (IPV6, 6)):
        for port in (9000, 9001):
            key = {"addr": addresses.vip, "port": port, "protocol": NUMBER}
            loaded.maps["frontends"].set(key, {"service": number})
        loaded.maps["services"].set({"value": number}, {"count": 1})
        loaded.maps["backends"].set({"service": number, "slot": 0}, {"addr": addresses.node, "port": 9001})
    return loaded


def through(node: Loaded, program: str, packet: Packet) -> tuple[int, Packet]:
    action, out, _ = run_program(node.open_program(program), bytes(packet))
    return action, Ether(out)


@pytest.mark.parametrize("words", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_an_association_with_a_service(node: Loaded, words: Family) -> None:
    out, back = f"from_pod{words.suffix}", f"to_pod{words.suffix}"
    for sent, answer in ((INIT, INIT_ACK), (SCTPChunkData(data=b"x" * 33), SCTPChunkData(data=b"y"))):
        assert through(node, out, words.sent(words.vip, 9000, sent)) == (
            UNSPEC,
            Ether(bytes(words.sent(words.node, 9001, sent))),
        )
        assert through(node, back, words.answered(words.node, 9001, answer)) == (
            UNSPEC,
            Ether(bytes(words.answered(words.vip, 9000, answer))),
        )
    assert node.drops() == {}


@pytest.mark.parametrize("words", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_checksums_of_packets_of_all_lengths(node: Loaded, words: Family) -> None:
    """Each power of two in the length has a factor of its own in the update."""
    chosen = random.Random(1)  # noqa: S311  # repeatable, not secret
    lengths = [*range(70), *(chosen.randrange(70, 3500) for _ in range(60)), *(1 << bit for bit in range(7, 12))]
    for number, length in enumerate(lengths):
        content = Raw(chosen.randbytes(length))
        sport = 1024 + number
        action, found = through(node, f"from_pod{words.suffix}", words.sent(words.vip, 9000, content, sport=sport))
        assert (action, bytes(found)) == (UNSPEC, bytes(words.sent(words.node, 9001, content, sport=sport))), length


def crc_of_zeroes(crc: int, count: int) -> int:
    """CRC32c, bit by bit: what `count` bytes of zero make of it."""
    for _ in range(count * 8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def test_factors_of_lengths_that_no_test_packet_has() -> None:
    """Times x^(8 * n) is what n bytes of zero do; x^0 is the highest bit."""
    text = (find_source() / "include" / "sctp.h").read_text()
    factors = {int(bit): int(power, 16) for bit, power in re.findall(r"CRC_POWER\((\d+), (0x\w+)\)", text)}
    assert factors == {bit: crc_of_zeroes(1 << 31, 1 << bit) for bit in range(16)}


@pytest.mark.parametrize("words", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_an_association_stays_with_its_backend_and_a_new_one_does_not(node: Loaded, words: Family) -> None:
    program, number = f"from_pod{words.suffix}", 5 if words is IPV4 else 6
    through(node, program, words.sent(words.vip, 9000, INIT))
    node.maps["backends"].set({"service": number, "slot": 0}, {"addr": words.elsewhere, "port": 9001})
    for content, target in ((SCTPChunkData(data=b"x"), words.node), (INIT, words.elsewhere)):
        assert through(node, program, words.sent(words.vip, 9000, content))[1][words.ip].dst == target


def test_a_packet_too_short_for_a_checksum(node: Loaded) -> None:
    cut = frame(IP(src=POD, dst=VIP, proto=NUMBER), Raw(bytes(SCTP(sport=4000, dport=9000))[:11]))
    assert through(node, "from_pod", cut)[0] == SHOT
    assert node.drops() == {"MALFORMED": 1}


@pytest.mark.parametrize(("port", "reasons"), [(9000, {"SCTP_FRAGMENT": 1}), (9001, {})])
def test_fragments(node: Loaded, port: int, reasons: dict[str, int]) -> None:
    """A checksum over parts that have not come yet cannot be updated; where no port changes it need not be."""
    whole = bytes(SCTP(sport=4000, dport=port) / SCTPChunkData(data=b"x" * 52))
    first = frame(IP(src=POD, dst=VIP, proto=NUMBER, flags="MF", id=9), Raw(whole[:64]))
    action, found = through(node, "from_pod", first)
    assert node.drops() == reasons
    if not reasons:
        assert (action, found[IP].dst, bytes(found[IP].payload)) == (UNSPEC, NODE, whole[:64])


def open_raw(namespace: Namespace) -> socket.socket:
    opened = namespace.socket(family(), socket.SOCK_RAW, NUMBER)
    opened.settimeout(10)
    return opened


def take(raw: socket.socket, dport: int) -> tuple[SCTP, str]:
    """The next SCTP packet to this port, whose checksum must be right, and who it came from."""
    while True:
        data, peer = raw.recvfrom(4096)
        packet = SCTP(data[20:] if family() == socket.AF_INET else data)
        if packet.dport == dport:
            checksum = packet.chksum
            del packet.chksum
            assert SCTP(bytes(packet)).chksum == checksum
            return packet, peer[0]


def associate(client: Namespace, backend: Pod, address: str, port: int, target: int) -> None:
    """INIT from the client to the Service, INIT ACK from the backend, and both once more as nothing new."""
    with open_raw(client) as asking, open_raw(backend.namespace) as answering:
        for _ in range(2):
            asking.sendto(bytes(SCTP(sport=4321, dport=port) / INIT), (address, 0))
            packet, peer = take(answering, target)
            assert bytes(packet.payload) == bytes(INIT)
            answering.sendto(bytes(SCTP(sport=target, dport=packet.sport) / INIT_ACK), (peer, 0))
            packet, peer = take(asking, 4321)
            assert (packet.sport, peer, bytes(packet.payload)) == (port, address, bytes(INIT_ACK))


@pytest.mark.parametrize("target", ["b", "c"])
def test_init_and_init_ack_of_pods(world: Cluster, target: str) -> None:
    backend = pod(world, target)
    serve(world, 9000, [(backend, 9001)], NUMBER)
    associate(pod(world, "a").namespace, backend, vip(), 9000, 9001)
    no_drops(world)


@pytest.mark.parametrize("target", ["a", "c"])
def test_init_and_init_ack_of_a_client_outside(world: Cluster, target: str) -> None:
    """To a backend on this node, and to one on another, which masquerades the source port too."""
    node, backend = world.nodes[0], pod(world, target)
    publish(node, backend, protocol=NUMBER, port=9001)
    associate(world.outside, backend, node.address, PORT, 9001)
    no_drops(world)
