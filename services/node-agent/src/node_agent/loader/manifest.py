"""The manifest: what the loader tells the agent about what is pinned."""

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

MANIFEST = "manifest.json"


class Field(NamedTuple):
    """A field of a C struct. `offset` and `size` in bytes.

    Kinds: `u8 u16 u32 u64` in host order; `be16` in network order (fields named *port); `addr`, 16 bytes; `u32[]`;
    `bytes` for padding.
    """

    name: str
    offset: int
    size: int
    kind: str


class Layout(msgspec.Struct, frozen=True):
    """Key or value of a map. A key that is no struct has one field, `value`; one that is an address, `addr`."""

    size: int
    fields: tuple[Field, ...]


class MapEntry(msgspec.Struct, frozen=True):
    """A pinned map. Of ring buffers, `value` describes the event, while key_size and value_size are 0."""

    path: str
    type: str
    max_entries: int
    key_size: int
    value_size: int
    key: Layout
    value: Layout


class ProgramEntry(msgspec.Struct, frozen=True):
    """A pinned program. `type` is sched_cls, cgroup_sock or cgroup_sock_addr; `attach_type` is the kernel's name in
    lower case (cgroup_inet4_connect …), None for sched_cls."""

    path: str
    type: str
    attach_type: str | None


class Manifest(msgspec.Struct, frozen=True):
    digest: str
    programs: dict[str, ProgramEntry]
    maps: dict[str, MapEntry]
    reasons: dict[str, tuple[str, str]]  # number in decimal -> (name, text)


def read_manifest(state: Path) -> Manifest | None:
    """The manifest in the state directory, or None if there is none. Raises ValueError for one that is no manifest."""
    path = state / MANIFEST
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no manifest of the loader ({error}): remove it and load again") from error


def write_manifest(state: Path, manifest: Manifest) -> None:
    """Replaces the manifest as one step. The directory must exist."""
    write_file(state / MANIFEST, manifest)


def write_file(path: Path, content: object) -> None:
    """As JSON, in one step. The directory must exist."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content), indent=1))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
