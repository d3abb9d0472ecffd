"""Runs inside a pod: traffic that notices every lost packet, until standard input closes.

Standard library only. Three loops against one Service of playground responders, in turn, as fast as answers come:
a line over one long TCP connection, a new TCP connection, a UDP datagram from one connected socket.
Then prints what it saw as JSON: `retransmits` is the kernel's own count over all connections, less those whose
original arrived as well (the receiver says so by DSACK: it was only late). 0: no packet was lost.

usage: traffic.py ADDRESS TCP_PORT UDP_PORT
"""

import json
import select
import socket
import struct
import sys

# Offsets of tcpi_total_retrans and tcpi_dsack_dups (u32) in struct tcp_info, linux/tcp.h.
TCP_INFO_TOTAL_RETRANS, TCP_INFO_DSACK_DUPS, TCP_INFO_SIZE = 100, 216, 224
PATIENCE = 3.0  # seconds until an answer counts as lost
PAUSE = 0.002  # seconds between rounds


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def lost_segments(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    (sent_again,) = struct.unpack_from("I", info, TCP_INFO_TOTAL_RETRANS)
    (arrived_twice,) = struct.unpack_from("I", info, TCP_INFO_DSACK_DUPS)
    return int(sent_again) - int(arrived_twice)


def line(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        chunk = connection.recv(4096)
        if not chunk:
            raise ConnectionError("closed by the server")
        received += chunk
    return received


def main() -> None:
    address, tcp, udp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    seen = {"lines": 0, "connections": 0, "datagrams": 0, "lost_connections": 0, "lost_datagrams": 0}
    seen["retransmits"] = 0
    stream = socket.create_connection((address, tcp), PATIENCE)
    line(stream)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.settimeout(PATIENCE)
    datagrams.connect((address, udp))
    say("running")
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        stream.sendall(b"next\n")
        line(stream)
        seen["lines"] += 1
        try:
            with socket.create_connection((address, tcp), PATIENCE) as fresh:
                fresh.settimeout(PATIENCE)
                line(fresh)
                seen["retransmits"] += lost_segments(fresh)
            seen["connections"] += 1
        except OSError:
            seen["lost_connections"] += 1
        try:
            datagrams.send(b"next\n")
            datagrams.recv(4096)
            seen["datagrams"] += 1
        except OSError:
            seen["lost_datagrams"] += 1
    seen["retransmits"] += lost_segments(stream)
    say(json.dumps(seen))


if __name__ == "__main__":
    main()
