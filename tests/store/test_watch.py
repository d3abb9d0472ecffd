"""Responses to whole revisions, and histories told apart: without a network."""

import itertools

import pytest
from etcd3aio._protobuf import WatchResponse
from hypothesis import given
from hypothesis import strategies as st

from tidegate.store.protocol import Delete, Operation, Put, UnavailableError
from tidegate.store.watch import TRACES, Assembler, History, LostError, Step, Trace, check_alive, watch_request

Event = tuple[int, str, bytes | None]  # revision, key, value (None: deleted)


def response(events: list[Event], fragment: bool = False) -> WatchResponse:
    made = WatchResponse(fragment=fragment)
    for revision, key, value in events:
        event = made.events.add()
        event.kv.key = key.encode()
        event.kv.mod_revision = revision
        event.kv.create_revision = revision
        event.kv.version = 1
        if value is None:
            event.type = 1
        else:
            event.kv.value = value
    return made


def operation(event: Event) -> Operation:
    return Delete(event[1]) if event[2] is None else Put(event[1], event[2])


def feed_all(assembler: Assembler, *responses: WatchResponse) -> list[Step]:
    return [step for one in responses for step in assembler.feed(one)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[int, list[Event]], list[WatchResponse]]:
    """Revisions, and the responses of an etcd: whole revisions each, cut anywhere into fragments."""
    revision, revisions = 10, {}
    responses = []
    for _ in range(draw(st.integers(1, 4))):
        events: list[Event] = []
        for _ in range(draw(st.integers(1, 4))):
            revision += draw(st.integers(1, 3))
            size = draw(st.integers(1, 5))
            revisions[revision] = [(revision, f"k{i}", draw(st.none() | st.binary(max_size=3))) for i in range(size)]
            events += revisions[revision]
        cuts = sorted(draw(st.sets(st.integers(1, len(events) - 1), max_size=3))) if len(events) > 1 else []
        edges = [0, *cuts, len(events)]
        parts = [events[a:b] for a, b in itertools.pairwise(edges)]
        responses += [response(part, fragment=part is not parts[-1]) for part in parts]
    return revisions, responses


@given(streams())
def test_revisions_come_out_whole_and_in_order(stream: tuple[dict[int, list[Event]], list[WatchResponse]]) -> None:
    revisions, responses = stream
    steps = feed_all(Assembler(10), *responses)
    assert {step.revision: list(step.operations) for step in steps} == {
        revision: [operation(event) for event in events] for revision, events in revisions.items()
    }
    assert [step.revision for step in steps] == sorted(revisions)


@given(streams(), st.data())
def test_what_is_cut_off_comes_again_once(
    stream: tuple[dict[int, list[Event]], list[WatchResponse]], data: st.DataObject
) -> None:
    """Cut after any response, and resumed at the position: each revision is given out exactly once."""
    revisions, responses = stream
    history = History(1, 10, {})
    seen: list[int] = []
    for step in feed_all(Assembler(10), *responses[: data.draw(st.integers(0, len(responses)))]):
        history.advance(step)
        seen.append(step.revision)
    rest = [event for revision, events in revisions.items() if revision > history.position for event in events]
    if rest:
        seen += [step.revision for step in feed_all(Assembler(history.position), response(rest))]
    assert seen == sorted(revisions)


def test_a_revision_waits_for_its_last_fragment() -> None:
    assembler = Assembler(1)
    assert feed_all(assembler, response([(2, "a", b""), (3, "b", b"")], fragment=True))[0].revision == 2
    assert assembler.pending
    (step,) = feed_all(assembler, response([(3, "c", b"")]))
    assert [one.key for one in step.operations] == ["b", "c"]
    assert not assembler.pending


