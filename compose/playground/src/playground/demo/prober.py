"""Runs inside a pod: tries all targets at once and prints what came back, as JSON. Standard library only.

usage: prober.py SECONDS PROTOCOL:ADDRESS:PORT[#MARK] …

The mark is for telling several connections to one target apart.
"""

import json
import selectors
import socket
import sys
import time


def begin(target: str) -> socket.socket:
    protocol, _, where = target.partition("#")[0].partition(":")
    address, _, port = where.rpartition(":")
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    probe = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        probe.connect((address, int(port)))
        if kind == socket.SOCK_DGRAM:
            probe.send(b"who is there?\n")
    except BlockingIOError:
        pass
    return probe


def main() -> None:
    deadline = time.monotonic() + float(sys.argv[1])
    answers: dict[str, str | None] = dict.fromkeys(sys.argv[2:])
    selector = selectors.DefaultSelector()
    waiting = 0
    for target in answers:
        try:
            selector.register(begin(target), selectors.EVENT_READ, target)
            waiting += 1
        except OSError:
            continue  # refused at once: no answer
    while waiting and (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            try:
                answers[key.data] = key.fileobj.recv(4096).decode().strip() or None  # type: ignore[union-attr]
            except OSError:
                answers[key.data] = None
            selector.unregister(key.fileobj)
            waiting -= 1
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
