"""Keys and values of one layout in another: fields of the same name keep what they hold. Pure.

A field that is new is zero, one that is gone is dropped. Numbers may become wider or narrower, and arrays longer or
shorter, as long as nothing is lost by it. Bytes are little-endian, as all machines that this runs on.
"""

from dataclasses import dataclass

from node_agent.loader.manifest import Field, Layout

_NUMBERS = frozenset({"u8", "u16", "u32", "u64"})


class UnlikeError(ValueError):
    """What the one layout holds has no place in the other; the text says why."""


@dataclass(frozen=True)
class Conversion:
    """Of pieces one behind the other, of `before` bytes each and then of `after`. `columns`: which byte of a piece
    becomes which; None: all stay as they are. `lost`: bytes of a piece that have no place, and so must be zero."""

    before: int
    after: int
    columns: tuple[tuple[int, int], ...] | None = None
    lost: tuple[int, ...] = ()

    def __call__(self, raw: bytes) -> bytes:
        if self.columns is None:
            return raw
        converted = bytearray(len(raw) // self.before * self.after)
        for old, new in self.columns:
            converted[new :: self.after] = raw[old :: self.before]
        return bytes(converted)

    def losing(self, raw: bytes) -> set[int]:
        """Numbers of the pieces that would lose something."""
        columns = (raw[place :: self.before] for place in self.lost)
        return {number for column in columns if any(column) for number, byte in enumerate(column) if byte}


def convert(old: Layout, new: Layout, step: int = 1) -> Conversion:
    """`step`: pieces begin at multiples of so many bytes. Raises UnlikeError."""
    before, after = (-(-layout.size // step) * step for layout in (old, new))
    if old == new:
        return Conversion(before, after)
    known = {field.name: field for field in old.fields if not _is_padding(field)}
    columns: list[tuple[int, int]] = []
    lost: list[int] = []
    for field in new.fields:
        if (was := known.get(field.name)) is None:
            continue
        if was.kind != field.kind and not {was.kind, field.kind} <= _NUMBERS:
            raise UnlikeError(f"the field {field.name} was {was.kind} and is {field.kind}")
        kept = min(was.size, field.size)
        columns += [(was.offset + byte, field.offset + byte) for byte in range(kept)]
        lost += range(was.offset + kept, was.offset + was.size)
    if not columns:
        raise UnlikeError("no field has kept its name")
    return Conversion(before, after, tuple(columns), tuple(lost))


def _is_padding(field: Field) -> bool:
    return field.name.startswith(("pad", "__pad"))
