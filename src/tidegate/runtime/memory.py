"""What the C library keeps of memory that has been let go. glibc's alone is told; with another one nothing is done."""

import ctypes

M_ARENA_MAX = -8  # malloc.h


def one_heap() -> None:
    """All threads of the process share one heap, from now on: what one of them lets go, another one takes. Without it
    the threads that receive messages keep what the largest of them have left over. Before there are other threads."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """What is free goes back to the kernel."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
