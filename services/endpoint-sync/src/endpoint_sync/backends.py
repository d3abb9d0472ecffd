"""The backends of one Service: by slice, as they come, and by shard, as they are published. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from endpoint_sync.normalise import merge
from tidegate.kube.track import Key
from tidegate.records import Backend, BackendShard, RecordError, decode
from tidegate.records.capacity import Shape, shape
from tidegate.records.ids import candidate
from tidegate.records.shards import shard_count
from tidegate.runtime.logging import get_logger

SHARD = 16  # backends: about 1 KB sent to each node when one of them changes

_NONE: Mapping[bytes, Backend] = {}


@dataclass
class Backends:
    """A changed slice costs the backends that differ, and a look at those of that slice: not those of the Service."""

    slices: dict[str, Mapping[bytes, Backend]] = field(default_factory=dict)  # name → address → backend
    shared: dict[bytes, set[str]] = field(default_factory=dict)  # address → its slices, where it has several
    shards: list[dict[bytes, Backend]] = field(default_factory=lambda: [{}])
    touched: set[int] = field(default_factory=set)  # shards that are not published as they are
    shapes: Counter[Shape] = field(default_factory=Counter)  # of the backends in the shards
    size: int = 0  # so many they are

    def touch_all(self, at_least: int = 0) -> None:
        self.touched.update(range(max(len(self.shards), at_least)))

    def replace(self, name: str, after: Mapping[bytes, Backend]) -> None:
        """A slice has other backends than before; costs the difference, but for a look at the slice itself."""
        before = self.slices.pop(name, _NONE)
        if after:
            self.slices[name] = after
        for address in before.keys() | after.keys():
            if before.get(address) != after.get(address):
                self._place(address, self._merged(address, name, address in before, address in after))
        count = shard_count(self.size, SHARD, len(self.shards))
        if count != len(self.shards):
            self._reshard(count)

    def _merged(self, address: bytes, name: str, had: bool, has: bool) -> Backend | None:
        """What the address is by all of its slices; of the slice `name` is known whether it had and has it."""
        holders = self.shared.get(address)
        if holders is None and has and not had and self._placed(address) is not None:
            other = next(each for each, content in self.slices.items() if each != name and address in content)
            holders = self.shared[address] = {other}
        if holders is None:
            return self.slices[name][address] if has else None
        if has:
            holders.add(name)
        else:
            holders.discard(name)
        if len(holders) == 1:
            del self.shared[address]
        return merge([self.slices[each][address] for each in sorted(holders)])

    def _placed(self, address: bytes) -> Backend | None:
        return self.shards[shard_of(address, len(self.shards))].get(address)

    def _place(self, address: bytes, backend: Backend | None) -> None:
        index = shard_of(address, len(self.shards))
        shard = self.shards[index]
        before = shard.pop(address, None)
        if backend is not None:
            shard[address] = backend
        if before == backend:
            return
        self.touched.add(index)
        for each, change in ((before, -1), (backend, 1)):
            if each is not None:
                self.size += change
                self.shapes[shape(each)] += change

    def _reshard(self, count: int) -> None:
        self.touch_all(count)
        before = self.shards
        self.shards = [{} for _ in range(count)]
        for shard in before:
            for address, backend in shard.items():
                self.shards[shard_of(address, count)][address] = backend

    def touched_shards(self, wanted: bool) -> Iterator[tuple[int, BackendShard | None]]:
        """Shards that are not published as they are, which they are then; none are to be unless `wanted`."""
        for index in self.touched:
            members = self.shards[index] if wanted and index < len(self.shards) else _NONE
            backends = tuple(members[address] for address in sorted(members))
            yield index, BackendShard(backends=backends) if backends else None
        self.touched.clear()


def shard_of(address: bytes, count: int) -> int:
    return candidate(address, 0) & (count - 1) if count > 1 else 0


def read_backends(key: Key, shards: Mapping[int, bytes]) -> dict[bytes, Backend]:
    """From stored shards of a Service, less those that cannot be read."""
    found: dict[bytes, Backend] = {}
    for index, value in shards.items():
        try:
            found.update((backend.address, backend) for backend in decode(BackendShard, value).backends)
        except RecordError as error:
            get_logger().warning("stored backends not understood", service=key, shard=index, reason=str(error))
    return found
