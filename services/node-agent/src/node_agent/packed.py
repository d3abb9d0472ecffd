"""Records as they came from etcd, taken apart when somebody asks for one. Pure.

Of most pods and backends an agent needs no more than the map entries that it has made of them. As bytes they take a
quarter of the memory, and no work of the garbage collector.
"""

from collections.abc import Hashable, Iterator, KeysView
from typing import Generic, TypeVar

from tidegate.records import Record, decode

K = TypeVar("K", bound=Hashable)
R = TypeVar("R", bound=Record)


class Packed(Generic[K, R]):
    def __init__(self, kind: type[R]) -> None:
        self._kind = kind
        self._values: dict[K, bytes] = {}

    def set(self, key: K, value: bytes | None) -> None:
        """`value` has been decoded before, and can be again; None: there is no such record."""
        if value is None:
            self._values.pop(key, None)
        else:
            self._values[key] = value

    def get(self, key: K) -> R | None:
        value = self._values.get(key)
        return decode(self._kind, value) if value is not None else None

    def __getitem__(self, key: K) -> R:
        return decode(self._kind, self._values[key])

    def all(self) -> Iterator[R]:
        return (decode(self._kind, value) for value in self._values.values())

    def keys(self) -> KeysView[K]:
        return self._values.keys()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values
