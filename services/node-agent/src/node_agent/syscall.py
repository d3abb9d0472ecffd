"""bpf(2), for what Debian's libbpf 1.1 does not offer as it is needed here: links on tcx hooks, programs from bytes."""

import ctypes
import os
from functools import cache

_NR_BPF = {"x86_64": 321, "aarch64": 280}
_ROOM = 128  # what of union bpf_attr is handed over


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes, what: str) -> int:
    """Raises OSError, whose text begins with `what`."""
    room = ctypes.create_string_buffer(attributes, _ROOM)
    number = _NR_BPF[os.uname().machine]
    result = int(_libc().syscall(number, command, room, _ROOM))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
