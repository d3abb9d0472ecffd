"""Packets by chance through the programs: whole ones, ones that are almost right, and what is left of them."""

import random
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bpf.kernel import Loaded, run_program
from tests.bpf.packets import (
    IFINDEX,
    JUDGED,
    NODE,
    NODE6,
    OTHER,
    OTHER6,
    POD,
    POD6,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SHOT,
    UNSPEC,
    VIP,
    VIP6,
    WORLD,
    WORLD6,
    service,
    set_state,
)
from tests.fuzz.frames import ETHERNET, IPV4, IPV6, Frames, is_summed_up
from tests.fuzz.limits import fuzzing

pytestmark = [pytest.mark.root, pytest.mark.fuzz]

ADDRESSES = {IPV4: (POD, OTHER, REMOTE, NODE, WORLD, VIP), IPV6: (POD6, OTHER6, REMOTE6, NODE6, WORLD6, VIP6)}
PORTS = (80, 53, 8080, 4000, 4000, 4001)
HOOKS = ("from_pod", "to_pod", "from_network", "to_network")
PACKETS = 10  # of an example, each finding what those before have left
# With these a packet becomes the answer to its sender, and goes back.
ANSWERED = {"NO_BACKEND", "NO_SERVICE_PORT", "TTL", "TOO_BIG"}
PASSED_ON = {"FORWARDED", "AUDITED_INGRESS", "AUDITED_EGRESS"}
DEVICES = (0, 2)  # that a packet came in by: 0 is the node's own


class Kernel:
    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        names = [f"{hook}{family}" for hook in HOOKS for family in ("", "6")]
        self._programs = {name: loaded.open_program(name) for name in names}

    def run(self, name: str, frame: bytes, ingress: int, mark: int = 0) -> tuple[int, bytes, int, set[str]]:
        """Action, packet and mark afterwards, and why it was dropped. Checks what holds for every packet."""
        before = self._counters()
        action, out, mark = run_program(self._programs[name], frame, ingress_ifindex=ingress, mark=mark)
        changes = {reason: count - before[reason] for reason, count in self._counters().items()}
        reasons = {reason: count for reason, count in changes.items() if count}
        dropped = {reason for reason in reasons if reason not in PASSED_ON}
        assert action in (UNSPEC, SHOT, REDIRECT)
        assert all(count == 1 for reason, count in reasons.items() if reason in dropped | {"FORWARDED"}), reasons
        if action == SHOT:
            assert len(dropped) == 1, f"dropped for {dropped or 'no reason'}"
        else:
            assert dropped <= ANSWERED, f"dropped for {dropped}, and let through"
            assert not dropped or action == REDIRECT
            if is_summed_up(frame):
                assert is_summed_up(out), f"its checksums held before: {out.hex()}"
        return action, out, mark, dropped

    def _counters(self) -> dict[str, int]:
        return {name: self.loaded.counter(name) for name in self.loaded.reasons}


@pytest.fixture(scope="module")
def kernel(both_loaded: list[Loaded]) -> Iterator[Kernel]:
    yield Kernel(both_loaded[0])
    both_loaded[0].clear()


def open_state(loaded: Loaded, choice: random.Random) -> None:
    """Services with a backend that is the node, or a pod, or none; now and then one end of the pod's is isolated."""
    set_state(loaded)
    service(loaded)
    loaded.maps["devices"].set({"value": IFINDEX}, {"flags": 1, "addr": NODE, "addr6": NODE6})
    ipv4, ipv6 = (NODE, POD, REMOTE), (NODE6, POD6, REMOTE6)
    for number, backends in ((5, ipv4), (6, ipv4), (7, ipv6), (8, ipv6)):
        loaded.maps["services"].set({"value": number}, {"count": choice.choice((0, 1, 1))})
        loaded.maps["backends"].set({"service": number, "slot": 0}, {"addr": choice.choice(backends), "port": 8080})
    loaded.maps["subjects"].set({"value": 300}, {"policy": 300, "flags": choice.choice((0, 0, 0, 1, 2, 8 | 3))})


def program(hook: str, frame: bytes, choice: random.Random) -> str:
    """That of the frame's family, and seldom the other one."""
    family = "6" if frame[12:14] == b"\x86\xdd" else ""
    return hook + (family if choice.random() < 0.95 else "" if family else "6")


def begin(kernel: Kernel, seed: int) -> tuple[random.Random, Frames]:
    choice = random.Random(seed)  # noqa: S311  # to be repeated, not to be secret
    open_state(kernel.loaded, choice)
    return choice, Frames(choice, ADDRESSES[IPV4], ADDRESSES[IPV6], PORTS)


