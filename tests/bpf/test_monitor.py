"""Events: only while somebody monitors, and with everything that names the packet."""

import socket

import pytest
from tests.bpf.kernel import read_events
from tests.bpf.topology import IDENTITIES, Cluster
from tests.bpf.traffic import INGRESS, TCP, allow, client, denied, exchange_tcp, isolate, pod

pytestmark = pytest.mark.root

MONITOR, DROPS, VERDICTS = 1, 1, 2


def test_drops_and_verdicts(tcx_world: Cluster) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    programs = a.node.programs
    rings = [programs.manifest.maps[name] for name in ("events_drops", "events_verdicts")]
    isolate(a.node, "b", ingress=True, ingress_lengths=1 << 16)
    allow(a.node, "b", INGRESS, [1], TCP, 8080, 16)
    denied(tcx_world, a, b, 8081, a.node, "POLICY_INGRESS")
    assert [read_events(ring) for ring in rings] == [[], []]

    programs.maps["settings"].set({"value": MONITOR}, {"value": DROPS | VERDICTS})
    denied(tcx_world, a, b, 8081, a.node, "POLICY_INGRESS")
    exchange_tcp(a, b, b.address, 8080)
    drops, verdicts = (read_events(ring) for ring in rings)

    drop = drops[0]
    assert (drop["source"], drop["destination"], drop["destination_port"]) == (a.address, b.address, 8081)
    assert (drop["protocol"], drop["direction"], drop["hook"]) == (TCP, INGRESS, 0)
    assert drop["reason"] == programs.reasons["POLICY_INGRESS"]
    assert (drop["source_identity"], drop["destination_identity"]) == (IDENTITIES["a"], IDENTITIES["b"])
    assert (drop["policy"], drop["ifindex"]) == (IDENTITIES["b"], a.ifindex)
    assert drop["time"] > 0
    assert drop["length"] >= 54

    # Each side that has rules is asked once a connection: egress of a, ingress of b.
    allowed = [verdict for verdict in verdicts if verdict["destination_port"] == 8080]
    assert [(verdict["direction"], verdict["reason"]) for verdict in allowed] == [(1, 0), (0, 0)]


def test_events_that_find_no_room_are_counted(tcx_world: Cluster) -> None:
    a, b = pod(tcx_world, "a"), pod(tcx_world, "b")
    programs = a.node.programs
    ring = programs.manifest.maps["events_drops"]
    isolate(a.node, "b", ingress=True)
    programs.maps["settings"].set({"value": MONITOR}, {"value": DROPS})
    lost = programs.maps["events_lost"].get({"value": 0})
    assert lost is not None
    sent = ring.max_entries // ring.value.size + 50
    with client(a, socket.SOCK_DGRAM) as sender:
        for _ in range(sent):
            sender.sendto(b"x", (b.address, 9))
    now = programs.maps["events_lost"].get({"value": 0})
    assert now is not None
    assert len(read_events(ring)) + now["packets"] - lost["packets"] == sent
    assert now["packets"] > lost["packets"]
