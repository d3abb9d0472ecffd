"""Runs where a client is: connects to Services, and tells who answered.

Standard library only. Reads one JSON line: a list of [address, port, protocol, names that are to be seen, fewest,
patience]. For each it connects until all these names have answered, at least so many times, and prints the list of who
did, or of how it was refused (names of exceptions). Where nobody answers within `patience` seconds, it does not ask
again.
"""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

MOST = 400
WORKERS = 12


def ask(address: str, port: int, protocol: str, patience: float) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    with socket.socket(family, kind) as one:
        one.settimeout(patience)
        try:
            one.connect((address, port))
            if protocol == "UDP":
                one.send(b"x")
            answer = one.recv(200).decode().split()[0]
            assert one.getpeername()[:2] == (address, port), one.getpeername()
        except OSError as error:
            return type(error).__name__
        return answer.rpartition("/")[2]


def answers(question: tuple[str, int, str, list[str], int, float]) -> list[str]:
    address, port, protocol, expected, fewest, patience = question
    seen: set[str] = set()
    for count in range(MOST):
        seen.add(ask(address, port, protocol, patience))
        if "TimeoutError" in seen or (count + 1 >= fewest and seen >= set(expected)):
            break
    return sorted(seen)


if __name__ == "__main__":
    with ThreadPoolExecutor(WORKERS) as pool:
        sys.stdout.write(json.dumps(list(pool.map(answers, json.loads(sys.stdin.readline())))) + "\n")
