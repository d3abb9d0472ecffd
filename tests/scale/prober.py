"""Runs inside a pod: opens a TCP connection every interval and says which attempts were answered.

Standard library only: it is started by the pod's own interpreter. Prints one line an attempt, in the order of the
attempts: `<start> <ok>`, start in ns of CLOCK_MONOTONIC, ok 1 or 0 (0: no answer, or a refusal, within the patience).

usage: prober.py ADDRESS PORT [INTERVAL_MS] [PATIENCE_MS]
"""

import contextlib
import errno
import selectors
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass

LINGER_RESET = struct.pack("ii", 1, 0)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Attempt:
    start: int
    connection: socket.socket
    answered: bool | None = None


def begin(address: str, port: int) -> Attempt:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # A reset on close leaves no TIME_WAIT behind: a thousand connections a second would use up the source ports.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    attempt = Attempt(time.monotonic_ns(), connection)
    if connection.connect_ex((address, port)) not in (0, errno.EINPROGRESS):
        attempt.answered = False
    return attempt


def settle(attempt: Attempt) -> None:
    attempt.answered = attempt.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def probe(address: str, port: int, interval: int, patience: int) -> None:
    """Never returns; the reader closes the pipe. Interval and patience in ns."""
    selector = selectors.DefaultSelector()
    waiting: deque[Attempt] = deque()
    due = time.monotonic_ns()
    while True:
        now = time.monotonic_ns()
        if now >= due:
            attempt = begin(address, port)
            waiting.append(attempt)
            if attempt.answered is None:
                selector.register(attempt.connection, selectors.EVENT_WRITE, attempt)
            due = max(due + interval, now)
        for key, _ in selector.select(max(0, due - time.monotonic_ns()) / 1e9):
            settle(key.data)
            selector.unregister(key.fileobj)
        now = time.monotonic_ns()
        while waiting and (waiting[0].answered is not None or now - waiting[0].start > patience):
            attempt = waiting.popleft()
            if attempt.answered is None:
                selector.unregister(attempt.connection)
            attempt.connection.close()
            say(f"{attempt.start} {int(bool(attempt.answered))}")


if __name__ == "__main__":
    milliseconds = [float(text) for text in sys.argv[3:]] + [1.0, 200.0][len(sys.argv[3:]) :]
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        probe(sys.argv[1], int(sys.argv[2]), int(milliseconds[0] * 1e6), int(milliseconds[1] * 1e6))
