"""Compiled programs as data: what the compiler made of one source, kept in a cache so that it is compiled once.

Programs name their maps by the places of the instructions that load them; the kernel gets descriptors there. Sizes of
maps are no part of it. What lies in the cache is as trusted as the programs themselves: its directory is root's alone.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from node_agent.loader.manifest import Layout
from node_agent.loader.pins import Definition

CACHE = Path("/var/cache/tidegate")
KEPT = 8  # objects in a cache; the oldest go
_IMMEDIATE = struct.Struct("<i")
_AT = 4  # of the immediate in an instruction of 8 bytes


class MapShape(msgspec.Struct, frozen=True):
    """`created` has any size, where maps.h leaves that open. Without layouts it is the programs' own: not pinned."""

    created: Definition
    key: Layout | None
    value: Layout | None


class Program(msgspec.Struct, frozen=True):
    """Instructions of 8 bytes each; `maps`: map → the instructions (by number) that load it."""

    code: bytes
    maps: dict[str, tuple[int, ...]]

    def linked(self, fds: Mapping[str, int]) -> bytes:
        """The instructions, with the descriptors of these maps."""
        code = bytearray(self.code)
        for name, places in self.maps.items():
            for place in places:
                _IMMEDIATE.pack_into(code, place * 8 + _AT, fds[name])
        return bytes(code)


class Object(msgspec.Struct, frozen=True):
    maps: dict[str, MapShape]
    programs: dict[str, Program]


def read_object(cache: Path, key: str) -> Object | None:
    """None where it is not there, or no object."""
    path = cache / key
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Object)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_object(cache: Path, key: str, content: Object) -> None:
    """Raises OSError."""
    beside = cache / f".{key}.{os.getpid()}"
    beside.write_bytes(msgspec.msgpack.encode(content))
    beside.rename(cache / key)
    known = sorted((path for path in cache.iterdir() if not path.name.startswith(".")), key=lambda p: p.stat().st_mtime)
    for path in known[:-KEPT]:
        path.unlink(missing_ok=True)