@fuzzing(250)
@given(st.integers(0, 2**64))
def test_any_packets_through_any_program(kernel: Kernel, seed: int) -> None:
    choice, frames = begin(kernel, seed)
    for _ in range(PACKETS):
        kind = choice.choice((IPV4, IPV6))
        source = choice.choice((None, None, *ADDRESSES[kind][:1]))
        frame = frames.mutated(frames.frame(kind, source))
        mark = choice.choice((0, 0, JUDGED, 0xFFFFFFFF))
        kernel.run(program(choice.choice(HOOKS), frame, choice), frame, choice.choice(DEVICES), mark)


@fuzzing(150)
@given(st.integers(0, 2**64))
def test_whole_packets_there_and_back(kernel: Kernel, seed: int) -> None:
    """What comes out goes in again from the other side, so that connections are answered, translated and ended."""
    choice, frames = begin(kernel, seed)
    kind = choice.choice((IPV4, IPV6))
    sent = [frames.frame(kind, ADDRESSES[kind][0], ADDRESSES[kind][choice.choice((3, 5))])]
    for _ in range(PACKETS):
        frame = choice.choice(sent)
        hook = choice.choice(HOOKS)
        action, out, _, _ = kernel.run(program(hook, frame, choice), frame, choice.choice(DEVICES))
        if action != SHOT:
            sent.append(out)
        if len(back := reversed_ends(out)) > ETHERNET:
            sent.append(back)
        sent.append(frames.mutated(frame))


def reversed_ends(frame: bytes) -> bytes:
    """The packet with source and destination exchanged, addresses and ports, which changes no checksum but SCTP's."""
    at, size = (ETHERNET + 8, 16) if frame[12:14] == b"\x86\xdd" else (ETHERNET + 12, 4)
    l4 = at + 2 * size if size == 16 else ETHERNET + (frame[ETHERNET] & 15) * 4
    made = bytearray(frame)
    for place, length in ((at, size), (l4, 2)):
        one, other = made[place : place + length], made[place + length : place + 2 * length]
        made[place : place + 2 * length] = other + one
    return bytes(made)


@fuzzing(250)
@given(st.integers(0, 2**64))
def test_nothing_gets_through_a_policy_that_isolates(kernel: Kernel, seed: int) -> None:
    """Neither out of the pod nor into it, whatever came before; but from itself, and for neighbour discovery."""
    choice, frames = begin(kernel, seed)
    kernel.loaded.maps["subjects"].set({"value": 300}, {"policy": 300, "flags": 3})
    for _ in range(PACKETS):
        kind = choice.choice((IPV4, IPV6))
        pod = ADDRESSES[kind][0]
        hook = choice.choice(HOOKS[:3])
        ends = (pod, None) if hook == "from_pod" else (None, pod)
        frame = frames.mutated(frames.frame(kind, *ends))
        name = f"{hook}{'6' if kind == IPV6 else ''}"
        action, _, mark, dropped = kernel.run(name, frame, DEVICES[1])
        if action == SHOT or dropped or is_of_no_policy(frame, kind) or not is_foreign(frame, kind, hook):
            continue
        if hook == "from_network":
            # What it does not judge goes to the stack without our mark, and to to_pod if it is the pod's.
            assert action == UNSPEC
            assert mark & 0x00F00000 != JUDGED
        else:
            raise AssertionError(f"{name} let it through")


def is_foreign(frame: bytes, kind: int, hook: str) -> bool:
    """Whether it is still from the pod to somebody else, or to it from somebody else: it always reaches itself."""
    at, size = (ETHERNET + 12, 4) if kind == IPV4 else (ETHERNET + 8, 16)
    ends = frame[at : at + size], frame[at + size : at + 2 * size]
    return ends[hook != "from_pod"] == ip_address(ADDRESSES[kind][0]).packed and ends[0] != ends[1]


def is_of_no_policy(frame: bytes, kind: int) -> bool:
    """Whether the frame is of another kind than the program, or keeps the link alive (RFC 4861, RFC 3810)."""
    if frame[12:14] != kind.to_bytes(2, "big"):
        return True
    packet = frame[ETHERNET:]
    if kind == IPV4 or len(packet) < 41:
        return False
    if packet[6] == 58:
        return packet[7] == 255 and 133 <= packet[40] <= 137
    return packet[6] == 0 and packet[40] == 58 and packet[24:26] == b"\xff\x02"
