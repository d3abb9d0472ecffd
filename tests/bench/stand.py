"""Running a node's programs many times over: behind the harness, on a CPU of their own."""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from scapy.layers.l2 import Ether
from scapy.packet import Packet
from tests.bench import harness
from tests.bench.load import PRIORITY
from tests.bpf.kernel import run_program, time_program
from tests.bpf.topology import Node

from node_agent.loader.pins import opened
from node_agent.maps import Map

EMPTY, ONE_LOOKUP = "nothing", "one_lookup"  # programs of harness.c
_HEADERS = 74
_FRAME = struct.Struct(f"=III{_HEADERS}s2x")  # struct frame


@dataclass(frozen=True, slots=True)
class Hop:
    """A packet that meets a program at a device of the node."""

    program: str
    device: str
    packet: Packet


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """This thread alone on the CPU, in the real-time class."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)


class Stand:
    """The harness is pinned in `directory`, of a bpffs."""

    def __init__(self, node: Node, cpu: int, directory: Path) -> None:
        self._cpu = cpu
        self._node = node
        self._manifest = node.programs.manifest
        with ExitStack() as stack:
            paths = {name: directory / name for name in (*harness.PROGRAMS, *harness.MAPS)}
            paths |= {name: Path(entry.path) for name, entry in self._manifest.programs.items()}
            self._fds = {name: stack.enter_context(opened(path)) for name, path in paths.items()}
            self._opened = stack.pop_all()
        harness.update(self._fds["known"], bytes(16), bytes(8))

    def close(self) -> None:
        self._opened.close()

    def forget(self) -> None:
        """All connections."""
        for name, entry in self._manifest.maps.items():
            if entry.type == "lru_hash":
                connections = Map(name, entry)
                connections.delete_all(list(connections.items()))
                connections.close()

    def send(self, hop: Hop) -> tuple[int, bytes]:
        """One packet: (action, the frame afterwards)."""
        self._prepare(hop, fresh=False, program=hop.program)
        action, out, _ = run_program(self._fds["restore"], _frame(hop), **self._where(hop))
        return action, out

    def time(self, hop: Hop, repeats: int, *, fresh: bool = False, program: str = "") -> int:
        """Nanoseconds a run, harness included, of the hop's program or of `program`. `fresh`: each run has another
        source port."""
        self._prepare(hop, fresh=fresh, program=program or hop.program)
        return self.time_alone("restore", hop, repeats)

    def time_alone(self, program: str, hop: Hop, repeats: int) -> int:
        """Nanoseconds a run without the harness, on the packet as it was left."""
        frame, where = _frame(hop), self._where(hop)
        with pinned(self._cpu):
            return time_program(self._fds[program], frame, repeats, **where)

    def _prepare(self, hop: Hop, *, fresh: bool, program: str) -> None:
        frame = _frame(hop)
        port_at = len(Ether() / type(hop.packet)()) if fresh else 0
        harness.update(self._fds["frames"], bytes(4), _FRAME.pack(len(frame), port_at, 0, frame[:_HEADERS]))
        harness.update(self._fds["measured"], bytes(4), struct.pack("=I", self._fds[program]))

    def _where(self, hop: Hop) -> dict[str, int]:
        namespace = self._node.namespace
        index = namespace.ifindex(hop.device)
        # What leaves by a device and has come in by none is the node's own.
        return {
            "namespace": namespace.fd,
            "ifindex": index,
            "ingress_ifindex": 0 if hop.program.startswith("to_pod") else index,
        }


def _frame(hop: Hop) -> bytes:
    return bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / hop.packet)
