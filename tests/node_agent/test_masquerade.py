"""What is not masqueraded, as map entries, and which ports of the node are free for what is."""

from pathlib import Path

import pytest
from tests.node_agent.world import KEYS, Agent, masquerade, node, touched, undecodable

from node_agent.masquerade import free_blocks, parse_ports, read_local_ports, settings_of

PRIVATE = masquerade("10.0.0.0/8", "fc00::/7")


def ranges(agent: Agent) -> set[tuple[int, str]]:
    return set(agent.rows("non_masquerade"))


def test_without_a_record_nothing_is_masqueraded() -> None:
    agent = Agent()
    agent.snapshot(node("n1", "172.16.0.1"))
    assert not agent.view.masquerade.enabled
    assert ranges(agent) == set()


def test_the_ranges_of_the_record_and_the_nodes_pods() -> None:
    agent = Agent()
    agent.snapshot(
        {**PRIVATE, **node("n1", cidrs=("10.1.0.0/24", "fd00:1::/64")), **node("n2", cidrs=("10.1.1.0/24",))}
    )
    assert agent.view.masquerade.enabled
    config = {(104, "10.0.0.0"), (7, "fc00::")}
    assert ranges(agent) == config | {(120, "10.1.0.0"), (64, "fd00:1::"), (120, "10.1.1.0")}
    agent.remove(KEYS.node("n2"))
    assert ranges(agent) == config | {(120, "10.1.0.0"), (64, "fd00:1::")}


def test_a_change_adds_before_it_removes_and_costs_what_differs() -> None:
    agent = Agent()
    agent.snapshot(PRIVATE)
    steps = agent.change(masquerade("10.0.0.0/8", "192.0.2.0/24"))
    assert [(step.map, len(step.puts), len(step.deletes)) for step in steps] == [
        ("non_masquerade", 1, 0),
        ("non_masquerade", 0, 1),
    ]
    assert ranges(agent) == {(104, "10.0.0.0"), (120, "192.0.2.0")}
    assert touched(agent.change(masquerade("10.0.0.0/8", "192.0.2.0/24"))) == 0


def test_a_range_stays_while_somebody_wants_it() -> None:
    agent = Agent()
    agent.snapshot({**masquerade("10.1.0.0/24"), **node("n1", cidrs=("10.1.0.0/24",))})
    agent.change(masquerade())
    assert ranges(agent) == {(120, "10.1.0.0")}
    agent.change(node("n1", cidrs=("10.2.0.0/24",)))
    assert ranges(agent) == {(120, "10.2.0.0")}


def test_a_restart_writes_nothing_that_is_there() -> None:
    agent = Agent()
    values = {**PRIVATE, **node("n1", cidrs=("10.1.0.0/24",))}
    agent.snapshot(values)
    assert touched(agent.restarted().snapshot(values)) == 0
    assert touched(agent.restarted().snapshot(PRIVATE)) == 1


def test_what_is_not_understood_leaves_the_last() -> None:
    agent = Agent()
    agent.snapshot(PRIVATE)
    assert touched(agent.change(undecodable(PRIVATE))) == 0
    assert agent.view.masquerade.enabled
    assert list(agent.view.problems) == list(PRIVATE)
    agent.remove(*PRIVATE)
    assert (agent.view.masquerade.enabled, ranges(agent)) == (False, set())


BLOCKS = [
    ("the defaults", (range(32768, 61000), range(30000, 32768)), ((1024, 29999), (61000, 65535))),
    ("apart", (range(40000, 50000), range(30000, 32768)), ((1024, 29999), (32768, 39999), (50000, 65535))),
    ("NodePorts within", (range(20000, 65536), range(30000, 32768)), ((1024, 19999),)),
    ("overlapping", (range(31000, 61000), range(30000, 32768)), ((1024, 29999), (61000, 65535))),
    ("from below", (range(500, 2000), range(30000, 32768)), ((2000, 29999), (32768, 65535))),
    ("one left", (range(1025, 65536), range(30000, 32768)), ((1024, 1024),)),
    ("the last one left", (range(1024, 65535), range(30000, 32768)), ((65535, 65535),)),
    ("none", (range(1024, 65536), range(30000, 32768)), ()),
    ("none but the privileged", (range(1, 65536), range(30000, 32768)), ()),
]


@pytest.mark.parametrize(("why", "taken", "expected"), BLOCKS, ids=[row[0] for row in BLOCKS])
def test_free_ports(why: str, taken: tuple[range, ...], expected: tuple[tuple[int, int], ...]) -> None:
    assert free_blocks(*taken) == expected
    free = {port for first, last in expected for port in range(first, last + 1)}
    assert free == set(range(1024, 65536)).difference(*taken)


def test_as_settings() -> None:
    assert settings_of(((1024, 29999), (65535, 65535)), 3) == [1024 << 16 | 28976, 65535 << 16 | 1, 0]


def test_the_kernels_range(tmp_path: Path) -> None:
    (tmp_path / "ipv4").mkdir()
    (tmp_path / "ipv4/ip_local_port_range").write_text("32768\t60999\n")
    assert read_local_ports(tmp_path) == range(32768, 61000)


def test_the_option() -> None:
    assert parse_ports("30000-32767") == range(30000, 32768)
    assert parse_ports("30000-30000") == range(30000, 30001)


@pytest.mark.parametrize(
    "text", ["", "30000", "30000-", "-1-5", "5-4", "0-10", "30000-65536", "a-b", "1-2-3", "+1-5", " 1-5"]
)
def test_options_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="range of ports"):
        parse_ports(text)
