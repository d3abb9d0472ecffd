"""Packets whose connection's entry says all (established.h), and entries that the next connection takes over."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw
from tests.bpf.kernel import Fields, Loaded, run_program
from tests.bpf.packets import (
    IFINDEX,
    NODE,
    NODE6,
    NOWHERE,
    OTHER,
    OTHER6,
    POD,
    POD6,
    REDIRECT,
    REMOTE,
    REMOTE6,
    SHOT,
    UNSPEC,
    Case,
    frame,
    isolated,
    run_case,
    set_state,
)

pytestmark = [pytest.mark.root, pytest.mark.parametrize("version", [4, 6])]

ELSEWHERE = 0xFFFFFFFF
REPLIED, NAT, FIN_BOTH, RST, AS_NODE, LIVE = 0x2, 0x4, 0x30, 0x40, 0x80, 0x100
NEW_SECONDS = 60  # of TCP, until it is answered
WHERE = ("connections", "connections_new")
Ends = tuple[str, str]


def pods(version: int) -> Ends:
    return (POD, OTHER) if version == 4 else (POD6, OTHER6)


def from_remote(version: int) -> Ends:
    return (REMOTE, POD) if version == 4 else (REMOTE6, POD6)


def program(name: str, version: int) -> str:
    return name if version == 4 else f"{name}6"


def ip(ends: Ends, **fields: Any) -> Packet:
    if ":" in ends[0]:
        return IPv6(src=ends[0], dst=ends[1], **{{"ttl": "hlim", "len": "plen"}[name]: n for name, n in fields.items()})
    return IP(src=ends[0], dst=ends[1], **fields)


def tcp(ends: Ends, flags: str = "A", **fields: Any) -> Packet:
    return frame(ip(ends, **fields), TCP(sport=4000, dport=8080, flags=flags), Raw(b"x" * 20))


def change(node: Loaded, **fields: object) -> None:
    """Of the one entry."""
    ((where, key, entry),) = [(where, key, entry) for where in WHERE for key, entry in node.maps[where].items()]
    node.maps[where].set(key, {**entry, **fields})


def entry_of(node: Loaded, name: str = "connections") -> Fields:
    ((_, entry),) = node.maps[name].items()
    return entry


def forget_ends(node: Loaded) -> None:
    """The agent's maps say nothing of anybody."""
    node.maps["endpoints"].clear()
    node.maps["subjects"].clear()


def establish(node: Loaded, name: str, opening: Packet) -> None:
    """Opens a connection through the program, and answers it."""
    run_program(node.open_program(name), bytes(opening))
    ((key, entry),) = node.maps["connections_new"].items()
    node.maps["connections_new"].clear()
    node.maps["connections"].set(key, entry)
    change(node, flags=entry["flags"] | REPLIED | LIVE, expires=int(time.monotonic()) + 1000)


def lowered(packet: Packet) -> Packet:
    copy = packet.copy()
    if IP in copy:
        copy[IP].ttl -= 1
        del copy[IP].chksum
    else:
        copy[IPv6].hlim -= 1
    return copy


def passes(node: Loaded, name: str, packet: Packet) -> None:
    run_case(node, Case("passes", name, packet, REDIRECT, out=lowered(packet)))


def refused(node: Loaded, name: str, packet: Packet, reason: str) -> None:
    run_case(node, Case(reason, name, packet, SHOT, reason))


def raise_generation(node: Loaded) -> None:
    node.maps["settings"].set({"value": 0}, {"value": 7})


@pytest.mark.parametrize("way", ["between pods", "from elsewhere"])
def test_the_entry_says_all_until_the_next_generation(both_loaded: list[Loaded], version: int, way: str) -> None:
    node = both_loaded[0]
    set_state(node)
    inside = way == "between pods"
    name = program("from_pod" if inside else "from_network", version)
    ends = pods(version) if inside else from_remote(version)
    establish(node, name, tcp(ends, "S"))
    assert entry_of(node)["ifindex"] == ([IFINDEX, NOWHERE] if inside else [ELSEWHERE, IFINDEX])
    forget_ends(node)
    passes(node, name, tcp(ends))
    assert node.counter("FORWARDED") == 2
    # Then what is known of its ends is asked: nothing.
    raise_generation(node)
    action, _, _ = run_program(node.open_program(name), bytes(tcp(ends)))
    assert action == (SHOT if inside else UNSPEC)
    assert node.drops() == ({"CLOSED": 1} if inside else {})


