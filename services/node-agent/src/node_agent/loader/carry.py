"""Entries of one map in another of the same kind: how a map gets another size without losing what it holds.

A map's size is fixed when it is made. So a new map takes the entries of the old one before any program uses it. What
only the agent writes is whole then. What programs write goes on changing in the old map until the last link has been
moved: its pin is kept under `<bpffs>/replaced/`, and what came later is added by `catch_up`. Free of BCC.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from node_agent.loader.pins import Definition, definition, opened, pin

# Kinds of maps whose entries can be carried over.
CARRIED = frozenset({"hash", "lru_hash", "lpm_trie", "array"})
BATCH = 4096  # entries to a system call
_BPF_NOEXIST = 1

_Buffer = ctypes.Array[ctypes.c_char]


class BatchOptions(ctypes.Structure):
    # struct bpf_map_batch_opts
    _fields_ = (("size", ctypes.c_size_t), ("elem_flags", ctypes.c_uint64), ("flags", ctypes.c_uint64))


@cache
def _libbpf() -> ctypes.CDLL:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    library.bpf_map_update_elem.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64)
    return library


def chunks(fd: int, shape: Definition) -> Iterator[tuple[int, _Buffer, _Buffer]]:
    """Number of entries, keys, values; the buffers are filled anew each time. Raises OSError."""
    position = ctypes.create_string_buffer(max(shape.key_size, 4))
    keys = ctypes.create_string_buffer(shape.key_size * BATCH)
    values = ctypes.create_string_buffer(shape.value_size * BATCH)
    first = True
    while True:
        count = ctypes.c_uint32(BATCH)
        options = BatchOptions(ctypes.sizeof(BatchOptions), 0, 0)
        before = None if first else position
        result = _libbpf().bpf_map_lookup_batch(
            fd, before, position, keys, values, ctypes.byref(count), ctypes.byref(options)
        )
        if result < 0 and result != -errno.ENOENT:
            raise OSError(-result, f"read the entries of a map ({shape}): {os.strerror(-result)}")
        if count.value:
            yield count.value, keys, values
        if result == -errno.ENOENT or not count.value:
            return
        first = False


def count(fd: int, shape: Definition) -> int:
    """How many entries the map holds. Raises OSError."""
    return sum(number for number, _, _ in chunks(fd, shape))


def count_entries(fd: int) -> int:
    """The same of a map whose definition is not known. Raises OSError."""
    return count(fd, definition(fd))


def copy(source: int, target: int, shape: Definition) -> int:
    """All entries of one map into another; returns how many. Raises OSError."""
    copied = 0
    for number, keys, values in chunks(source, shape):
        written = ctypes.c_uint32(number)
        options = BatchOptions(ctypes.sizeof(BatchOptions), 0, 0)
        result = _libbpf().bpf_map_update_batch(target, keys, values, ctypes.byref(written), ctypes.byref(options))
        if result < 0:
            raise OSError(-result, f"copy the entries of a map ({shape}): {os.strerror(-result)}")
        copied += number
    return copied


def add_missing(source: int, target: int, shape: Definition) -> int:
    """Entries whose keys the other map does not have; returns how many. What is there is newer. Raises OSError."""
    added = 0
    for number, keys, values in chunks(source, shape):
        all_keys, all_values = keys.raw, values.raw
        for index in range(number):
            key = all_keys[index * shape.key_size : (index + 1) * shape.key_size]
            value = all_values[index * shape.value_size : (index + 1) * shape.value_size]
            result = _libbpf().bpf_map_update_elem(target, key, value, _BPF_NOEXIST)
            if result == 0:
                added += 1
            elif result != -errno.EEXIST:
                raise OSError(-result, f"add an entry to a map ({shape}): {os.strerror(-result)}")
    return added


def _replaced(bpffs: Path) -> Path:
    return bpffs / "replaced"


def retain(bpffs: Path, digest: str, name: str, fd: int) -> None:
    """Pins the map that programs of this digest use until `catch_up`. Raises OSError."""
    directory = _replaced(bpffs) / digest
    directory.mkdir(parents=True, exist_ok=True)
    # Where there is one, a loader died: that one is what the programs use, this one has only been filled from it.
    if not (directory / name).exists():
        pin(fd, directory / name)


def forget(bpffs: Path, name: str) -> None:
    """The map's entries are not to be carried over: they mean something else now."""
    for path in _replaced(bpffs).glob(f"*/{name}"):
        path.unlink()


def catch_up(bpffs: Path, *, last: bool = False) -> int:
    """Adds what programs have written to replaced maps since they were copied; returns how many entries.

    `last`: all links have been moved, so nobody writes there any more and the old maps go. Raises OSError.
    """
    added = 0
    for path in sorted(_replaced(bpffs).glob("*/*")):
        with opened(path) as source, opened(bpffs / "maps" / path.name) as target:
            had, has = definition(source), definition(target)
            if replace(had, max_entries=has.max_entries) == has:
                added += add_missing(source, target, has)
    if last:
        shutil.rmtree(_replaced(bpffs), ignore_errors=True)
    return added