@pytest.mark.parametrize("revision", [5, 4])
def test_events_at_or_before_the_position_are_no_continuation(revision: int) -> None:
    with pytest.raises(LostError, match="after 5"):
        feed_all(Assembler(5), response([(revision, "a", b"")]))
    assembler = Assembler(1)
    assembler.advance(5)
    with pytest.raises(LostError):
        feed_all(assembler, response([(revision, "a", b"")]))


def test_keys_that_are_no_text_pass() -> None:
    odd = response([(2, "x", b"")])
    odd.events[0].kv.key = b"\xff/k"
    (step,) = feed_all(Assembler(1), odd)
    assert step.operations[0].key.encode("utf-8", "surrogateescape") == b"\xff/k"


def test_the_history_keeps_the_latest_puts_that_still_stand() -> None:
    history = History(1, 1, {})
    assembler = Assembler(1)
    for revision in range(2, 2 * TRACES):
        for step in assembler.feed(response([(revision, f"k{revision}", b"v")])):
            history.advance(step)
    assert len(history.traces) == TRACES
    last = list(history.traces)[-1]
    assert last == f"k{2 * TRACES - 1}"
    for step in assembler.feed(response([(1000, last, None)])):
        history.advance(step)
    assert last not in history.traces
    assert history.position == 1000


def test_a_key_put_in_the_middle_of_a_transaction_leaves_no_old_trace() -> None:
    history = History(1, 1, {})
    assembler = Assembler(1)
    for made in (response([(2, "a", b"1")]), response([(3, "a", b"2"), (3, "b", b"1")])):
        for step in assembler.feed(made):
            history.advance(step)
    assert list(history.traces) == ["b"]


SEEN = {"a": Trace(7, 3, 2, 99)}


@pytest.mark.parametrize(
    ("found", "revision", "cluster", "cause"),
    [
        (SEEN, 10, 2, "cluster"),
        (SEEN, 9, 1, "older"),
        ({"a": None}, 10, 1, "history"),
        ({"a": Trace(6, 3, 2, 99)}, 10, 1, "history"),
        ({"a": Trace(7, 3, 2, 98)}, 10, 1, "history"),
    ],
)
def test_another_history_is_told_apart(found: dict[str, Trace | None], revision: int, cluster: int, cause: str) -> None:
    history = History(1, 10, dict(SEEN))
    history.check(dict(SEEN), 10, 1)
    history.check(dict(SEEN), 11, 0)  # a grpc-proxy leaves the cluster out
    with pytest.raises(LostError) as raised:
        history.check(found, revision, cluster)
    assert raised.value.cause == cause


def test_without_traces_nothing_can_be_resumed() -> None:
    with pytest.raises(LostError) as raised:
        History(1, 10, {}).require_traces()
    assert raised.value.cause not in LostError.REGRESSED, "it may well be the same"


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (WatchResponse(canceled=True, compact_revision=8), "compacted"),
        (WatchResponse(canceled=True, cancel_reason="mvcc: no such watch"), "canceled"),
    ],
)
def test_the_end_of_a_watch_is_noticed(made: WatchResponse, cause: str) -> None:
    with pytest.raises(LostError) as raised:
        check_alive(made, History(1, 10, {}))
    assert raised.value.cause == cause


@pytest.mark.parametrize("reason", ["permission denied", "invalid auth token", "revision of auth store is old"])
def test_a_watch_that_is_refused_loses_nothing(reason: str) -> None:
    with pytest.raises(UnavailableError, match=reason):
        check_alive(WatchResponse(canceled=True, cancel_reason=f"etcdserver: {reason}"), History(1, 10, {}))


def test_responses_of_another_cluster_are_refused() -> None:
    made = WatchResponse()
    made.header.cluster_id = 2
    with pytest.raises(LostError):
        check_alive(made, History(1, 10, {}))


def test_the_watch_asks_for_fragments_and_progress_after_the_position() -> None:
    request = watch_request("/p/", 7).create_request
    assert (request.key, request.range_end, request.start_revision) == (b"/p/", b"/p0", 8)
    assert request.fragment
    assert request.progress_notify
