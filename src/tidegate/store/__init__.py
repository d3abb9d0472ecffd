"""Where the records lie: etcd, behind a small protocol."""

from tidegate.store.marked import Incomplete, follow_marked
from tidegate.store.protocol import (
    MAX_OPERATIONS,
    Batch,
    Delete,
    Fence,
    FencedError,
    Operation,
    Put,
    Snapshot,
    Store,
    StoreError,
    Term,
    UnavailableError,
    value_of,
)

__all__ = [
    "MAX_OPERATIONS",
    "Batch",
    "Delete",
    "Fence",
    "FencedError",
    "Incomplete",
    "Operation",
    "Put",
    "Snapshot",
    "Store",
    "StoreError",
    "Term",
    "UnavailableError",
    "follow_marked",
    "value_of",
]
