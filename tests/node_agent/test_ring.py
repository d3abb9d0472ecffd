"""Consistent hashing: where backends stand, and what moves when one comes or goes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.ring import Address, Ring, positions

DRAWS = 64


def backends(count: int, first: int = 0) -> list[Address]:
    return [(b"\0" * 12 + number.to_bytes(4, "big"), 8080) for number in range(first, first + count)]


def layout(ring: Ring, among: set[Address]) -> dict[int, Address]:
    return ring.find(among)


@given(st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=12))
def test_the_layout_follows_from_who_is_there(steps: list[set[int]]) -> None:
    """However the set came about; and the changes that are told are all there are."""
    everybody, ring, told = backends(41), Ring(), dict[int, Address]()
    for step in steps:
        wanted = {everybody[number] for number in step}
        for at, backend in ring.replace(wanted).items():
            if backend is None:
                del told[at]
            else:
                assert told.get(at) != backend, "no change"
                told[at] = backend
    fresh = Ring()
    assert told == fresh.replace(wanted)
    assert told == ring.find(everybody)
    assert ring.size == fresh.size == positions(len(wanted))


def drawn(ring: Ring, among: list[Address], connections: int = 20_000) -> list[Address | None]:
    """Whom connections get that draw as the programs do."""
    standing = ring.find(among)
    found: list[Address | None] = []
    for connection in range(connections):
        draws = random.Random(connection)  # noqa: S311  # repeatable, not secret
        found.append(next((b for _ in range(DRAWS) if (b := standing.get(draws.randrange(ring.size)))), None))
    return found


@pytest.mark.parametrize("count", [3, 8, 12, 30, 100])
def test_one_that_goes_moves_its_own_share_and_little_more(count: int) -> None:
    among = backends(count)
    ring = Ring()
    ring.replace(set(among))
    before = drawn(ring, among)
    ring.replace(set(among[1:]))
    after = drawn(ring, among)
    moved = sum(now != then for now, then in zip(after, before, strict=True) if then != among[0])
    assert moved <= 2 * len(before) / count
    assert after.count(among[0]) == 0


@pytest.mark.parametrize("count", [2, 8, 9, 32, 33, 128, 129])
def test_everybody_is_drawn(count: int) -> None:
    """From an eighth to a half of the positions is taken; of the smallest ring a sixteenth may be."""
    among = backends(count, 1000)
    ring = Ring()
    ring.replace(set(among))
    found = drawn(ring, among, 50 * count)
    assert set(found) - {None} == set(among)
    assert found.count(None) <= len(found) / 100
