"""Records to msgpack and back."""

from functools import cache
from typing import Any, TypeVar

import msgpack
import msgspec

from tidegate.records.schema import VERSION, Record

R = TypeVar("R", bound=Record)

_decoder = cache(msgspec.msgpack.Decoder)
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
# Behind the byte that opens the map: its first key `v`, and the major version of the pair.
_OURS = b"\xa1v\x92" + bytes([VERSION[0]])


class RecordError(ValueError):
    """A value in etcd that is no record of the expected kind; the text says what is wrong with it."""


def encode(record: Record) -> bytes:
    """The record as a msgpack map. Equal records give equal bytes (fields keep their order, maps are sorted).

    One that a newer version has written has lost what only that knows: it is written as what this version knows.
    """
    if record.v != VERSION:
        record = msgspec.structs.replace(record, v=VERSION)
    return _ENCODER.encode(record)


def decode(kind: type[R], value: bytes) -> R:
    """The record of class `kind` in `value`.

    Raises RecordError where the bytes are no msgpack, the major version is not ours, or a field has another type.
    """
    if value[1:5] == _OURS:
        try:
            record: R = _decoder(kind).decode(value)
            return record
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # why, the longer way tells
    plain = unpack(value)
    version = plain.get("v")
    if not isinstance(version, list) or len(version) != 2 or not all(isinstance(n, int) for n in version):
        raise RecordError(f"{kind.kind}: no version field `v` of the form [major, minor]")
    if version[0] != VERSION[0]:
        raise RecordError(f"{kind.kind}: version {version[0]}.{version[1]}, this reader knows {VERSION[0]}.x")
    try:
        return msgspec.convert(plain, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise RecordError(f"{kind.kind}: {error}") from error


def unpack(value: bytes) -> dict[str, Any]:
    """The msgpack map in `value`, untyped. Raises RecordError if it is none."""
    try:
        plain = msgpack.unpackb(value, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise RecordError(f"no msgpack: {error}") from error
    if not isinstance(plain, dict):
        raise RecordError(f"a msgpack {type(plain).__name__}, expected a map")
    return plain
