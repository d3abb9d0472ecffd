"""Many watches of etcd in one process, each on a connection of its own as an agent's is, that count what they are told.

    python -m tests.scale.watcher --endpoint 127.0.0.1:2379 --count 500 --prefix /tidegate/c/v1/ --position 1

For each line of standard input it prints a line of JSON: Report. It speaks as much of HTTP/2 (RFC 9113) and gRPC as one
watch needs: a full client takes ten times as much for an event as etcd does, and would be what is measured.
"""

import asyncio
import struct
import sys
import time
from collections.abc import Sequence

import click
import msgspec
from etcd3aio._protobuf import WatchResponse

from tidegate.runtime.retry import Backoff
from tidegate.store.watch import watch_request

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
FRAME = struct.Struct(">HBBBI")  # length (upper and lowest bytes), type, flags, stream
WIDEST = 2**31 - 1  # of a window: no update is ever due
REQUEST = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/etcdserverpb.Watch/Watch",
    ":authority": "etcd",
    "content-type": "application/grpc",
    "te": "trailers",
}
OPENED = 200  # connections a second at the beginning


class Report(msgspec.Struct):
    """Sums over all watches since the process began."""

    standing: int  # watches that etcd has acknowledged, and that are not lost
    messages: int
    events: int
    bytes: int  # of everything received
    lowest: int  # revision that the last of the watches has come to
    lost: int  # connections
    back: list[float]  # monotonic seconds when a lost watch stood again
    seen: list[tuple[int, float]]  # revisions, and when the first of the watches was told, since the last report


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return FRAME.pack(len(content) >> 8, len(content) & 255, kind, flags, stream) + content


def opening(prefix: str, position: int) -> bytes:
    """What a client sends for one watch of everything after `position`."""
    fields = b"".join(_literal(name) + _text(value) for name, value in REQUEST.items())
    message = watch_request(prefix, position).SerializeToString()
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WIDEST)),  # SETTINGS_INITIAL_WINDOW_SIZE
            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WIDEST - 65535)),
            frame(HEADERS, END_HEADERS, 1, fields),
            frame(DATA, 0, 1, struct.pack(">BI", 0, len(message)) + message),
        )
    )


def _literal(name: str) -> bytes:
    return b"\0" + _text(name)  # a field without indexing, its name in full (RFC 7541, 6.2.2)


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


class Watch(asyncio.Protocol):
    """One connection. `told` is given each response, `ended` is called once."""

    def __init__(self, watcher: "Watcher") -> None:
        self._watcher = watcher
        self._rest = b""
        self._messages = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(opening(self._watcher.prefix, self._watcher.position))

    def connection_lost(self, _: Exception | None) -> None:
        self._watcher.lost()

    def data_received(self, data: bytes) -> None:
        self._watcher.totals.bytes += len(data)
        data, start = self._rest + data, 0
        while len(data) - start >= FRAME.size:
            upper, lowest, kind, flags, _ = FRAME.unpack_from(data, start)
            end = start + FRAME.size + (upper << 8 | lowest)
            if end > len(data):
                break
            self._frame(kind, flags, data[start + FRAME.size : end])
            start = end
        self._rest = data[start:]

    def _frame(self, kind: int, flags: int, content: bytes) -> None:
        assert self._transport is not None
        if kind == DATA:
            self._take(content)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, content if kind == PING else b""))
        elif kind in (RESET, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            self._transport.close()

    def _take(self, content: bytes) -> None:
        self._messages += content
        while len(self._messages) >= 5:
            end = 5 + int.from_bytes(self._messages[1:5], "big")
            if len(self._messages) < end:
                return
            self._watcher.told(WatchResponse.FromString(self._messages[5:end]))
            self._messages = self._messages[end:]


class Watcher:
    """One node's watch, over its connections."""

    def __init__(self, endpoint: tuple[str, int], prefix: str, position: int, totals: Report, first: bool) -> None:
        self.prefix = prefix
        self.position = position
        self.totals = totals
        self._endpoint = endpoint
        self._first = first
        self._standing = False
        self._was_lost = False
        self._backoff = Backoff()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Connects, and connects again as the store does. Never returns."""
        loop = asyncio.get_running_loop()
        while True:
            self._over.clear()
            try:
                await loop.create_connection(lambda: Watch(self), *self._endpoint)
                await self._over.wait()
            except OSError:
                pass
            await self._backoff.wait()

    def lost(self) -> None:
        self.totals.lost += 1
        self.totals.standing -= self._standing
        self._standing, self._was_lost = False, True
        self._over.set()

    def told(self, response: WatchResponse) -> None:
        if response.canceled:
            raise RuntimeError(f"the watch was cancelled: {response.cancel_reason or response.compact_revision}")
        if response.created:
            self._standing = True
            self._backoff.reset()
            self.totals.standing += 1
            if self._was_lost:
                self.totals.back.append(time.monotonic())
        self.totals.messages += 1
        self.totals.events += len(response.events)
        if response.events:
            if self._first:
                now = time.monotonic()
                revisions = {event.kv.mod_revision for event in response.events}
                self.totals.seen += [(revision, now) for revision in sorted(revisions)]
            self.position = response.events[-1].kv.mod_revision


async def serve(endpoints: Sequence[str], count: int, prefix: str, position: int) -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    totals = Report(0, 0, 0, 0, 0, 0, [], [])
    places = [(host, int(port)) for host, _, port in (endpoint.rpartition(":") for endpoint in endpoints)]
    watchers: list[Watcher] = []

    async def begin(group: asyncio.TaskGroup) -> None:
        for number in range(count):
            watchers.append(Watcher(places[number % len(places)], prefix, position, totals, number == 0))
            group.create_task(watchers[-1].run())
            await asyncio.sleep(1 / OPENED)

    async with asyncio.TaskGroup() as group:
        group.create_task(begin(group))
        async for _ in orders:
            totals.lowest = min(watcher.position for watcher in watchers)
            click.echo(msgspec.json.encode(totals))
            totals.seen = []
        raise SystemExit(0)


@click.command()
@click.option("--endpoint", "endpoints", multiple=True, required=True, metavar="HOST:PORT", help="In turn.")
@click.option("--count", default=1, show_default=True, help="So many watches.")
@click.option("--prefix", required=True)
@click.option("--position", type=int, required=True, help="Revision after which they begin.")
def main(endpoints: tuple[str, ...], count: int, prefix: str, position: int) -> None:
    """Watches until the end of standard input."""
    asyncio.run(serve(endpoints, count, prefix, position))


if __name__ == "__main__":
    main()
