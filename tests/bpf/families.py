"""The IP family that the tests use at the moment: every pod and node has addresses of both."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class _Use:
    ipv6 = False


@contextmanager
def using(version: int) -> Iterator[None]:
    _Use.ipv6 = version == 6
    try:
        yield
    finally:
        _Use.ipv6 = False


def either(ipv4: T, ipv6: T) -> T:
    return ipv6 if _Use.ipv6 else ipv4


def family() -> int:
    return either(socket.AF_INET, socket.AF_INET6)
