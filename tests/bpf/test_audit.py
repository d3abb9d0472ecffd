"""Audit: what policies deny passes, counted, told and noted as what it is; and what is no policy's stays as it is."""

import socket
from collections.abc import Callable

import pytest
from tests.bpf.families import family
from tests.bpf.kernel import read_events
from tests.bpf.policylog import ALLOWED, DENIED, LOST_AUDITED, Log
from tests.bpf.topology import IDENTITIES, Cluster, Node
from tests.bpf.traffic import (
    EGRESS,
    INGRESS,
    PAIRS,
    TCP,
    UDP,
    Server,
    allow,
    client,
    denied,
    exchange_tcp,
    exchange_udp,
    isolate,
    ping,
    pod,
    raise_generation,
    wait_for,
)

pytestmark = pytest.mark.root

MONITOR, AUDIT = 1, 13  # enum setting
VERDICTS = 2
ANY_PROTOCOL = 253  # RFC 3692: for experiments
NAMES = {INGRESS: "INGRESS", EGRESS: "EGRESS"}

# Puts the subject `name` of a node, isolated in one direction, into audit or takes it out; then the generation rises.
Switch = Callable[[Node, str, int, bool], None]


def by_namespace(node: Node, name: str, direction: int, on: bool) -> None:
    isolate(node, name, ingress=direction == INGRESS, egress=direction == EGRESS, audit=on)
    raise_generation(node)


def by_node(node: Node, name: str, direction: int, on: bool) -> None:
    isolate(node, name, ingress=direction == INGRESS, egress=direction == EGRESS)
    node.programs.maps["settings"].set({"value": AUDIT}, {"value": int(on)})
    raise_generation(node)


either_way = pytest.mark.parametrize("switch", [by_namespace, by_node])
in_each_direction = pytest.mark.parametrize("direction", [INGRESS, EGRESS], ids=["ingress", "egress"])


def audited(node: Node) -> dict[str, int]:
    """By direction, how many verdicts were so since the test began; those that never were are left out."""
    found = {name: node.programs.counter(f"AUDITED_{name}") for name in NAMES.values()}
    return {name: count for name, count in found.items() if count}


@either_way
@in_each_direction
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_is_denied_passes(world: Cluster, source: str, target: str, direction: int, switch: Switch) -> None:
    one, other = pod(world, source), pod(world, target)
    name, node = (target, other.node) if direction == INGRESS else (source, one.node)
    switch(node, name, direction, False)
    denied(world, one, other, 8080, node, f"POLICY_{NAMES[direction]}")
    assert audited(node) == {}
    before = node.programs.counter(f"POLICY_{NAMES[direction]}")
    switch(node, name, direction, True)
    exchange_tcp(one, other, other.address, 8081)
    assert audited(node) == {NAMES[direction]: 1}  # once a connection
    exchange_udp(one, other, other.address, 8082)
    ping(one, other.address)
    assert audited(node) == {NAMES[direction]: 3}
    assert node.programs.counter(f"POLICY_{NAMES[direction]}") == before


@either_way
@in_each_direction
def test_a_live_connection_is_cut_when_audit_ends(world: Cluster, direction: int, switch: Switch) -> None:
    one, other = pod(world, "a"), pod(world, "b")
    node, name = one.node, "b" if direction == INGRESS else "a"
    reason = f"POLICY_{NAMES[direction]}"
    switch(node, name, direction, True)
    with Server(other, 8080) as server, client(one) as connection:
        connection.connect((other.address, 8080))
        with server.accept() as accepted:
            connection.sendall(b"one")
            assert accepted.recv(100) == b"one"
            switch(node, name, direction, True)  # something else has changed: judged anew
            connection.sendall(b"two")
            assert accepted.recv(100) == b"two"
            assert node.programs.counter(reason) == 0
            assert audited(node)[NAMES[direction]] >= 2
            switch(node, name, direction, False)
            connection.sendall(b"three")
            wait_for("a drop", lambda: node.programs.counter(reason) > 0)
            accepted.setblocking(False)
            with pytest.raises(BlockingIOError):
                accepted.recv(100)
            switch(node, name, direction, True)
            accepted.setblocking(True)
            assert accepted.recv(100) == b"three", "sent again, once it passed"


def test_the_other_end_is_asked_by_its_own_state(tcx_world: Cluster) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    isolate(a.node, "a", egress=True, audit=True)
    isolate(a.node, "b", ingress=True)
    denied(tcx_world, a, b, 8080, a.node, "POLICY_INGRESS")
    assert audited(a.node)["EGRESS"] >= 1

    isolate(a.node, "a", egress=True)
    isolate(a.node, "b", ingress=True, audit=True)
    denied(tcx_world, a, b, 8080, a.node, "POLICY_EGRESS")
    assert "INGRESS" not in audited(a.node)


