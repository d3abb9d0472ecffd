"""Large sets in small records.

A set that changes by one member must not be sent whole to every node. Its members are spread by hash over a power of
two of shards; readers take the union. The number of shards follows the size with slack both ways, so that a set
changing around a threshold is not rewritten each time. While the number changes, a member may stand in an old and a
new shard at once: the union is right as long as new shards are written before old ones are removed.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

M = TypeVar("M")


def shard_count(size: int, target: int, current: int = 1) -> int:
    """How many shards a set of `size` members should have, aiming at `target` members in each.

    `current` is kept while a shard has on average between a quarter and twice of the target.
    """
    count = max(current, 1)
    while size > 2 * target * count:
        count *= 2
    while count > 1 and size * 4 < target * count:
        count //= 2
    return count


def spread(members: Iterable[M], count: int, number: Callable[[M], int]) -> dict[int, list[M]]:
    """Shard index → members; `number` is a hash of a member (count is a power of two). Empty shards are left out."""
    shards: dict[int, list[M]] = {}
    for member in members:
        shards.setdefault(number(member) & (count - 1), []).append(member)
    return shards
