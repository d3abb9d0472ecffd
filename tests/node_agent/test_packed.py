"""Packed entries are to a table what a dict is: whatever comes, goes and is asked in whatever order. A packed table is
what another one is, and the slots of a selection are what a list of them is."""

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.packed import Packed, places
from node_agent.selections import FEW, Slots
from node_agent.table import PackedTable, Table

# Few numbers and places, so that rows grow, get gaps and end; keys and values of other sizes, too.
_keys = st.one_of(
    st.builds(lambda number, place: struct.pack("=II", number, place), st.integers(0, 2), st.integers(0, 5)),
    st.binary(max_size=9),
)
_values = st.one_of(st.sampled_from([b"one", b"two", b"six"]), st.binary(max_size=4))
_rows = st.tuples(st.integers(0, 2), st.lists(st.sampled_from([b"one", b"two", b"six"]), min_size=1, max_size=4))
_steps = st.lists(st.one_of(st.tuples(_keys, st.one_of(_values, st.none())), _rows), max_size=30)


def same(packed: Packed, wanted: Mapping[bytes, bytes]) -> bool:
    found = [*packed.items()]
    return (
        len(packed) == len(found) == len(wanted)
        and dict(found) == wanted == packed
        and [*packed] == [key for key, _ in found]
        and [*packed.values()] == [value for _, value in found]
        and all(packed[key] == packed.get(key) == value and key in packed for key, value in wanted.items())
    )


@settings(derandomize=True, deadline=None, max_examples=500)
@given(_steps)
def test_it_is_what_a_dict_is(steps: list[tuple[bytes, bytes | None] | tuple[int, list[bytes]]]) -> None:
    packed, wanted = Packed(), dict[bytes, bytes]()
    for step in steps:
        before = packed.copy()
        assert before == packed
        match step:
            case int(number), list(values):
                first = struct.pack("=I", number)
                if not packed.has_row(first) and all(len(value) == 3 for value in wanted.values()):
                    packed.set_row(first, b"".join(values), 3)
                    wanted.update({struct.pack("=II", number, place): value for place, value in enumerate(values)})
            case key, None:
                assert isinstance(key, bytes)
                assert packed.pop(key, None) == wanted.pop(key, None)
                assert key not in packed
            case key, value:
                assert isinstance(key, bytes)
                assert isinstance(value, bytes)
                packed[key] = wanted[key] = value
        assert same(packed, wanted)
        assert (before == packed) == (dict(before) == wanted)
        assert same(packed.copy(), wanted)


def row(number: int, count: int, value: bytes) -> Packed:
    packed = Packed()
    packed.set_row(struct.pack("=I", number), value * count, len(value))
    return packed


def test_a_copy_is_another_one() -> None:
    packed = row(1, 3, b"one")
    copied = packed.copy()
    del packed[struct.pack("=II", 1, 0)]
    packed[struct.pack("=II", 1, 1)] = b"two"
    assert [*copied.values()] == [b"one"] * 3


def test_what_is_not_there() -> None:
    packed = Packed()
    with pytest.raises(KeyError):
        packed[bytes(8)]
    with pytest.raises(KeyError):
        del packed[bytes(8)]
    assert not packed


def test_a_row_takes_no_object_an_entry() -> None:
    packed = row(7, 1000, bytes(20))
    packed[struct.pack("=II", 7, 1000)] = bytes(20)
    del packed[struct.pack("=II", 7, 500)]
    assert (len(packed.rows), len(packed.gaps), packed.rest) == (1, 1, {})


@pytest.mark.parametrize("count", [3, 5])
def test_what_comes_in_another_order_ends_in_its_row(count: int) -> None:
    packed = row(7, 2, b"one")
    for place in reversed(range(2, count)):
        packed[struct.pack("=II", 7, place)] = b"two"
    assert (len(packed.rows), packed.rest) == (1, {})
    assert [*packed.values()] == [b"one"] * 2 + [b"two"] * (count - 2)


def test_who_asks_for_places_keeps_them() -> None:
    """As another thread does, while more are made."""
    few = places(3)
    count = len(few)
    places(2 * count + 1)
    assert len(few) == count
    assert few[:3] == [struct.pack("=I", place) for place in range(3)]


