"""What the programs note for the policy log: allowed connections once, denied packets by number, within the rate."""

import time

import pytest
from tests.bpf.policylog import ALLOWED, ALLOWED_MARKED, DENIED, DENIED_MARKED, LOST_ALLOWED, LOST_DENIED, RATE, Log
from tests.bpf.topology import IDENTITIES, Cluster
from tests.bpf.traffic import (
    EGRESS,
    INGRESS,
    TCP,
    UDP,
    Server,
    allow,
    client,
    exchange_tcp,
    isolate,
    raise_generation,
)

pytestmark = pytest.mark.root

ROUND = 9  # enum setting
SUBJECT_LOG, RULE_LOG = 4, 1


def test_an_allowed_connection_is_noted_once(tcx_world: Cluster) -> None:
    log = Log(tcx_world)
    exchange_tcp(log.a, log.b, log.b.address, 8080)
    assert log.allowed() == []

    log.ask(ALLOWED)
    with Server(log.b, 8080) as server, client(log.a) as connection:
        connection.connect((log.b.address, 8080))
        port = connection.getsockname()[1]
        with server.accept() as accepted:
            connection.sendall(b"ping")
            assert accepted.recv(10) == b"ping"
            raise_generation(log.b.node)  # judged anew
            connection.sendall(b"pong")
            assert accepted.recv(10) == b"pong"
    (noted,) = log.allowed()
    assert (noted["source"], noted["destination"]) == (log.a.address, log.b.address)
    assert (noted["source_port"], noted["destination_port"], noted["protocol"]) == (port, 8080, TCP)
    assert (noted["direction"], noted["policy"], noted["reason"]) == (INGRESS, IDENTITIES["b"], 0)
    assert (noted["source_identity"], noted["destination_identity"]) == (IDENTITIES["a"], IDENTITIES["b"])
    assert log.denied() == []


def test_each_isolated_end_has_its_record(tcx_world: Cluster) -> None:
    log = Log(tcx_world)
    isolate(log.a.node, "a", egress=True, egress_lengths=1 << 31)
    allow(log.a.node, "a", EGRESS, [1], 0)
    log.ask(ALLOWED | DENIED)
    log.send(1, 8080)
    assert [(one["direction"], one["policy"]) for one in log.allowed()] == [
        (EGRESS, IDENTITIES["a"]),
        (INGRESS, IDENTITIES["b"]),
    ]
    log.send(3, 8081)
    assert log.allowed() == []  # what one end denies, nobody has allowed
    assert [(key["direction"], key["policy"], count) for key, count in log.denied()] == [(INGRESS, IDENTITIES["b"], 3)]


def test_denied_packets_are_counted_without_their_source_port(tcx_world: Cluster) -> None:
    log = Log(tcx_world)
    log.ask(ALLOWED)
    log.send(1, 9)
    assert log.denied() == []

    log.ask(DENIED)
    log.send(50, 9)
    log.send(7, 10)
    log.programs.maps["settings"].set({"value": ROUND}, {"value": 5})
    log.send(2, 9)
    found = log.denied()
    assert sorted((key["round"], key["responder_port"], count) for key, count in found) == [
        (0, 9, 50),
        (0, 10, 7),
        (5, 9, 2),
    ]
    key = found[0][0]
    assert (key["initiator"], key["responder"]) == (log.a.address, log.b.address)
    assert (key["policy"], key["protocol"], key["direction"]) == (IDENTITIES["b"], UDP, INGRESS)
    log.send(1, 8080)
    assert log.allowed() == []


def test_what_is_marked(tcx_world: Cluster) -> None:
    log = Log(tcx_world)
    log.ask(ALLOWED_MARKED | DENIED_MARKED)
    log.send(1, 8080)
    log.send(1, 9)
    assert (log.allowed(), log.denied()) == ([], [])

    log.programs.maps["rules"].set({**log.rule, "protocol": UDP}, {"sets": [1], "count": 1, "flags": RULE_LOG})
    log.send(1, 8080)
    exchange_tcp(log.a, log.b, log.b.address, 8080)  # by another rule
    assert [one["protocol"] for one in log.allowed()] == [UDP]

    subject = {"policy": IDENTITIES["b"], "flags": 1 | SUBJECT_LOG, "ingress_lengths": 1 << 16}
    log.programs.maps["subjects"].set({"value": IDENTITIES["b"]}, subject)
    log.send(4, 9)
    assert [count for _, count in log.denied()] == [4]


def test_what_goes_beyond_the_rate_is_counted(tcx_world: Cluster) -> None:
    log = Log(tcx_world)
    log.ask(ALLOWED | DENIED)
    lost, begun, sent = log.lost(LOST_ALLOWED), time.monotonic(), 4 * RATE
    log.send(sent, 8080)
    seconds = int(time.monotonic()) - int(begun) + 2
    noted = log.allowed()
    assert len(noted) + log.lost(LOST_ALLOWED) - lost == sent
    assert len(noted) <= RATE * seconds
    assert len(noted) < sent

    # In a second that is used up nobody begins another record, and what has one is counted on.
    log.programs.maps["log_budget"].set({"value": 0}, {"second": 0})
    log.send(1, 9)
    lost, second = log.lost(LOST_DENIED), log.use_up()
    log.send(5, 9)
    log.send(3, 10)
    assert log.second() == second, "the machine stood still"
    assert [(key["responder_port"], count) for key, count in log.denied()] == [(9, 6)]
    assert log.lost(LOST_DENIED) - lost == 3
