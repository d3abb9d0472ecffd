"""The exact set of eligible backends, or the refusal, for each Service, node and class of client."""

from dataclasses import dataclass

import pytest

from node_agent.choice import Place, Refusal, Selection, Selections, select, why_not
from tidegate.records import Backend

REJECT, DROP = Refusal.REJECT, Refusal.DROP
N1, N2, N3 = Place("n1", "a"), Place("n2", "b"), Place("n3")

Expected = str | Refusal  # names of backends, or how the client is refused


def backend(name: str, node: str, state: str = "ready", zones: str = "", nodes: str = "") -> Backend:
    """`state`: ready, waiting, going (terminating, serving), gone (terminating, not serving), both (ready, going)."""
    return Backend(
        address=name.encode().rjust(16, b"\0"),
        node=node,
        ready=state in ("ready", "both"),
        serving=state in ("ready", "going", "both"),
        terminating=state in ("going", "gone", "both"),
        for_zones=tuple(zones),
        for_nodes=tuple(nodes.split()),
    )


@dataclass(frozen=True)
class Row:
    backends: list[Backend]
    place: Place
    cluster: Expected
    local: Expected


A1, B2 = backend("a", "n1"), backend("b", "n2")
ROWS = {
    "no backends": Row([], N1, REJECT, REJECT),
    "one here": Row([A1], N1, "a", "a"),
    "one elsewhere": Row([A1], N2, "a", DROP),
    "here and elsewhere": Row([A1, B2], N1, "ab", "a"),
    "none is ready": Row([backend("a", "n1", "waiting")], N1, REJECT, REJECT),
    "only the ready": Row([A1, backend("b", "n1", "waiting")], N1, "a", "a"),
    "no node is known": Row([backend("a", "")], N1, "a", DROP),
    # KEP-1669
    "terminating, others are ready": Row([backend("a", "n1", "going"), B2], N1, "b", "a"),
    "all terminate": Row([backend("a", "n1", "going"), backend("b", "n2", "going")], N1, "ab", "a"),
    "all terminate, one has ended serving": Row(
        [backend("a", "n1", "gone"), backend("b", "n2", "going")], N1, "b", DROP
    ),
    "all have ended serving": Row([backend("a", "n1", "gone")], N1, REJECT, REJECT),
    "here one terminates and one is not ready": Row(
        [backend("a", "n1", "going"), backend("b", "n1", "waiting"), backend("c", "n2")], N1, "c", "a"
    ),
    "published though it terminates": Row([backend("a", "n1", "both"), B2], N1, "ab", "a"),
    # Zone hints, KEP-2433
    "hints for the zone": Row([backend("a", "n1", zones="a"), backend("b", "n2", zones="b")], N1, "a", "a"),
    "hints for the other zone": Row([backend("a", "n1", zones="a"), backend("b", "n2", zones="b")], N2, "b", "b"),
    "hints for both zones": Row([backend("a", "n1", zones="ab"), backend("b", "n2", zones="b")], N2, "ab", "b"),
    "a backend without a hint": Row([backend("a", "n1", zones="a"), B2], N1, "ab", "a"),
    "hints for no backend of the zone": Row(
        [backend("a", "n1", zones="c"), backend("b", "n2", zones="d")], N1, "ab", "a"
    ),
    "hints, and the node has no zone": Row(
        [backend("a", "n1", zones="a"), backend("b", "n2", zones="b")], N3, "ab", DROP
    ),
    "hints do not touch the policy Local": Row(
        [backend("a", "n1", zones="b"), backend("b", "n2", zones="a")], N1, "b", "a"
    ),
    "hints of those that are not ready": Row(
        [backend("a", "n1", zones="a"), backend("b", "n1", "waiting"), backend("c", "n2", zones="b")], N1, "a", "a"
    ),
    "hints while all terminate": Row(
        [backend("a", "n1", "going", zones="a"), backend("b", "n2", "going", zones="b")], N1, "ab", "a"
    ),
    "the zone's one is not ready": Row(
        [backend("a", "n1", "waiting", zones="a"), backend("b", "n2", zones="b")], N1, "b", DROP
    ),
    # Node hints, KEP-3015
    "hints for the node": Row([backend("a", "n1", nodes="n1"), backend("b", "n2", nodes="n2")], N1, "a", "a"),
    "hints for the node before the zone": Row(
        [
            backend("a", "n1", zones="a", nodes="n1"),
            backend("b", "n1", zones="a", nodes="n3"),
            backend("c", "n2", zones="b", nodes="n2"),
        ],
        N1,
        "a",
        "ab",
    ),
    "no hint for the node, one for the zone": Row(
        [backend("a", "n4", zones="a", nodes="n4"), backend("b", "n2", zones="b", nodes="n2")], N1, "a", DROP
    ),
    "not every backend has a hint for nodes": Row([backend("a", "n1", nodes="n1"), backend("b", "n2")], N1, "ab", "a"),
}


def expected(row: Row, wanted: Expected) -> Selection:
    if isinstance(wanted, Refusal):
        return Selection((), wanted)
    return Selection(tuple(b for b in row.backends if b.address[-1:].decode() in wanted))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_eligible_backends(row: Row) -> None:
    assert select(row.backends, row.place) == Selections(expected(row, row.cluster), expected(row, row.local))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_there_is_a_reason_for_each_that_is_left_out(row: Row) -> None:
    found = select(row.backends, row.place)
    for selection, local in ((found.cluster, False), (found.local, True)):
        for one in row.backends:
            assert bool(why_not(one, selection, row.place, local)) == (one not in selection.backends)


@pytest.mark.parametrize(
    ("left_out", "place", "local", "reason"),
    [
        (backend("x", "n2"), N1, True, "on n2; the traffic policy is Local"),
        (backend("x", ""), N1, True, "on no node; the traffic policy is Local"),
        (backend("x", "n1", "waiting"), N1, False, "not ready"),
        (backend("x", "n1", "gone"), N1, False, "not ready"),
        (backend("x", "n1", "going"), N1, False, "terminating; others are ready"),
        (backend("x", "n2", nodes="n2"), N1, False, "meant for clients on n2"),
        (backend("x", "n2", zones="bc"), N1, False, "meant for clients in b, c"),
    ],
)
def test_reasons(left_out: Backend, place: Place, local: bool, reason: str) -> None:
    assert why_not(left_out, Selection((A1,)), place, local) == reason
