"""The frames that programs are tried with, against another implementation of the same RFCs."""

import random

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from tests.fuzz.frames import IPV4, IPV6, Frames, is_summed_up, summed_up

PACKETS = [
    IP() / TCP(),
    IP() / UDP(dport=9) / b"odd",
    IPv6() / TCP(),
    IPv6() / UDP(dport=9),
    IP() / SCTP() / SCTPChunkInit(),
]


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: packet.summary())
def test_checksums_are_those_of_scapy(packet: IP | IPv6) -> None:
    raw = bytes(Ether() / packet)
    assert is_summed_up(raw)
    assert summed_up(raw) == raw
    wrong = bytearray(raw)
    wrong[-1] ^= 1
    assert not is_summed_up(bytes(wrong))
    assert is_summed_up(summed_up(bytes(wrong)))


def test_whole_frames_are_whole() -> None:
    frames = Frames(random.Random(1), ["10.0.0.1"], ["fd00::1"], [80])  # noqa: S311
    made = [frames.frame(kind) for kind in (IPV4, IPV6) for _ in range(300)]
    assert all(map(is_summed_up, made))
    assert sum(is_summed_up(frames.mutated(frame)) for frame in made) in range(200, 500), "some stay so, some do not"
