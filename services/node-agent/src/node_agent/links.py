"""Links: programs on tcx hooks and cgroups, pinned so that they outlive the agent."""

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from node_agent.loader.programs import ATTACH_NUMBERS as ATTACH
from node_agent.syscall import bpf

LINK_CGROUP = 3  # enum bpf_link_type
LOOPBACK = 1  # ifindex, in every network namespace

OBJ_PIN, OBJ_GET, GET_INFO, LINK_CREATE, LINK_UPDATE = 6, 7, 15, 28, 29


def _path_call(command: int, path: Path, fd: int, what: str) -> int:
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(command, struct.pack("=QII", ctypes.addressof(name), fd, 0), what)


def open_pin(path: Path) -> int:
    """File descriptor of what is pinned there. Raises FileNotFoundError, OSError."""
    return _path_call(OBJ_GET, path, 0, f"open the pin {path}")


def pin(fd: int, path: Path) -> None:
    _path_call(OBJ_PIN, path, fd, f"pin {path}")


_BEFORE_LINK = 1 << 3 | 1 << 13  # BPF_F_BEFORE, BPF_F_LINK


def create(program: int, target: int, attach: str, before: int | None = None) -> int:
    """Attaches a program to an ifindex (tcx) or to the descriptor of a cgroup directory; the link's descriptor.
    `before`: a link of the same tcx hook, whose program is to run later.

    Raises OSError; EINVAL where the kernel does not know the hook (tcx: before 6.6).
    """
    place = struct.pack("=II", 0, 0) if before is None else struct.pack("=II", _BEFORE_LINK, before)
    attributes = struct.pack("=III", program, target, ATTACH[attach]) + place
    return bpf(LINK_CREATE, attributes, f"attach to {attach}")


def update(link: int, program: int) -> None:
    """Puts another program in the place of the link's, as one step."""
    bpf(LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0), "replace the program of a link")


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """`target` is the ifindex of a tcx link (0: the device is gone), or the id of the cgroup."""

    program: int
    target: int


def _info(fd: int, size: int) -> bytes:
    room = ctypes.create_string_buffer(size)
    bpf(GET_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(room)), "ask the kernel about an eBPF object")
    return room.raw


def link_info(link: int, attach: str) -> LinkInfo:
    raw = _info(link, 64)  # struct bpf_link_info: type, id, prog_id, padding, then the kind's own
    (program,) = struct.unpack_from("=I", raw, 8)
    (target,) = struct.unpack_from("=I" if attach.startswith("tcx") else "=Q", raw, 16)
    return LinkInfo(program, target)


def is_attached(link: int) -> bool:
    """Whether it still has its device or cgroup: the kernel puts 0 in the place of one that is gone or was detached."""
    kind, _, _, _, index, rest = struct.unpack_from("=6I", _info(link, 64))
    return bool(index or (kind == LINK_CGROUP and rest))


def program_of(link: int) -> int:
    """The id of the link's program."""
    return int(struct.unpack_from("=I", _info(link, 64), 8)[0])


def program_id(fd: int) -> int:
    return int(struct.unpack_from("=I", _info(fd, 16), 4)[0])  # struct bpf_prog_info: type, id


def has_tcx(program: int) -> bool:
    """Whether the kernel has tcx hooks (6.6 and later): attaches a sched_cls program to the loopback for a moment."""
    try:
        os.close(create(program, LOOPBACK, "tcx_egress"))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
