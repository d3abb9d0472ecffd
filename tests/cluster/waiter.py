"""Runs in a pod: connects again and again, until it is as it is waited for; tells since when.

Standard library only. Prints `asking`, then the monotonic time, in seconds, at which the first connection of the kind
wanted was answered, or the first that was not was begun.

usage: waiter.py ADDRESS PORT reached|denied
"""

import socket
import sys
import time

PATIENCE = 0.5  # seconds without an answer are a denial
PAUSE = 0.005


def reached(end: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(end, PATIENCE) as one:
            one.settimeout(PATIENCE)
            return bool(one.recv(100))
    except OSError:
        return False


def main() -> None:
    end, wanted = (sys.argv[1], int(sys.argv[2])), sys.argv[3] == "reached"
    sys.stdout.write("asking\n")
    sys.stdout.flush()
    while True:
        began = time.monotonic()
        if reached(end) == wanted:
            sys.stdout.write(f"{time.monotonic() if wanted else began}\n")
            return
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
