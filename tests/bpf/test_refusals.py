"""What a client of a Service is told where nobody answers: byte by byte, and by its own kernel."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.packets import POD, REDIRECT, SHOT, VIP, set_state
from tests.bpf.topology import Cluster
from tests.bpf.traffic import UDP as UDP_NUMBER
from tests.bpf.traffic import client, pod, serve, vip, wait_for

pytestmark = pytest.mark.root

HERE, THERE = "02:00:00:00:00:01", "00:00:00:00:00:00"
TO_VIP, FROM_VIP = IP(src=POD, dst=VIP), IP(src=VIP, dst=POD, id=0, ttl=64)


@pytest.fixture
def node(both_loaded: list[Loaded]) -> Loaded:
    """With a Service that has no backends, at VIP port 80."""
    set_state(both_loaded[0])
    without_backends(both_loaded[0])
    return both_loaded[0]


def without_backends(node: Loaded) -> None:
    node.maps["frontends"].set({"addr": VIP}, {})
    for protocol in (6, 17, 132):
        node.maps["frontends"].set({"addr": VIP, "port": 80, "protocol": protocol}, {"service": 5})
    node.maps["services"].set({"value": 5}, {})


def reset(**fields: Any) -> Packet:
    return FROM_VIP / TCP(sport=80, dport=4000, window=0, **fields)


def unreachable(quoted: Packet, size: int = 28) -> Packet:
    """`size`: of the IP packet, as much of it as is quoted."""
    whole = bytes(Ether(src=HERE, dst=THERE) / quoted)[14:]
    return IP(src=VIP, dst=POD, id=0, ttl=64, tos=0xC0) / ICMP(type=3, code=3) / Raw(whole[:size])


SYN = TO_VIP / TCP(sport=4000, dport=80, flags="S", seq=1000)
DATA = TO_VIP / TCP(sport=4000, dport=80, flags="PA", seq=5, ack=777) / Raw(b"x" * 100)
NO_ACK = TO_VIP / TCP(sport=4000, dport=80, flags="F", seq=0xFFFFFFF0, options=[("NOP", None)] * 4) / Raw(b"x" * 20)
DATAGRAM = TO_VIP / UDP(sport=4000, dport=80) / Raw(b"x" * 50)
EMPTY = TO_VIP / UDP(sport=4000, dport=80)
CHUNK = TO_VIP / SCTP(sport=4000, dport=80) / SCTPChunkInit(init_tag=1, a_rwnd=1500, n_out_streams=1, n_in_streams=1)

ANSWERS: dict[str, tuple[Packet, Packet]] = {
    "SYN": (SYN, reset(flags="RA", seq=0, ack=1001)),
    "data": (DATA, reset(flags="R", seq=777, ack=0)),
    "FIN without ACK, over the end of the sequence": (NO_ACK, reset(flags="RA", seq=0, ack=5)),
    "datagram": (DATAGRAM, unreachable(DATAGRAM)),
    "empty datagram": (EMPTY, unreachable(EMPTY)),
    "SCTP INIT": (CHUNK, unreachable(CHUNK, 32)),
}


def run(node: Loaded, packet: Packet) -> tuple[int, bytes]:
    action, out, _ = run_program(node.open_program("from_pod"), bytes(Ether(src=HERE, dst=THERE) / packet))
    return action, out


@pytest.mark.parametrize(("packet", "answer"), ANSWERS.values(), ids=ANSWERS.keys())
def test_answers(node: Loaded, packet: Packet, answer: Packet) -> None:
    action, out = run(node, packet)
    assert Ether(out).show2(dump=True) == Ether(bytes(Ether(src=THERE, dst=HERE) / answer)).show2(dump=True)
    assert out == bytes(Ether(src=THERE, dst=HERE) / answer)
    assert (action, node.drops()) == (REDIRECT, {"NO_BACKEND": 1})


def test_a_port_that_no_service_has(node: Loaded) -> None:
    packet = TO_VIP / UDP(sport=4000, dport=81)
    action, out = run(node, packet)
    assert out == bytes(Ether(src=THERE, dst=HERE) / unreachable(packet))
    assert (action, node.drops()) == (REDIRECT, {"NO_SERVICE_PORT": 1})


def to_open_address(node: Loaded) -> None:
    node.maps["frontends"].set({"addr": VIP}, {"flags": 1})


def with_policy_local(node: Loaded) -> None:
    node.maps["services"].set({"value": 5}, {"flags": 1})


def nothing(_: Loaded) -> None: ...


SILENT: dict[str, tuple[Callable[[Loaded], None], Packet, str]] = {
    "a reset": (nothing, TO_VIP / TCP(sport=4000, dport=80, flags="R"), "NO_BACKEND"),
    "a ping": (nothing, TO_VIP / ICMP(), "NO_SERVICE_PORT"),
    "an error would have to quote options": (
        nothing,
        IP(src=POD, dst=VIP, options=[IPOption_NOP()] * 4) / UDP(sport=4000, dport=80),
        "NO_BACKEND",
    ),
    "the policy is Local": (with_policy_local, SYN, "NO_LOCAL_BACKEND"),
}


@pytest.mark.parametrize(("change", "packet", "reason"), SILENT.values(), ids=SILENT.keys())
def test_silence(node: Loaded, change: Callable[[Loaded], None], packet: Packet, reason: str) -> None:
    change(node)
    assert run(node, packet)[0] == SHOT
    assert node.drops() == {reason: 1}


def test_other_ports_of_external_ips_and_nodes_are_left_alone(node: Loaded) -> None:
    packet = TO_VIP / TCP(sport=4000, dport=81)
    to_open_address(node)
    assert run(node, packet)[0] != SHOT
    node.maps["frontends"].set({"addr": VIP}, {})
    node.maps["endpoints"].set({"addr": VIP}, {"identity": 2, "flags": 4})
    assert run(node, packet)[0] != SHOT
    assert node.drops() == {}


@pytest.mark.parametrize("port", [80, 81])
def test_a_client_is_refused_at_once(world: Cluster, port: int) -> None:
    """Without a socket hook: port 80 has no backend, port 81 is no port of the Service."""
    a = pod(world, "a")
    serve(world, 80, [])
    serve(world, 80, [], UDP_NUMBER)
    with client(a) as connection, pytest.raises(ConnectionRefusedError):
        connection.connect((vip(), port))
    with client(a, socket.SOCK_DGRAM) as sender:
        sender.connect((vip(), port))
        sender.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)
    reason = "NO_BACKEND" if port == 80 else "NO_SERVICE_PORT"
    wait_for("both are counted", lambda: world.nodes[0].programs.drops() == {reason: 2})
