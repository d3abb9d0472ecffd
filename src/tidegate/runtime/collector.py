"""Python's cyclic garbage collector, where much is built that stays."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tidegate.runtime.memory import give_back

THOROUGH = 3600.0  # seconds between collections that look through everything

_thorough = time.monotonic()


@contextmanager
def building() -> Iterator[None]:
    """What is built here stays, and has no cycles: it is not searched for garbage while it grows, nor ever after.

    The collector would go through all of it again and again (a third of the time that a large snapshot takes), and hold
    the process for a second at a time later on. What is let go is freed as always, by its count of references; and at
    the end the C library gives back what it has left over of the messages that all this came in.
    """
    gc.disable()
    try:
        yield
    finally:
        settled()
        gc.enable()
        give_back()


def settled() -> None:
    """All that there is by now stays, as if it had been built so; and from now on, what outlives a full collection.

    State that is replaced piece by piece becomes young again: without this each full collection would hold the process
    for longer than the one before (0.4 s after ten minutes of 100 changes a second). Once in an hour everything is
    looked through, for what has come to be garbage since.
    """
    gc.freeze()
    if after_collection not in gc.callbacks:
        gc.callbacks.append(after_collection)


def after_collection(phase: str, info: Mapping[str, int]) -> None:
    """One of gc.callbacks."""
    global _thorough  # there is one collector in a process
    if phase != "stop" or info["generation"] < 2:
        return
    now = time.monotonic()
    if now - _thorough < THOROUGH:
        gc.freeze()
    else:
        _thorough = now
        gc.unfreeze()  # the next one looks through all of it
