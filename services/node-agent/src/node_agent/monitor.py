"""Drops and verdicts as they happen: from the ring buffers to whoever listens."""

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from node_agent.layout import Form
from node_agent.loader import Manifest
from node_agent.maps import MapError, libbpf
from tidegate.records.addresses import unpack_address

MONITOR_DROPS, MONITOR_VERDICTS = 0x1, 0x2
RINGS = {MONITOR_DROPS: "events_drops", MONITOR_VERDICTS: "events_verdicts"}
HOOKS = ("from-pod", "to-pod", "from-network", "socket", "to-network")
DIRECTIONS = ("ingress", "egress")
QUEUE = 10_000  # events that a slow listener may lag behind

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Listener:
    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE)
        self.lost = 0

    def offer(self, event: dict[str, Any]) -> None:
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.lost += 1


class Ring:
    """One ring buffer, read when its descriptor is ready."""

    def __init__(self, path: str, received: Callable[[bytes], None]) -> None:
        self._map = int(libbpf().bpf_obj_get(os.fsencode(path)))
        if self._map < 0:
            raise MapError(-self._map, f"ring buffer {path}: {os.strerror(-self._map)}")

        def sample(_: int, data: int, size: int) -> int:
            received(ctypes.string_at(data, size))
            return 0

        self._callback = _CALLBACK(sample)  # must live as long as the ring
        new = libbpf().ring_buffer__new
        new.restype = ctypes.c_void_p
        ring = new(self._map, self._callback, None, None)
        if not ring:
            raise MapError(ctypes.get_errno(), f"ring buffer {path}: {os.strerror(ctypes.get_errno())}")
        self._ring = ctypes.c_void_p(ring)
        self.fd = int(libbpf().ring_buffer__epoll_fd(self._ring))

    def consume(self) -> None:
        libbpf().ring_buffer__consume(self._ring)

    def close(self) -> None:
        libbpf().ring_buffer__free(self._ring)
        os.close(self._map)


class Monitor:
    """Opens the rings while somebody listens; `monitor` is told which events the programs shall send (MONITOR_*)."""

    def __init__(self, manifest: Manifest, node: str, monitor: Callable[[int], None]) -> None:
        self._manifest = manifest
        self._node = node
        self._set = monitor
        self._form = Form(manifest.maps["events_drops"].value)
        self._reasons = {int(number): words[0] for number, words in manifest.reasons.items()}
        self._listeners: set[Listener] = set()
        self._rings: dict[int, Ring] = {}

    @asynccontextmanager
    async def listen(self, bits: int) -> AsyncIterator[Listener]:
        """Events of the kinds in `bits` while the context is open."""
        listener = Listener(bits)
        self._listeners.add(listener)
        self._adjust()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._adjust()

    def _adjust(self) -> None:
        wanted = 0
        for listener in self._listeners:
            wanted |= listener.bits
        loop = asyncio.get_running_loop()
        for bit, name in RINGS.items():
            if wanted & bit and bit not in self._rings:
                ring = Ring(self._manifest.maps[name].path, lambda raw, kind=bit: self._event(raw, kind))  # type: ignore[misc]
                self._rings[bit] = ring
                loop.add_reader(ring.fd, ring.consume)
            elif not wanted & bit and bit in self._rings:
                ring = self._rings.pop(bit)
                loop.remove_reader(ring.fd)
                ring.close()
        self._set(wanted)

    def _event(self, raw: bytes, kind: int) -> None:
        event = self.decode(raw)
        for listener in self._listeners:
            if listener.bits & kind:
                listener.offer(event)

    def decode(self, raw: bytes) -> dict[str, Any]:
        fields = self._form.unpack(raw[: self._form.size])
        return {
            "node": self._node,
            "time": fields["time"],
            "reason": self._reasons.get(fields["reason"], str(fields["reason"])),
            "hook": HOOKS[fields["hook"]],
            "direction": DIRECTIONS[fields["direction"]],
            "protocol": fields["protocol"],
            "source": unpack_address(fields["source"]),
            "source_port": fields["source_port"],
            "source_identity": fields["source_identity"],
            "destination": unpack_address(fields["destination"]),
            "destination_port": fields["destination_port"],
            "destination_identity": fields["destination_identity"],
            "ifindex": fields["ifindex"],
            "length": fields["length"],
            "policy": fields["policy"],
        }
