"""Entries of one map in another: how a map gets another size, or another layout, without losing what it holds.

Both are fixed when a map is made. So a new map takes the entries of the old one, field by field (`convert`), before any
program uses it. What only the agent writes is whole then. What programs write goes on changing in the old map until the
last link has been moved: its pin is kept under `<bpffs>/replaced/`. Until the first link is moved (`begin`), `catch_up`
makes the new map what the old one is; from then on both are written to, and it adds what the new one does not have.
Free of BCC.
"""

import ctypes
import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from node_agent.loader.convert import Conversion, UnlikeError, convert
from node_agent.loader.pins import Definition, definition, map_number, opened, pin, possible_cpus
from node_agent.loader.shapes import Shape, read_shapes

_HASHES, _ARRAYS = frozenset({"hash", "lru_hash"}), frozenset({"array", "percpu_array"})
# Kinds of maps whose entries can be carried over.
CARRIED = _HASHES | _ARRAYS | {"lpm_trie"}
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


def room(shape: Definition) -> int:
    """Bytes that the kernel gives for a value: per-CPU maps have one for each CPU there may be, padded to 8 bytes."""
    return -(-shape.value_size // 8) * 8 * possible_cpus() if shape.type.startswith("percpu") else shape.value_size


def count_entries(fd: int) -> int:
    """How many entries the map holds. Raises OSError."""
    shape = definition(fd)
    return sum(number for number, _, _ in chunks(fd, replace(shape, value_size=room(shape))))


class Transfer:
    """From one map to another, of another size or, by `was` and `now`, with other fields. None: not known."""

    def __init__(self, source: int, target: int, was: Shape | None, now: Shape | None) -> None:
        """Raises UnlikeError, OSError."""
        self._source, self._target = source, target
        self._had, self._has = definition(source), definition(target)
        self._key, self._value = conversions(self._had, self._has, was, now)

    def copy(self) -> int:
        """All entries; returns how many. Raises OSError."""
        return sum(self._write(keys, values, number) for number, keys, values in self._converted())

    def mirror(self) -> int:
        """All entries, and no others; returns how many. Raises OSError."""
        others = set() if self._has.type in _ARRAYS else self._keys()
        copied = 0
        for number, keys, values in self._converted():
            copied += self._write(keys, values, number)
            others.difference_update(cut(keys, self._has.key_size))
        for key in others:
            _libbpf().bpf_map_delete_elem(self._target, key)
        return copied

    def add_missing(self) -> int:
        """Entries whose keys the other map does not have; returns how many. What is there is newer. Raises OSError."""
        there = self._keys()
        added = 0
        for _, keys, values in self._converted():
            for key, value in zip(cut(keys, self._has.key_size), cut(values, room(self._has)), strict=True):
                if key in there:
                    continue
                result = _libbpf().bpf_map_update_elem(self._target, key, value, _BPF_NOEXIST)
                if result == 0:
                    added += 1
                elif result not in (-errno.EEXIST, -errno.E2BIG):
                    raise OSError(-result, f"add an entry to a map ({self._has}): {os.strerror(-result)}")
        return added

    def _converted(self) -> Iterator[tuple[int, bytes, bytes]]:
        had, has = room(self._had), room(self._has)
        pieces = had // self._value.before
        for number, raw_keys, raw_values in chunks(self._source, replace(self._had, value_size=had)):
            keys, values = raw_keys.raw[: number * self._had.key_size], raw_values.raw[: number * had]
            left_out = self._key.losing(keys) | {piece // pieces for piece in self._value.losing(values)}
            if self._has.type in _ARRAYS:
                indices = (index for (index,) in struct.iter_unpack("=I", keys))
                left_out |= {place for place, index in enumerate(indices) if index >= self._has.max_entries}
            keys, values = self._key(keys), self._value(values)
            if left_out:
                kept = [place for place in range(number) if place not in left_out]
                keys = b"".join(keys[p * self._has.key_size :][: self._has.key_size] for p in kept)
                values = b"".join(values[p * has :][:has] for p in kept)
            yield number - len(left_out), keys, values

    def _write(self, keys: bytes, values: bytes, number: int) -> int:
        """How many found room."""
        if not number:
            return 0
        written = ctypes.c_uint32(number)
        options = BatchOptions(ctypes.sizeof(BatchOptions), 0, 0)
        result = _libbpf().bpf_map_update_batch(
            self._target, keys, values, ctypes.byref(written), ctypes.byref(options)
        )
        if result < 0 and result != -errno.E2BIG:
            raise OSError(-result, f"copy the entries of a map ({self._has}): {os.strerror(-result)}")
        return written.value

    def _keys(self) -> set[bytes]:
        found: set[bytes] = set()
        for number, keys, _ in chunks(self._target, replace(self._has, value_size=room(self._has))):
            found.update(cut(keys.raw[: number * self._has.key_size], self._has.key_size))
        return found


def cut(raw: bytes, size: int) -> list[bytes]:
    """Pieces of so many bytes."""
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def conversions(
    had: Definition, has: Definition, was: Shape | None, now: Shape | None
) -> tuple[Conversion, Conversion]:
    """Of keys and of values. `was` and `now`: what is known of their fields. Raises UnlikeError."""
    if has.type not in CARRIED or (had.type != has.type and not {had.type, has.type} <= _HASHES):
        raise UnlikeError(f"it was a {had.type} and is a {has.type}")
    if was is None or now is None:
        if (had.key_size, had.value_size) != (has.key_size, has.value_size):
            raise UnlikeError("what it holds has not been noted")
        return Conversion(has.key_size, has.key_size), Conversion(has.value_size, has.value_size)
    if was.key != now.key and has.type == "lpm_trie":
        raise UnlikeError("another key, in whose bits prefixes count")
    return convert(was.key, now.key), convert(was.value, now.value, 8 if has.type.startswith("percpu") else 1)


def _replaced(bpffs: Path) -> Path:
    return bpffs / "replaced"


def _moving(bpffs: Path) -> Path:
    return bpffs / "moving"


def retained(bpffs: Path) -> list[Path]:
    """Maps that programs use, or have used, in whose place there are others now."""
    return sorted(_replaced(bpffs).glob("*/*"))


def retain(bpffs: Path, digest: str, name: str, fd: int) -> None:
    """Pins the map that programs of this digest use until `catch_up`. Raises OSError."""
    # Where there is one already and no link has been moved: that one is what the programs use, this one has only been
    # filled from it.
    if not _moving(bpffs).exists() and any(path.name == name for path in retained(bpffs)):
        return
    directory = _replaced(bpffs) / digest
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / name).exists():
        pin(fd, directory / name)


def forget(bpffs: Path, name: str) -> None:
    """The map's entries are not to be carried over."""
    for path in _replaced(bpffs).glob(f"*/{name}"):
        path.unlink()


def begin(bpffs: Path) -> None:
    """From now on programs may look into the new maps: what stands there counts."""
    if retained(bpffs):
        _moving(bpffs).mkdir(exist_ok=True)


def catch_up(bpffs: Path, state: Path, *, last: bool = False) -> int:
    """What programs have written to replaced maps since they were copied; returns how many entries.

    `last`: all links have been moved, so nobody writes there any more and the old maps go. Raises OSError, ValueError.
    """
    bring: Callable[[Transfer], int] = Transfer.add_missing if _moving(bpffs).exists() else Transfer.mirror
    brought = 0
    shapes = read_shapes(state)
    for path in retained(bpffs):
        now = bpffs / "maps" / path.name
        if not now.exists():
            continue
        with opened(path) as source, opened(now) as target:
            try:
                found = Transfer(source, target, *(shapes.get(map_number(fd)) for fd in (source, target)))
            except UnlikeError:
                continue  # what programs begin anew is told by the loader, once
            brought += bring(found)
    if last:
        shutil.rmtree(_replaced(bpffs), ignore_errors=True)
        if _moving(bpffs).exists():
            _moving(bpffs).rmdir()
    return brought
