"""What runs in a pod of the playground: answers on all its ports with one line that says who answered.

Standard library only, and little of it: there is one of these processes a pod.

    <namespace>/<pod> <node> <peer address as seen> <protocol> <port>

TCP: the line on connect, then once more for each line that comes in. UDP: the line for each datagram, from the address
that was asked. SIGTERM: no new connections; ends when the open ones are closed, or at a second SIGTERM.

usage: responder.py NAMESPACE/POD NODE PROTOCOL:PORT …
"""

import contextlib
import selectors
import signal
import socket
import sys

IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
SCTP = 132


class Responder:
    def __init__(self, name: str, node: str) -> None:
        self.name = name
        self.node = node
        self.selector = selectors.DefaultSelector()
        self.listening: list[socket.socket] = []
        self.open = 0
        self.stopping = False

    def line(self, peer: str, protocol: str, port: int) -> bytes:
        seen = peer.removeprefix("::ffff:")
        return f"{self.name} {self.node} {seen} {protocol} {port}\n".encode()

    def serve(self, protocol: str, port: int) -> None:
        kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
        number = SCTP if protocol == "SCTP" else 0
        listener = socket.socket(socket.AF_INET6, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setblocking(False)
        if protocol == "UDP":
            listener.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        listener.bind(("::", port))
        if protocol != "UDP":
            listener.listen(1024)
        handle = self.datagram if protocol == "UDP" else self.accept
        self.selector.register(listener, selectors.EVENT_READ, (handle, protocol, port))
        self.listening.append(listener)

    def datagram(self, listener: socket.socket, protocol: str, port: int) -> None:
        with contextlib.suppress(OSError):  # the peer may be gone
            _, control, _, peer = listener.recvmsg(65536, 256)
            # Answer from the address that was asked, not from the one that the route would choose.
            source = [(level, kind, data) for level, kind, data in control if kind == IPV6_PKTINFO]
            listener.sendmsg([self.line(peer[0], protocol, port)], source, 0, peer)

    def accept(self, listener: socket.socket, protocol: str, port: int) -> None:
        try:
            connection, peer = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self.open += 1
        self.selector.register(connection, selectors.EVENT_READ, (self.stream, self.line(peer[0], protocol, port), b""))
        self.send(connection, self.line(peer[0], protocol, port))

    def stream(self, connection: socket.socket, line: bytes, _: bytes) -> None:
        try:
            received = connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            self.close(connection)
            return
        self.send(connection, line * received.count(b"\n"))

    def send(self, connection: socket.socket, data: bytes) -> None:
        try:
            connection.sendall(data)
        except OSError:
            self.close(connection)

    def close(self, connection: socket.socket) -> None:
        if connection.fileno() < 0:
            return
        self.selector.unregister(connection)
        connection.close()
        self.open -= 1

    def stop(self, *_: object) -> None:
        if self.stopping:
            raise SystemExit(0)
        self.stopping = True
        for listener in self.listening:
            self.selector.unregister(listener)
            listener.close()

    def run(self) -> None:
        while not self.stopping or self.open:
            for key, _ in self.selector.select(0.2 if self.stopping else None):
                if key.fileobj.fileno() >= 0:  # type: ignore[union-attr]  # one event may close another's socket
                    handle, first, second = key.data
                    handle(key.fileobj, first, second)


def main() -> None:
    responder = Responder(sys.argv[1], sys.argv[2])
    signal.signal(signal.SIGTERM, responder.stop)
    for text in sys.argv[3:]:
        protocol, _, port = text.partition(":")
        try:
            responder.serve(protocol, int(port))
        except OSError as error:
            sys.stderr.write(f"{protocol} port {port}: {error}\n")
    responder.run()


if __name__ == "__main__":
    main()
