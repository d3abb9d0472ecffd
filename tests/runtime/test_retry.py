"""Delays: jittered, growing, capped; and only for the errors named."""

import pytest

from tidegate.runtime.retry import Backoff, backoff


def test_delays_are_jittered_under_a_ceiling_that_doubles_up_to_the_cap() -> None:
    drawn = []
    for _ in range(300):
        pauses = Backoff(initial=0.1, cap=1.0)
        drawn.append([pauses.next() for _ in range(8)])
    for number, column in enumerate(zip(*drawn, strict=True)):
        ceiling = min(0.1 * 2**number, 1.0)
        assert all(0 <= delay <= ceiling for delay in column)
        assert max(column) > ceiling / 2 > min(column)


def test_a_reset_begins_anew() -> None:
    pauses = Backoff(initial=0.1, cap=10)
    for _ in range(10):
        pauses.next()
    assert pauses.attempts == 10
    pauses.reset()
    assert pauses.attempts == 0
    assert pauses.next() <= 0.1


async def failing(times: int, error: type[Exception], attempts: int | None) -> int:
    calls = 0
    async for attempt in backoff(OSError, attempts=attempts, initial=0.001):
        with attempt:
            calls += 1
            if calls <= times:
                raise error
    return calls


async def test_retries_what_it_is_told_to() -> None:
    assert await failing(3, ConnectionError, None) == 4
    with pytest.raises(ConnectionError):
        await failing(3, ConnectionError, 3)
    with pytest.raises(LookupError):
        await failing(1, LookupError, None)