def test_so_does_that_of_a_connection_that_is_being_opened(both_loaded: list[Loaded], version: int) -> None:
    """It is kept once the handshake is through."""
    node = both_loaded[0]
    set_state(node)
    ends, inwards, outwards = from_remote(version), program("from_network", version), program("from_pod", version)
    run_program(node.open_program(inwards), bytes(tcp(ends, "S")))
    forget_ends(node)
    back = frame(ip((ends[1], ends[0])), TCP(sport=8080, dport=4000, flags="SA"))
    run_case(node, Case("no route here", outwards, back, UNSPEC))
    entry = entry_of(node, "connections_new")
    assert entry["flags"] & (REPLIED | LIVE) == REPLIED
    assert node.maps["connections"].items() == []
    passes(node, inwards, tcp(ends))
    assert entry_of(node) == {**entry, "flags": entry["flags"] | LIVE, "expires": entry_of(node)["expires"]}
    assert entry_of(node)["expires"] > time.monotonic() + NEW_SECONDS
    assert node.maps["connections_new"].items() == []


def test_what_nobody_answers_stays_where_it_is(both_loaded: list[Loaded], version: int) -> None:
    """However many datagrams there are: it takes no place of what lives."""
    node = both_loaded[0]
    set_state(node)
    name = program("from_pod", version)
    datagram = frame(ip(pods(version)), UDP(sport=4000, dport=8080), Raw(b"x" * 20))
    run_program(node.open_program(name), bytes(datagram))
    forget_ends(node)
    for _ in range(3):
        passes(node, name, datagram)
    assert node.maps["connections"].items() == []
    assert entry_of(node, "connections_new")["expires"] <= time.monotonic() + NEW_SECONDS
    raise_generation(node)
    refused(node, name, datagram, "CLOSED")


def test_a_datagram_that_is_answered_is_kept_at_once(both_loaded: list[Loaded], version: int) -> None:
    node = both_loaded[0]
    set_state(node)
    ends = from_remote(version)
    datagram = frame(ip(ends), UDP(sport=4000, dport=8080), Raw(b"x" * 20))
    run_program(node.open_program(program("from_network", version)), bytes(datagram))
    forget_ends(node)
    answer = frame(ip((ends[1], ends[0])), UDP(sport=8080, dport=4000), Raw(b"x" * 20))
    run_case(node, Case("no route here", program("from_pod", version), answer, UNSPEC))
    assert entry_of(node)["flags"] & (REPLIED | LIVE) == REPLIED | LIVE
    assert node.maps["connections_new"].items() == []


def test_what_the_policy_forbids_by_now_ends_with_the_generation(both_loaded: list[Loaded], version: int) -> None:
    node = both_loaded[0]
    set_state(node)
    name, packet = program("from_pod", version), tcp(pods(version))
    establish(node, name, tcp(pods(version), "S"))
    isolated(2)(node)
    passes(node, name, packet)
    raise_generation(node)
    refused(node, name, packet, "POLICY_EGRESS")
    isolated(0)(node)
    passes(node, name, packet)
    assert entry_of(node)["generation"] == 7


def test_nobody_else_sends_in_its_name(both_loaded: list[Loaded], version: int) -> None:
    """Neither another pod of the node, nor the network."""
    node = both_loaded[0]
    ends = pods(version)
    set_state(node)
    establish(node, program("from_pod", version), tcp(ends, "S"))
    refused(node, program("from_network", version), tcp(ends), "SPOOFED")
    node.maps["endpoints"].set({"addr": ends[0]}, {"identity": 300, "ifindex": NOWHERE, "flags": 1})
    change(node, ifindex=[NOWHERE, NOWHERE])
    refused(node, program("from_pod", version), tcp(ends), "SPOOFED")