_small = st.builds(lambda number, place: struct.pack("=II", number, place), st.integers(0, 1), st.integers(0, 4))
_three = st.sampled_from([b"one", b"two", b"six"])
_changes = st.one_of(
    st.tuples(st.just("set"), _small, st.one_of(_three, st.none())),
    st.tuples(st.just("row"), st.integers(0, 1), st.lists(_three, min_size=1, max_size=4)),
    st.tuples(st.just("due"), st.none(), st.none()),
    st.tuples(st.just("written"), st.integers(0, 8), st.none()),
    st.tuples(st.just("removed"), _small, st.none()),
    st.tuples(st.just("adopt"), st.none(), st.none()),
)


class Under:
    """A table, and what of it is being written."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._due: Mapping[bytes, bytes] = {}

    def change(self, what: str, one: Any, other: Any) -> object:
        table = self.table
        match what:
            case "set":
                table.set(one, other)
            case "row":
                table.set_row(struct.pack("=I", one), b"".join(other), 3)
            case "due":
                self._due = table.due()
                return dict(self._due)
            case "written":  # all of it or, where the map turned out to be full, some
                due, self._due = self._due, {}
                table.written(due if one >= len(due) else {key: due[key] for key in sorted(due)[:one]})
            case "removed":
                return table.removed(one)
            case "adopt":
                return sorted(table.adopt())
        return None


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(st.dictionaries(_small, _three, max_size=5), st.lists(_changes, max_size=25))
def test_a_packed_table_is_what_a_table_is(found: dict[bytes, bytes], changes: list[tuple[str, Any, Any]]) -> None:
    packed, plain = Under(PackedTable(found)), Under(Table(found))
    for step in changes:
        assert packed.change(*step) == plain.change(*step)
        assert dict(packed.table) == dict(plain.table)
        assert dict(packed.table.due()) == dict(plain.table.due())
        for name in ("settled", "new", "changed", "other", "found"):
            assert getattr(packed.table, name) == getattr(plain.table, name), name


def test_a_change_while_all_is_written_costs_that_row_alone() -> None:
    table = PackedTable({})
    for number in range(10):
        table.set_row(struct.pack("=I", number), b"one" * 4, 3)
    due = table.due()
    table.set(struct.pack("=II", 3, 1), b"two")
    table.set(struct.pack("=II", 4, 3), None)
    table.written(due)
    assert len(table.settled.rows) == 10
    assert [number for number, row in table.settled.rows.items() if isinstance(row, bytearray)] == [
        struct.pack("=I", number) for number in (3, 4)
    ]
    assert table.changed == {struct.pack("=II", 3, 1): b"two"}
    assert table.other.keys() == {struct.pack("=II", 3, 1), struct.pack("=II", 4, 3)}


def test_a_row_that_is_known_in_part_is_not_taken_as_a_whole() -> None:
    first, second = (struct.pack("=II", 3, place) for place in range(2))
    table = PackedTable({})
    table.set_row(first[:4], b"onetwo", 3)
    table.written(table.due())
    table.removed(first)
    assert (dict(table), table.due()) == ({second: b"two"}, {first: b"one"})
    table.written(table.due())
    assert dict(table) == {first: b"one", second: b"two"}


_backends = st.sets(st.builds(lambda one, two: bytes([one, two]), *[st.integers(0, 3)] * 2), max_size=2 * FEW)


@settings(derandomize=True, deadline=None)
@given(_backends, _backends, _backends)
def test_slots_are_what_a_list_is(first: set[bytes], gone: set[bytes], come: set[bytes]) -> None:
    """Values of which one begins within another one and ends within the next, too."""
    slots = Slots(sorted(first))
    assert slots.values == sorted(first)
    assert [slots.values[slot] for slot in slots.find(gone)] == sorted(first & gone)
    gone, come = gone & first, come - first
    wanted = dict(enumerate(slots.values))
    changed = slots.exchange(gone, come)
    wanted = {slot: value for slot, value in {**wanted, **changed}.items() if value is not None}
    assert [wanted[slot] for slot in range(len(slots))] == slots.values
    assert set(slots.values) == (first - gone) | come
    assert len(changed) <= max(len(gone), len(come)) + len(gone)


@pytest.mark.parametrize("more", [0, FEW])
def test_who_stands_in_two_slots_goes_from_both(more: int) -> None:
    slots = Slots([b"aa", b"bb", b"aa"])
    slots.exchange({b"aa", *(b"%02d" % number for number in range(more))}, set())
    assert slots.values == [b"bb"]
