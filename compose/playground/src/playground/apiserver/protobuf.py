"""Bodies in protobuf, which `kubectl create` sends of a few kinds whatever the server takes. Pure.

Numbers of fields are those of `generated.proto` in k8s.io/api/core/v1 and k8s.io/apimachinery (meta/v1, util/intstr);
the envelope is `runtime.Unknown` behind four bytes. Fields that are not named here are skipped.
"""

from collections.abc import Iterator
from typing import Any

from playground.apiserver.kinds import Object, StatusError

MAGIC = b"k8s\0"
MAP = "a map of texts"
NUMBER = "a number"
TEXT = "text"

# Message → number of a field → its name and what it is: a message, one of the above, or a list of such.
KINDS = ("Namespace", "ConfigMap", "Service")
_META = {1: ("name", TEXT), 2: ("generateName", TEXT), 3: ("namespace", TEXT), 11: ("labels", MAP)}
MESSAGES: dict[str, dict[int, tuple[str, Any]]] = {
    "Unknown": {1: ("type", "TypeMeta"), 2: ("raw", bytes)},
    "TypeMeta": {1: ("apiVersion", TEXT), 2: ("kind", TEXT)},
    "ObjectMeta": {**_META, 12: ("annotations", MAP)},
    "Namespace": {1: ("metadata", "ObjectMeta")},
    "ConfigMap": {1: ("metadata", "ObjectMeta"), 2: ("data", MAP)},
    "Service": {1: ("metadata", "ObjectMeta"), 2: ("spec", "ServiceSpec")},
    "ServiceSpec": {
        1: ("ports", ["ServicePort"]),
        2: ("selector", MAP),
        3: ("clusterIP", TEXT),
        4: ("type", TEXT),
        10: ("externalName", TEXT),
    },
    "ServicePort": {
        1: ("name", TEXT),
        2: ("protocol", TEXT),
        3: ("port", NUMBER),
        4: ("targetPort", "IntOrString"),
        5: ("nodePort", NUMBER),
    },
    "IntOrString": {1: ("type", NUMBER), 2: ("number", NUMBER), 3: ("text", TEXT)},
}


def read_object(raw: bytes) -> Object:
    """Raises StatusError: 415 for kinds that are not read, 400 for what is no such body."""
    try:
        envelope = _message("Unknown", raw.removeprefix(MAGIC))
        head, content = envelope["type"], envelope["raw"]
        body = _message(head["kind"], content) if head["kind"] in KINDS else None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise StatusError(400, "BadRequest", f"the body is no protobuf of an object: {error!r}") from error
    if body is None:
        raise StatusError(415, "UnsupportedMediaType", f"a {head['kind']} in protobuf: this server takes it as JSON")
    return {**head, **body}


def _message(name: str, raw: bytes) -> Any:
    found: Object = {}
    for number, value in _fields(raw):
        field, kind = MESSAGES[name].get(number, ("", None))
        if isinstance(kind, list):
            found.setdefault(field, []).append(_message(kind[0], value))
        elif kind == MAP:
            entry = dict(_fields(value))
            found.setdefault(field, {})[entry[1].decode()] = entry[2].decode()
        elif kind == TEXT:
            found.update({field: value.decode()} if value else {})  # unset texts are sent, too
        elif kind in MESSAGES:
            found[field] = _message(kind, value)
        elif kind:
            found[field] = value
    if name == "IntOrString":
        return found.get("text", "") if found.get("type") else found.get("number", 0)
    return {field: value for field, value in found.items() if value != 0}


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: bytes, or a number."""
    at = 0
    while at < len(raw):
        key, at = _number(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(raw, at)
            yield key >> 3, value
        elif kind == 2:
            length, at = _number(raw, at)
            if at + length > len(raw):
                raise ValueError("it is cut short")
            yield key >> 3, raw[at : at + length]
            at += length
        else:
            raise ValueError(f"a field of type {kind}")


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        shift += 7
        at += 1
        if raw[at - 1] < 0x80:
            return value, at
