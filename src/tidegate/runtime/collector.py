"""Python's cyclic garbage collector, where much is built that stays."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
        gc.freeze()
        gc.enable()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc's alone
            libc.malloc_trim(0)


def settled() -> None:
    """All that there is by now stays, as if it had been built so."""
    gc.freeze()