def test_a_pod_that_has_moved_is_found_at_its_new_device(both_loaded: list[Loaded], version: int) -> None:
    node = both_loaded[0]
    ends = pods(version)
    set_state(node)
    establish(node, program("from_pod", version), tcp(ends, "S"))
    node.maps["endpoints"].set({"addr": ends[1]}, {"identity": 301, "ifindex": NOWHERE - 1, "flags": 1})
    raise_generation(node)
    passes(node, program("from_pod", version), tcp(ends))
    assert entry_of(node)["ifindex"] == [IFINDEX, NOWHERE - 1]


def test_packets_of_the_own_node_are_left_to_the_stack(both_loaded: list[Loaded], version: int) -> None:
    node = both_loaded[0]
    set_state(node)
    ends = (POD, NODE) if version == 4 else (POD6, NODE6)
    establish(node, program("from_pod", version), tcp(ends, "S"))
    assert entry_of(node)["ifindex"] == [0, 0]
    run_case(node, Case("own node", program("from_pod", version), tcp(ends), UNSPEC))


@pytest.mark.parametrize("flag", [NAT, AS_NODE])
def test_what_is_translated_takes_the_long_way(both_loaded: list[Loaded], version: int, flag: int) -> None:
    node = both_loaded[0]
    set_state(node)
    name, packet = program("from_pod", version), tcp(pods(version))
    establish(node, name, tcp(pods(version), "S"))
    change(node, flags=entry_of(node)["flags"] | flag)
    node.maps["endpoints"].clear()
    refused(node, name, packet, "CLOSED")


def unusual(ends: Ends) -> dict[str, Packet]:
    transport = TCP(sport=4000, dport=8080, flags="A")
    v6 = ":" in ends[0]
    found: dict[str, Packet] = {f"TCP {flags}": tcp(ends, flags) for flags in ("A", "PA", "FA", "R", "RA", "S", "SA")}
    found |= {
        "at the end of its way": tcp(ends, ttl=1),
        "longer than it is": tcp(ends, len=200),
        "shorter than its headers": tcp(ends, len=10 if v6 else 30),
        "with bytes behind it": frame(ip(ends, len=40 if v6 else 60), transport, Raw(b"x" * 40)),
        "TCP cut short": frame(ip(ends), Raw(bytes(transport)[:12])),
        "UDP without content": frame(ip(ends), UDP(sport=4000, dport=8080)),
        "UDP": frame(ip(ends), UDP(sport=4000, dport=8080), Raw(b"x" * 20)),
        "UDP cut short": frame(ip(ends), Raw(b"\x0f\xa0\x1f\x90\x00")),
        "more than any device takes": frame(ip(ends), transport, Raw(b"x" * 3000)),
        "class of traffic": frame(
            IPv6(src=ends[0], dst=ends[1], tc=0xB8) if v6 else IP(src=ends[0], dst=ends[1], tos=0xB8), transport
        ),
    }
    if v6:
        found["options"] = frame(ip(ends), IPv6ExtHdrDestOpt(), transport)
        found["first fragment"] = frame(ip(ends), IPv6ExtHdrFragment(id=9, m=1), transport, Raw(b"x" * 20))
        found["later fragment"] = frame(ip(ends), IPv6ExtHdrFragment(id=9, offset=5, nh=6), Raw(bytes(transport)))
    else:
        found["options"] = frame(IP(src=ends[0], dst=ends[1], options=[IPOption_NOP()] * 4), transport)
        found["first fragment"] = frame(IP(src=ends[0], dst=ends[1], id=9, flags="MF"), transport, Raw(b"x" * 20))
        found["later fragment"] = frame(IP(src=ends[0], dst=ends[1], id=9, frag=5, proto=6), Raw(bytes(transport)))
    return found


