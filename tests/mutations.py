"""Values that are almost right: what stands in an object or record, with parts of it replaced, left out or doubled."""

import random
from collections.abc import Sequence
from typing import Any


class Mutator:
    """`odd` are the values that parts are replaced by; what lies under a key of `keep` stays as it is."""

    def __init__(self, choice: random.Random, odd: Sequence[Any], keep: Sequence[str] = ()) -> None:
        self._choice = choice
        self._odd = odd
        self._keep = frozenset(keep)

    def __call__(self, value: Any) -> Any:
        if self._choice.random() < 0.02:
            return self._choice.choice(self._odd)
        if isinstance(value, dict):
            return {k: v if k in self._keep else self(v) for k, v in value.items() if self._stays(k)}
        if isinstance(value, list):
            items = [self(item) for item in value]
            return items + items[:1] if self._choice.random() < 0.1 else items
        return self._choice.choice(self._odd) if self._choice.random() < 0.05 else value

    def _stays(self, key: str) -> bool:
        return key in self._keep or self._choice.random() > 0.02
