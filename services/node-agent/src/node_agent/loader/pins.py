"""What lies in bpffs, through libbpf. Free of BCC."""

import ctypes
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BPFFS_MAGIC = 0xCAFE4A11

# enum bpf_map_type of the kernel's user API, as far as maps.h uses it.
MAP_TYPES = {1: "hash", 2: "array", 6: "percpu_array", 9: "lru_hash", 11: "lpm_trie", 27: "ringbuf"}


class _MapInfo(ctypes.Structure):
    # The head of struct bpf_map_info; the kernel fills as much as it is given room for.
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class _StatFs(ctypes.Structure):
    # struct statfs of Linux on 64-bit machines begins with the type of the file system.
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_long * 31))


@dataclass(frozen=True)
class Definition:
    """What a map is, as the kernel tells it. Of ring buffers max_entries is the size in bytes."""

    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    def __str__(self) -> str:
        return (
            f"{self.type}, key {self.key_size} B, value {self.value_size} B, "
            f"{self.max_entries} entries, flags {self.flags:#x}"
        )


@cache
def _libbpf() -> ctypes.CDLL:
    return ctypes.CDLL("libbpf.so.1", use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def pin(fd: int, path: Path) -> None:
    """Pins a map or program. bpffs takes no names with dots. Raises OSError."""
    _check(_libbpf().bpf_obj_pin(fd, os.fsencode(path)), f"pin {path}")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The file descriptor of a pin. Raises OSError (FileNotFoundError where there is none)."""
    fd = _check(_libbpf().bpf_obj_get(os.fsencode(path)), f"open the pin {path}")
    try:
        yield fd
    finally:
        os.close(fd)


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    return int(_libbpf().libbpf_num_possible_cpus())


def map_number(fd: int) -> int:
    """The kernel's number of the map behind the descriptor: no other one gets it until a reboot. Raises OSError."""
    return int(_info(fd).id)


def _info(fd: int) -> _MapInfo:
    info = _MapInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _check(_libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)), "ask for a map's definition")
    return info


def definition(fd: int) -> Definition:
    """What the map behind the descriptor is. Raises OSError."""
    info = _info(fd)
    name = MAP_TYPES.get(info.type, str(info.type))
    return Definition(name, info.key_size, info.value_size, info.max_entries, info.map_flags)


def is_bpffs(path: Path) -> bool:
    """Whether the existing directory lies in a mounted bpffs."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = _StatFs()
    if libc.statfs(os.fsencode(path), ctypes.byref(buffer)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"statfs {path}: {os.strerror(error)}")
    return bool(buffer.f_type & 0xFFFFFFFF == BPFFS_MAGIC)


def prune(bpffs: Path, digest: str, maps: Collection[str]) -> list[str]:
    """Removes the pins of all programs but those of one digest, and of all maps but its own; returns the digests gone.

    Programs that are still attached through a link live on until the link goes, and their maps with them: call it after
    the links were moved.
    """
    for path in (bpffs / "maps").glob("*"):
        if path.name not in maps:
            path.unlink()
    gone = sorted(path.name for path in (bpffs / "programs").glob("*") if path.name != digest)
    for name in gone:
        shutil.rmtree(bpffs / "programs" / name)
    return gone
