"""From BCC's descriptions of keys and values to layouts. Pure."""

import json

from node_agent.loader.manifest import Field, Layout

_SCALARS = {
    "_Bool": 1,
    "char": 1,
    "unsigned char": 1,
    "short": 2,
    "unsigned short": 2,
    "int": 4,
    "unsigned int": 4,
    "long": 8,
    "unsigned long": 8,
    "long long": 8,
    "unsigned long long": 8,
}


def parse_layout(description: str) -> Layout:
    """The layout in BCC's JSON. Raises ValueError for what types.h has no use for (unions, bit fields, …).

    >>> parse_layout('"unsigned int"').fields
    (Field(name='value', offset=0, size=4, kind='u32'),)
    """
    plain = json.loads(description)
    if isinstance(plain, str):
        size = _SCALARS[plain]
        return Layout(size, (Field("value", 0, size, f"u{8 * size}"),))
    name, members, form = plain
    if name == "addr":
        return Layout(16, (Field("addr", 0, 16, "addr"),))
    # BCC says "struct_packed" where it has spelled out all padding, which it always does for plain structs.
    if form != "struct_packed":
        raise ValueError(f"struct {name}: {form} is not supported in a map")
    fields: list[Field] = []
    offset = 0
    for member in members:
        size, kind = _member(name, member)
        fields.append(Field(member[0], offset, size, kind))
        offset += size
    return Layout(offset, tuple(fields))


def _member(struct: str, member: list[object]) -> tuple[int, str]:
    name, kind, *more = member
    if isinstance(kind, list):
        if kind[0] != "addr" or more:
            raise ValueError(f"struct {struct}: {name} is a struct; only `struct addr` may stand inside another one")
        return 16, "addr"
    if not isinstance(kind, str) or kind not in _SCALARS:
        raise ValueError(f"struct {struct}: {name} has the unknown type {kind}")
    size = _SCALARS[kind]
    match more:
        case []:
            # The C type __be16 is gone by now; types.h promises that the name says it.
            return size, "be16" if size == 2 and str(name).endswith("port") else f"u{8 * size}"
        case [[int(count)]]:
            return size * count, "u32[]" if size == 4 else "bytes"
        case _:
            raise ValueError(f"struct {struct}: {name} is neither plain nor an array of one dimension")
