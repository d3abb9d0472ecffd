"""Retry with jitter: the one schedule of pauses that everything uses."""

import tenacity

FIRST = 0.05  # seconds
LONGEST = 5.0  # seconds


def retrying(*errors: type[BaseException], attempts: int | None = None) -> tenacity.AsyncRetrying:
    """Repeats a call that may be repeated. Exponential pauses with full jitter; without `attempts` for ever.

    >>> async for attempt in retrying(OSError):
    ...     with attempt:
    ...         await call()
    """
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(errors),
        wait=tenacity.wait_random_exponential(multiplier=FIRST, max=LONGEST),
        stop=tenacity.stop_after_attempt(attempts) if attempts else tenacity.stop_never,
        reraise=True,
    )


class Backoff:
    """The same pauses for loops that are no calls (a watch that is to be opened again)."""

    def __init__(self) -> None:
        self._wait = tenacity.wait_random_exponential(multiplier=FIRST, max=LONGEST)
        self.failures = 0  # since the last `reset`

    def reset(self) -> None:
        self.failures = 0

    def pause(self) -> float:
        """Seconds to wait now; longer with each call since the last `reset`."""
        self.failures += 1
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = self.failures
        return float(self._wait(state))
