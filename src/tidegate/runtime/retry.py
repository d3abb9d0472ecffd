"""Retry with jitter: exponential, full jitter, capped, so that thousands of clients do not return in step.

The form is the "full jitter" of M. Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015): each delay
is drawn evenly from zero to a ceiling that doubles.
"""

import asyncio

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_random_exponential,
)

INITIAL = 0.1  # seconds: ceiling of the first delay
CAP = 10.0  # seconds: ceiling of all later ones


def backoff(
    *on: type[BaseException], attempts: int | None = None, initial: float = INITIAL, cap: float = CAP
) -> AsyncRetrying:
    """Retries calls that raise one of `on`: `async for attempt in backoff(OSError): with attempt: …`.

    Without `attempts` it never gives up; with it, the last exception is raised as it is. Only for calls that are safe
    to repeat.
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(on),
        wait=wait_random_exponential(multiplier=initial, max=cap),
        stop=stop_never if attempts is None else stop_after_attempt(attempts),
        reraise=True,
    )


class Backoff:
    """The same delays for loops that reconnect: `reset()` once the connection has proved to work."""

    def __init__(self, initial: float = INITIAL, cap: float = CAP) -> None:
        self._wait = wait_random_exponential(multiplier=initial, max=cap)
        self._state = RetryCallState(AsyncRetrying(), None, (), {})
        self._state.attempt_number = 0

    @property
    def attempts(self) -> int:
        """Delays taken since the last reset."""
        return self._state.attempt_number

    def reset(self) -> None:
        self._state.attempt_number = 0

    def next(self) -> float:
        """The next delay in seconds."""
        self._state.attempt_number += 1
        return self._wait(self._state)

    async def wait(self) -> None:
        await asyncio.sleep(self.next())
