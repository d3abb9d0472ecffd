"""Runs inside a pod: one long connection to a responder, and a fresh one beside it at each round.

Standard library only. A round a line of standard input; each prints as JSON what both, and a datagram, were told: the
address that the responder has seen.

usage: caller.py ADDRESS PORT
"""

import json
import socket
import sys

PATIENCE = 5.0  # seconds until an answer counts as lost


def seen(answer: bytes) -> str:
    return answer.decode().split()[2]


def main() -> None:
    end = sys.argv[1], int(sys.argv[2])
    with socket.create_connection(end, PATIENCE) as stream:
        lines = stream.makefile("rb")
        lines.readline()
        for _ in sys.stdin:
            stream.sendall(b"next\n")
            with socket.create_connection(end, PATIENCE) as fresh:
                told = [seen(lines.readline()), seen(fresh.recv(4096))]
            with socket.socket(socket.AF_INET6 if ":" in end[0] else socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                datagrams.settimeout(PATIENCE)
                datagrams.connect(end)
                datagrams.send(b"next\n")
                told.append(seen(datagrams.recv(4096)))
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
