"""Pinned maps, through libbpf: the agent's only way to the kernel's state. Blocking; run it in the worker thread."""

import ctypes
import errno
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

from node_agent.layout import Form
from node_agent.loader import MapEntry
from node_agent.loader.carry import BATCH, BatchOptions, chunks, count_entries, cut, room
from node_agent.loader.pins import definition, possible_cpus


class MapError(OSError):
    """A map did not take or give what it was asked; the text names map, operation and reason."""


class MapFullError(MapError):
    """There is no room for another entry."""


@cache
def libbpf() -> ctypes.CDLL:
    """Raises OSError where there is no libbpf.so.1 (Debian: libbpf1)."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    library.libbpf_set_print(None)
    library.bpf_map_update_elem.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64)
    library.bpf_map_lookup_elem.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    library.bpf_map_delete_elem.argtypes = (ctypes.c_int, ctypes.c_char_p)
    return library


class Map:
    """One pinned map. Keys and values are bytes of the sizes that the map has."""

    def __init__(self, name: str, entry: MapEntry) -> None:
        self.name = name
        self.max_entries = entry.max_entries
        self.key = Form(entry.key)
        self.value = Form(entry.value)
        self.fd = int(libbpf().bpf_obj_get(os.fsencode(Path(entry.path))))
        if self.fd < 0:
            raise MapError(-self.fd, f"map {name}: cannot open its pin {entry.path}: {os.strerror(-self.fd)}")
        self.per_cpu = entry.type.startswith("percpu")
        self._value_room = room(definition(self.fd))

    def close(self) -> None:
        os.close(self.fd)

    def lookup(self, key: bytes) -> bytes | None:
        buffer = ctypes.create_string_buffer(self._value_room)
        result = libbpf().bpf_map_lookup_elem(self.fd, key, buffer)
        if result == -errno.ENOENT:
            return None
        self._check(result, "lookup")
        return buffer.raw

    def per_cpu_values(self, key: bytes) -> list[bytes]:
        """The value of each possible CPU."""
        raw = self.lookup(key) or b""
        step = len(raw) // possible_cpus()
        return [raw[start : start + self.value.size] for start in range(0, len(raw), step)] if raw else []

    def sums(self, index: int) -> Counter[str]:
        """Of an array that each CPU has for itself: the fields of an entry over all of them."""
        sums: Counter[str] = Counter()
        for raw in self.per_cpu_values(struct.pack("=I", index)):
            sums.update(self.value.unpack(raw))
        return sums

    def update(self, key: bytes, value: bytes) -> None:
        self._check(libbpf().bpf_map_update_elem(self.fd, key, value, 0), "update")

    def delete(self, key: bytes) -> bool:
        """Whether there was such an entry."""
        result = libbpf().bpf_map_delete_elem(self.fd, key)
        if result == -errno.ENOENT:
            return False
        self._check(result, "delete")
        return True

    def update_all(self, entries: Mapping[bytes, bytes]) -> int:
        """Writes entries in order, in batches; returns how many were written when the map turned out to be full."""
        rest = iter(entries.items())
        for start in range(0, len(entries), BATCH):
            part = [*islice(rest, BATCH)]
            keys, values = b"".join(key for key, _ in part), b"".join(value for _, value in part)
            count = ctypes.c_uint32(len(part))
            options = BatchOptions(ctypes.sizeof(BatchOptions), 0, 0)
            result = libbpf().bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), ctypes.byref(options))
            if result in (-errno.E2BIG, -errno.ENOSPC, -errno.ENOMEM):
                return start + count.value
            self._check(result, "update")
        return len(entries)

    def delete_all(self, keys: Sequence[bytes]) -> None:
        """Entries that are gone already do not matter."""
        for key in keys:
            self.delete(key)

    def count(self) -> int:
        """How many entries it holds; of a map that programs write meanwhile, about so many."""
        return count_entries(self.fd)

    def items(self) -> dict[bytes, bytes]:
        """All entries. The map must not be written meanwhile, or the kernel may give some of them twice, or not."""
        return {key: value for keys, values in self._batches() for key, value in zip(keys, values, strict=True)}

    def having(self, field: str, wanted: Set[bytes]) -> dict[bytes, bytes]:
        """Entries whose key has one of these values in the field; of what is written meanwhile some may be missing."""
        start, size = self.key.place(field)
        return {
            key: value
            for keys, values in self._batches()
            for key, value in zip(keys, values, strict=True)
            if key[start : start + size] in wanted
        }

    def _batches(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        shape = replace(definition(self.fd), value_size=self._value_room)
        try:
            for count, keys, values in chunks(self.fd, shape):
                yield (
                    cut(ctypes.string_at(keys, self.key.size * count), self.key.size),
                    cut(ctypes.string_at(values, self._value_room * count), self._value_room),
                )
        except OSError as error:
            raise MapError(error.errno, f"map {self.name}: {error.strerror}") from error

    def _check(self, result: int, what: str) -> None:
        if result >= 0:
            return
        number = -result
        if number in (errno.E2BIG, errno.ENOSPC):
            raise MapFullError(number, f"map {self.name}: full, it holds {self.max_entries} entries")
        raise MapError(number, f"map {self.name}: {what}: {os.strerror(number)}")


class Maps(Mapping[str, Map]):
    """All maps of a manifest but the ring buffers."""

    def __init__(self, entries: Mapping[str, MapEntry]) -> None:
        self._maps = {name: Map(name, entry) for name, entry in entries.items() if entry.type != "ringbuf"}

    def __getitem__(self, name: str) -> Map:
        return self._maps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def close(self) -> None:
        for opened in self._maps.values():
            opened.close()
