"""What the maps cost in kernel memory: empty, for each entry, and full. `python tests/scale/map_memory.py` as root.

Makes each map with its default size outside of any bpffs, fills it with arbitrary entries, and reads `memlock` of its
descriptor (/proc/self/fdinfo), in which the kernel counts what the map has taken.
"""

import ctypes
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from node_agent.loader.load import _find_or_compile, _sized
from node_agent.loader.objects import CACHE, MapShape
from node_agent.loader.pins import Definition
from node_agent.loader.programs import create_map
from node_agent.loader.source import find_source, read_source

MIB = 1 << 20


def memlock(fd: int) -> int:
    """Bytes."""
    found = re.search(r"^memlock:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def keys(shape: Definition) -> Iterator[bytes]:
    """As many different ones as the map holds; those of an LPM trie have their length in bits first."""
    for number in range(shape.max_entries):
        tail = number.to_bytes(8, "little")[: shape.key_size].ljust(shape.key_size, b"\1")
        if shape.type == "lpm_trie":
            length = shape.key_size - 4
            tail = (8 * length).to_bytes(4, "little") + number.to_bytes(8, "big").ljust(length, b"\1")
        yield tail


def fill(fd: int, shape: Definition) -> int:
    libbpf = ctypes.CDLL("libbpf.so.1")
    value = bytes(shape.value_size)
    written = 0
    for key in keys(shape):
        if libbpf.bpf_map_update_elem(fd, key, value, ctypes.c_uint64(0)) < 0:
            break
        written += 1
    return written


def measure(name: str, shape: Definition) -> dict[str, object]:
    fd = create_map(name, shape)
    try:
        empty = memlock(fd)
        entries = fill(fd, shape)
        full = memlock(fd)
    finally:
        os.close(fd)
    return {"map": name, "type": shape.type, "entries": entries, "empty": empty, "full": full}


def main() -> None:
    source = read_source(find_source(), {})
    content, _ = _find_or_compile(Path(sys.argv[1]) if sys.argv[1:] else CACHE, find_source(), source)
    shapes: dict[str, MapShape] = content.maps
    rows = [
        measure(name, _sized(source, name, shape))
        for name, shape in shapes.items()
        if shape.created.type in ("hash", "lru_hash", "lpm_trie") and name in source.sizes
    ]
    for row in rows:
        empty, full, entries = int(str(row["empty"])), int(str(row["full"])), int(str(row["entries"]))
        each = (full - empty) / entries
        shown = f"| `{row['map']}` | {row['type']} | {entries:,} | {empty / MIB:.1f} | {each:.0f} | {full / MIB:.1f} |"
        print(shown)  # noqa: T201  # a script's result
    total_empty, total = (sum(int(str(row[name])) for row in rows) / MIB for name in ("empty", "full"))
    print(json.dumps({"empty_mib": round(total_empty, 1), "full_mib": round(total, 1)}))  # noqa: T201


if __name__ == "__main__":
    main()
