"""The Services that are present while something is measured. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

End = tuple[str, int]

ELSEWHERE = "n9"  # a node that is only in records: the backends of all Services that nothing is sent to


@dataclass(frozen=True, slots=True)
class Spec:
    """A Service of one TCP port; backends as (address, port)."""

    name: str
    vip: str
    port: int
    backends: tuple[End, ...]
    node_port: int = 0


def fill(measured: Sequence[Spec], count: int) -> list[Spec]:
    """Those that are measured, and others up to `count`, with a backend each."""
    others = (
        Spec(
            name=f"s{number}",
            vip=f"10.112.{number >> 8}.{number & 255}",
            port=80,
            backends=((f"10.224.{number >> 8}.{number & 255}", 8080),),
        )
        for number in range(65536)
    )
    return [*measured, *islice(others, max(0, count - len(measured)))]
