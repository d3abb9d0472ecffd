"""Packed entries are to a table what a dict is: whatever comes, goes and is asked in whatever order."""

import struct
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.packed import Packed

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
    assert (len(packed._rows), len(packed._gaps), packed._rest) == (1, 1, {})
