"""Records as plain JSON values: addresses as text, protocols by name. Pure."""

from typing import Any

from tidegate.records import Protocol
from tidegate.records.addresses import unpack_address, unpack_cidr

_PROTOCOLS = {int(protocol): protocol.name for protocol in Protocol}
DIRECTIONS = ("ingress", "egress")


def protocol(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))


def ports(protocol_number: int, port: int, prefix: int) -> str:
    """`TCP 80`, `UDP 8000-8007`, `all` …"""
    if protocol_number == Protocol.ANY:
        return "everything"
    if prefix == 0:
        return f"{protocol(protocol_number)} all ports"
    last = port + (1 << 16 - prefix) - 1
    return f"{protocol(protocol_number)} {port}" if last == port else f"{protocol(protocol_number)} {port}-{last}"


def plain(value: Any, field: str = "") -> Any:
    """A decoded msgpack value as something JSON can carry; `field` is the name that it stands under."""
    if isinstance(value, dict):
        return {str(key): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if field == "pod_cidrs":
            return [unpack_cidr(address, prefix) for address, prefix in value]
        if field == "v":
            return ".".join(map(str, value))
        return [plain(item, field) for item in value]
    if isinstance(value, bytes):
        return unpack_address(value) if len(value) == 16 else value.hex()
    if field == "protocol":
        return protocol(value)
    if field == "direction":
        return DIRECTIONS[value]
    return value
