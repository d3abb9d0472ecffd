"""Addresses in their packed form: 16 bytes, IPv4 as v4-mapped IPv6."""

import ipaddress
import socket
from collections.abc import Iterable

MAPPED = bytes(10) + b"\xff\xff"


def pack_address(text: str) -> bytes:
    """`10.0.0.1` or `fd00::1` as 16 bytes. Raises ValueError for what is no address (leading zeros included)."""
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return MAPPED + socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{text!r} is no IP address") from error


def unpack_address(packed: bytes) -> str:
    """16 bytes as text. Raises ValueError for another length."""
    if len(packed) != 16:
        raise ValueError(f"a packed address has 16 bytes, not {len(packed)}")
    if packed.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def write_end(packed: bytes, port: int) -> str:
    """Address and port as in URLs: `10.0.0.1:80`, `[fd00::1]:80`."""
    text = unpack_address(packed)
    return f"{text}:{port}" if is_ipv4(packed) else f"[{text}]:{port}"


def is_ipv4(packed: bytes) -> bool:
    return packed.startswith(MAPPED)


def pack_cidr(text: str, legacy: bool = False) -> tuple[bytes, int]:
    """`10.0.0.0/24` as (16 bytes, 120). Raises ValueError for what is no CIDR.

    `legacy`: as Kubernetes reads its older fields (KEP-4858), host bits are cleared and leading zeros of IPv4 numbers
    mean nothing; otherwise both make it none.
    """
    # ipaddress also takes bare addresses, netmasks, wildcard masks and zones: none of them is a CIDR to Kubernetes.
    address, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdecimal()) or "%" in text:
        raise ValueError(f"{text!r} is no CIDR: write address/length")
    if legacy and ":" not in address:
        address = ".".join(number.lstrip("0") or number[:1] for number in address.split("."))
    network = ipaddress.ip_network(f"{address}/{length}", strict=not legacy)
    if network.version == 4:
        return MAPPED + network.network_address.packed, network.prefixlen + 96
    return network.network_address.packed, network.prefixlen


def unpack_cidr(packed: bytes, prefix: int) -> str:
    if is_ipv4(packed) and prefix >= 96:
        return f"{unpack_address(packed)}/{prefix - 96}"
    return f"{unpack_address(packed)}/{prefix}"


def innermost(ranges: Iterable[tuple[bytes, int, int]], address: bytes) -> int | None:
    """What the longest of the ranges around the address says: the third part of (16 bytes, prefix length, what holds).

    None where none is around it.
    """
    number = int.from_bytes(address, "big")
    around = (
        (prefix, holds)
        for start, prefix, holds in ranges
        if (number ^ int.from_bytes(start, "big")) >> (128 - prefix) == 0
    )
    return max(around, default=(0, None))[1]