@either_way
def test_what_no_rule_can_allow_passes(tcx_world: Cluster, switch: Switch) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    switch(a.node, "b", INGRESS, False)
    with (
        a.namespace.socket(family(), socket.SOCK_RAW, ANY_PROTOCOL) as sender,
        b.namespace.socket(family(), socket.SOCK_RAW, ANY_PROTOCOL) as receiver,
    ):
        receiver.settimeout(10)
        sender.sendto(b"one", (b.address, 0))
        wait_for("a drop", lambda: a.node.programs.counter("PROTOCOL") == 1)
        switch(a.node, "b", INGRESS, True)
        sender.sendto(b"two", (b.address, 0))
        assert receiver.recv(100).endswith(b"two")
    assert audited(a.node) == {"INGRESS": 1}


def test_what_is_no_policy_s_stays(tcx_world: Cluster) -> None:
    """A pod whose rules do not stand is closed, in audit as well."""
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    by_node(a.node, "a", EGRESS, True)
    a.node.programs.maps["subjects"].delete({"value": IDENTITIES["b"]})
    denied(tcx_world, a, b, 8080, a.node, "CLOSED")
    closed = {"identity": 0, "ifindex": b.ifindex, "flags": 1 | 8}
    a.node.programs.maps["endpoints"].set({"addr": b.address}, closed)
    denied(tcx_world, a, b, 8080, a.node, "CLOSED")
    assert "INGRESS" not in audited(a.node)


def test_it_is_a_verdict_of_its_own(tcx_world: Cluster) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    programs = a.node.programs
    ring = programs.manifest.maps["events_verdicts"]
    isolate(a.node, "a", egress=True, audit=True)
    isolate(a.node, "b", ingress=True, audit=True)
    programs.maps["settings"].set({"value": MONITOR}, {"value": VERDICTS})
    read_events(ring)
    exchange_tcp(a, b, b.address, 8080)
    names = {number: name for name, number in programs.reasons.items()}
    found = [(one["direction"], names[one["reason"]], one["policy"]) for one in read_events(ring)]
    assert found == [(EGRESS, "AUDITED_EGRESS", IDENTITIES["a"]), (INGRESS, "AUDITED_INGRESS", IDENTITIES["b"])]


@pytest.mark.parametrize("asked", [0, ALLOWED | DENIED])
def test_the_log_has_it_in_any_case_and_not_as_allowed(tcx_world: Cluster, asked: int) -> None:
    log = Log(tcx_world)
    log.ask(asked)
    isolate(log.b.node, "b", ingress=True, audit=True, ingress_lengths=1 << 16)
    log.send(3, 9)
    log.send(1, 8080)  # which a rule allows
    exchange_tcp(log.a, log.b, log.b.address, 8081)
    found = sorted((key["protocol"], key["responder_port"], key["audited"], count) for key, count in log.denied())
    assert found == [(TCP, 8081, 1, 1), (UDP, 9, 1, 3)]
    assert [one["destination_port"] for one in log.allowed()] == ([8080] if asked else [])

    # The sender's rules allow it, and no policy would, were it not for audit at the receiver.
    isolate(log.a.node, "a", egress=True, egress_lengths=1 << 31)
    allow(log.a.node, "a", EGRESS, [1], 0)
    log.send(1, 10)
    assert log.allowed() == []
    assert [(key["direction"], key["audited"]) for key, _ in log.denied()] == [(INGRESS, 1)]

    # Who is not in audit is denied, and that is noted where it is asked for alone.
    isolate(log.a.node, "a", egress=True)
    log.send(1, 11)
    expected = [(EGRESS, 0)] if asked else []
    assert [(key["direction"], key["audited"]) for key, _ in log.denied()] == expected


def test_what_passes_and_what_is_denied_are_told_apart(tcx_world: Cluster) -> None:
    log = Log(tcx_world)
    log.ask(DENIED)
    log.send(2, 9)
    isolate(log.b.node, "b", ingress=True, audit=True, ingress_lengths=1 << 16)
    log.send(5, 9)
    assert sorted((key["audited"], count) for key, count in log.denied()) == [(0, 2), (1, 5)]


def test_what_goes_beyond_the_rate_is_counted(tcx_world: Cluster) -> None:
    log = Log(tcx_world)
    isolate(log.b.node, "b", ingress=True, audit=True, ingress_lengths=1 << 16)
    log.send(1, 9)
    lost, second = log.lost(LOST_AUDITED), log.use_up()
    log.send(5, 9)
    log.send(3, 10)
    assert log.second() == second, "the machine stood still"
    assert [(key["responder_port"], key["audited"], count) for key, count in log.denied()] == [(9, 1, 6)]
    assert log.lost(LOST_AUDITED) - lost == 3
    assert audited(log.b.node) == {"INGRESS": 9}  # all of them passed