@pytest.mark.parametrize("way", ["between pods", "from elsewhere"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("state", ["known", "answered", "asked"])
def test_the_long_way_comes_to_the_same(
    both_loaded: list[Loaded], version: int, way: str, protocol: str, state: str
) -> None:
    """For every packet: verdict, content, mark, counters, and what is known of connection and fragments afterwards."""
    node = both_loaded[0]
    inside = way == "between pods"
    name = program("from_pod" if inside else "from_network", version)
    ends = pods(version) if inside else from_remote(version)
    opening = tcp(ends, "S") if protocol == "TCP" else unusual(ends)["UDP"]

    def outcome(packet: Packet, prepare: Callable[[Loaded], None]) -> object:
        set_state(node)
        if state == "known":
            establish(node, name, opening)
        else:
            run_program(node.open_program(name), bytes(opening))
        if state == "answered":
            change(node, flags=entry_of(node, "connections_new")["flags"] | REPLIED)
        prepare(node)
        before = {reason: node.counter(reason) for reason in node.reasons}
        action, out, mark = run_program(node.open_program(name), bytes(packet))
        counted = {reason: node.counter(reason) - count for reason, count in before.items()}
        kept = [(where, entry) for where in WHERE for _, entry in node.maps[where].items()]
        entries = [(where, {k: entry[k] for k in entry.keys() - {"ifindex", "expires"}}) for where, entry in kept]
        seconds = [round((entry["expires"] - time.monotonic()) / 10) for _, entry in kept]
        fragments = [value for _, value in node.maps["fragments"].items()]
        return action, bytes(out), mark, counted, entries, seconds, fragments

    def long_way(node: Loaded) -> None:
        change(node, ifindex=[0, 0])

    for title, packet in unusual(ends).items():
        assert (title, outcome(packet, lambda _: None)) == (title, outcome(packet, long_way))


@pytest.mark.parametrize("over", [FIN_BOTH, RST])
def test_the_next_connection_takes_the_entry_of_one_that_is_over(
    both_loaded: list[Loaded], version: int, over: int
) -> None:
    """So it costs no place of a live one, and is no live one before it is answered."""
    node = both_loaded[0]
    set_state(node)
    name, ends = program("from_pod", version), pods(version)
    establish(node, name, tcp(ends, "S"))
    swapped = entry_of(node)["flags"] & 1
    change(node, flags=swapped | REPLIED | LIVE | over)
    # What may not be opened leaves it as it is.
    isolated(2)(node)
    refused(node, name, tcp(ends, "S"), "POLICY_EGRESS")
    assert entry_of(node)["flags"] == swapped | REPLIED | LIVE | over
    isolated(0)(node)
    run_case(node, Case("opens", name, tcp(ends, "S"), REDIRECT, out=lowered(tcp(ends, "S"))))
    assert node.maps["connections_new"].items() == []
    assert entry_of(node)["flags"] == swapped
    assert entry_of(node)["expires"] <= time.monotonic() + NEW_SECONDS
    # Once answered, it lives as long as any.
    change(node, flags=swapped | REPLIED)
    passes(node, name, tcp(ends))
    assert entry_of(node)["flags"] == swapped | REPLIED | LIVE
    assert entry_of(node)["expires"] > time.monotonic() + NEW_SECONDS


def test_the_other_side_may_open_the_next_one(both_loaded: list[Loaded], version: int) -> None:
    """Under its own rules: it is not the answer to the one that is over."""
    node = both_loaded[0]
    set_state(node)
    ends = from_remote(version)
    establish(node, program("from_network", version), tcp(ends, "S"))
    change(node, expires=1)
    back = frame(ip((ends[1], ends[0])), TCP(sport=8080, dport=4000, flags="A"))
    isolated(2)(node)
    refused(node, program("from_pod", version), back, "POLICY_EGRESS")
    isolated(0)(node)
    run_program(node.open_program(program("from_pod", version)), bytes(back))
    entry = entry_of(node)
    assert entry["ifindex"] == [IFINDEX, ELSEWHERE]
    assert not entry["flags"] & (REPLIED | LIVE)
