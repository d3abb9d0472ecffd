"""Keys and values of maps as bytes, by the layouts that the loader took from the C types."""

import struct
from collections.abc import Callable
from typing import Any

from node_agent.loader import Field, Layout

Value = int | bytes | tuple[int, ...]

_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "be16": "2s", "addr": "16s"}


class Form:
    """Packs and unpacks one layout. Fields that are not given are zero; those named pad… never need to be."""

    def __init__(self, layout: Layout) -> None:
        self.size = layout.size
        self._fields = layout.fields
        self._struct = struct.Struct("=" + "".join(map(_code, layout.fields)))
        if self._struct.size != layout.size:
            raise ValueError(f"a layout of {layout.size} bytes packs into {self._struct.size}")

    def pack(self, **values: Value) -> bytes:
        """Raises KeyError for a field that the layout does not have: the C types and this code have parted ways."""
        parts: list[Any] = []
        for name, _, size, kind in self._fields:
            value = values.pop(name, None)
            if kind == "be16":
                parts.append(int(value or 0).to_bytes(2, "big"))  # type: ignore[arg-type]
            elif kind == "u32[]":
                numbers = tuple(value) if isinstance(value, tuple) else ()
                parts.extend(numbers + (0,) * (size // 4 - len(numbers)))
            elif kind in ("addr", "bytes"):
                parts.append(value if value is not None else bytes(size))
            else:
                parts.append(value or 0)
        if values:
            raise KeyError(f"no field {', '.join(values)} in this layout")
        return self._struct.pack(*parts)

    def packer(self, *names: str) -> Callable[..., bytes]:
        """Packs these fields alone, given in the order of the layout: for what is packed very often.

        Raises KeyError as `pack` does, and for ports beside numbers of several bytes, whose order is another one.
        """
        return self._part(names).pack

    def unpacker(self, *names: str) -> Callable[[bytes], tuple[Any, ...]]:
        """The way back: these fields alone."""
        return self._part(names).unpack

    def _part(self, names: tuple[str, ...]) -> struct.Struct:
        kinds = {field.name: field.kind for field in self._fields if field.name in names}
        has_ports = "be16" in kinds.values()
        if names != tuple(kinds) or (has_ports and not {"u16", "u32", "u64", "u32[]"}.isdisjoint(kinds.values())):
            raise KeyError(f"no fields {', '.join(names)} that this layout packs together")
        codes = {field.name: "H" if field.kind == "be16" else _code(field) for field in self._fields}
        whole = "".join(codes[field.name] if field.name in kinds else f"{field.size}x" for field in self._fields)
        return struct.Struct((">" if has_ports else "=") + whole)

    def place(self, name: str) -> tuple[int, int]:
        """Offset and size of a field."""
        return next((offset, size) for known, offset, size, _ in self._fields if known == name)

    def unpack(self, raw: bytes) -> dict[str, Any]:
        """Field → value; ports as numbers, arrays as tuples."""
        flat = iter(self._struct.unpack(raw))
        found: dict[str, Any] = {}
        for name, _, size, kind in self._fields:
            if kind == "u32[]":
                found[name] = tuple(next(flat) for _ in range(size // 4))
            else:
                value = next(flat)
                found[name] = int.from_bytes(value, "big") if kind == "be16" else value
        return found


def _code(field: Field) -> str:
    if field.kind == "u32[]":
        return f"{field.size // 4}I"
    return _CODES.get(field.kind, f"{field.size}s")
