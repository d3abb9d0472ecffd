"""Threads share one heap of the C library."""

import os
import subprocess
import sys

import pytest

# Four threads at a time ask the C library for memory; how many heaps it has then stands in what malloc_info writes.
COUNT = """
import ctypes, re, sys, threading
from tidegate.runtime.memory import one_heap
if sys.argv[1] == "one":
    one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.open_memstream.restype = ctypes.c_void_p
here, text, size = threading.Barrier(4), ctypes.c_char_p(), ctypes.c_size_t()
def ask():
    here.wait()
    libc.malloc(1000)
    here.wait()
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(len(re.findall(b"<heap nr=", text.value)))
"""


@pytest.mark.parametrize(("heaps", "more"), [("one", False), ("as it comes", True)])
def test_threads_share_one_heap(heaps: str, more: bool) -> None:
    run = [sys.executable, "-c", COUNT, heaps]
    plain = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    found = int(subprocess.run(run, env=plain, check=True, capture_output=True, text=True).stdout)
    assert (found > 1) == more
    assert found
