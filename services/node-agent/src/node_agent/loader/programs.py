"""Programs and maps as the kernel is told of them. Free of BCC."""

import ctypes
import struct

from node_agent.loader.pins import MAP_TYPES, Definition
from node_agent.syscall import bpf

# Program -> (type, attach type) by the kernel's names; the numbers are the user API's (enum bpf_prog_type,
# enum bpf_attach_type).
PROGRAMS: dict[str, tuple[str, str | None]] = {
    "from_pod": ("sched_cls", None),
    "to_pod": ("sched_cls", None),
    "from_network": ("sched_cls", None),
    "to_network": ("sched_cls", None),
    "from_pod6": ("sched_cls", None),
    "to_pod6": ("sched_cls", None),
    "from_network6": ("sched_cls", None),
    "to_network6": ("sched_cls", None),
    "connect4": ("cgroup_sock_addr", "cgroup_inet4_connect"),
    "connect6": ("cgroup_sock_addr", "cgroup_inet6_connect"),
    "sendmsg4": ("cgroup_sock_addr", "cgroup_udp4_sendmsg"),
    "sendmsg6": ("cgroup_sock_addr", "cgroup_udp6_sendmsg"),
    "recvmsg4": ("cgroup_sock_addr", "cgroup_udp4_recvmsg"),
    "recvmsg6": ("cgroup_sock_addr", "cgroup_udp6_recvmsg"),
    "getpeername4": ("cgroup_sock_addr", "cgroup_inet4_getpeername"),
    "getpeername6": ("cgroup_sock_addr", "cgroup_inet6_getpeername"),
    "sock_release": ("cgroup_sock", "cgroup_inet_sock_release"),
}
_TYPE_NUMBERS = {"sched_cls": 3, "cgroup_sock": 9, "cgroup_sock_addr": 18}
ATTACH_NUMBERS = {
    "tcx_ingress": 46,
    "tcx_egress": 47,
    "cgroup_inet4_connect": 10,
    "cgroup_inet6_connect": 11,
    "cgroup_udp4_sendmsg": 14,
    "cgroup_udp6_sendmsg": 15,
    "cgroup_udp4_recvmsg": 19,
    "cgroup_udp6_recvmsg": 20,
    "cgroup_inet4_getpeername": 29,
    "cgroup_inet6_getpeername": 30,
    "cgroup_inet_sock_release": 34,
}
# What the kernel is told of all programs: several helpers are for GPL-compatible ones.
_LICENSE = b"GPL\0"

_MAP_CREATE, _PROG_LOAD = 0, 5
_LOG_SIZE = 16 << 20
_SHOWN_LINES = 25
_NAME = 16  # bytes, with the zero at the end


class RefusedError(Exception):
    """The kernel refuses a program; the text ends with the verifier's reason."""


def create_map(name: str, wanted: Definition) -> int:
    """A new map's descriptor. Raises OSError."""
    (kind,) = (number for number, known in MAP_TYPES.items() if known == wanted.type)
    numbers = kind, wanted.key_size, wanted.value_size, wanted.max_entries, wanted.flags, 0, 0
    attributes = struct.pack(f"=7I{_NAME}s", *numbers, name.encode()[: _NAME - 1])
    return bpf(_MAP_CREATE, attributes, f"create the map {name} ({wanted})")


def load_program(name: str, code: bytes) -> int:
    """A verified program's descriptor. Raises RefusedError, OSError."""
    try:
        return _load(name, code, None)
    except OSError as error:
        # Once more, for the reason: a log that nobody reads would cost every load.
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            return _load(name, code, log)
        except OSError:
            lines = [line for line in log.value.decode(errors="replace").splitlines() if line.strip()]
            text = "\n".join(lines[-_SHOWN_LINES:])
            raise RefusedError(f"program {name}: {error.strerror}\n{text}") from error


def _load(name: str, code: bytes, log: ctypes.Array[ctypes.c_char] | None) -> int:
    kind, attach = PROGRAMS[name]
    instructions, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LICENSE)
    attributes = struct.pack(
        f"=IIQQIIQII{_NAME}sII",
        _TYPE_NUMBERS[kind],
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_),
        1 if log else 0,
        len(log) if log else 0,
        ctypes.addressof(log) if log else 0,
        0,
        0,
        name.encode()[: _NAME - 1],
        0,
        ATTACH_NUMBERS[attach] if attach else 0,
    )
    return bpf(_PROG_LOAD, attributes, f"load the program {name}")
