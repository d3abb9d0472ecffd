"""The sets that rules name: of identities (sets) and of blocks of addresses (ipblocks), under one numbering."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from policy_sync.ipblocks import NO_NEED, Block, BlockSpec, Need, block_text, prefixes
from policy_sync.selectors import EVERY_POD, SetSpec
from policy_sync.sets import Directory, Sets
from tidegate.records import ANY_SET, PeerSet, PeerShard
from tidegate.records.ids import Numbering, set_content
from tidegate.store.publisher import Publisher

SHARD = 40  # prefixes: about 1 KB
TEXT = 900  # characters of a set's wording; what is longer is cut and has a digest

NO_SET = 0  # number of an exception (records.PeerShard)

Spec = SetSpec | BlockSpec


@dataclass
class _BlockSet:
    spec: BlockSpec
    shards: int
    needed: tuple[int, ...]  # sets of identities
    users: int = 0


class Peers:
    def __init__(self, publisher: Publisher, directory: Directory) -> None:
        self._publisher = publisher
        self._numbering = Numbering()
        self._sets = Sets(publisher, directory, self._numbering)
        self._blocks: dict[int, _BlockSet] = {}
        self.identity_added = self._sets.identity_added
        self.identity_removed = self._sets.identity_removed
        self.namespace_changed = self._sets.namespace_changed

    def load(self, texts: Iterable[str]) -> None:
        """Takes over the numbers of the sets that the store has."""
        for text in texts:
            self._numbering.take(set_content(text))

    def number(self, spec: Spec) -> int:
        """The number that the set has, or would have."""
        blocks = _blocks(spec)
        return self._numbering.take(set_content(_text(blocks))) if blocks else self._sets.number(spec)  # type: ignore[arg-type]

    def size(self, spec: Spec) -> tuple[str, int]:
        """In which map the set lies, and how many entries it has there (of addresses: at most)."""
        blocks = _blocks(spec)
        if not blocks:
            return "members", self._sets.size(spec)  # type: ignore[arg-type]
        return "peer_blocks", sum(1 + len(block.excepts) for block in blocks)

    def take(self, spec: Spec) -> int:
        blocks = _blocks(spec)
        if not blocks:
            return self._sets.take(spec)  # type: ignore[arg-type]
        number = self.number(blocks)
        if number not in self._blocks:
            self._create(number, blocks)
        self._blocks[number].users += 1
        return number

    def release(self, number: int) -> None:
        state = self._blocks.get(number)
        if state is None:
            self._sets.release(number)
            return
        state.users -= 1
        if state.users:
            return
        del self._blocks[number]
        self._numbering.release(number)
        for shard in range(state.shards):
            self._publisher.put(self._publisher.keys.peers(number, shard), None)
        self._publisher.put(self._publisher.keys.peer_set(number), None)
        for needed in state.needed:
            self._sets.release(needed)

    def _create(self, number: int, spec: BlockSpec) -> None:
        found = prefixes(spec)
        needs = {need for _, need in found if need not in ((), (NO_NEED,))}
        sets = {need: self._sets.take(_having(need)) for need in sorted(needs)}
        self._blocks[number] = state = _BlockSet(spec, -(-len(found) // SHARD), tuple(sets.values()))
        self._publisher.put(self._publisher.keys.peer_set(number), PeerSet(text=_text(spec)))
        entries = [(*cidr, _number(need, sets)) for cidr, need in found]
        for shard in range(state.shards):
            record = PeerShard(blocks=tuple(entries[shard * SHARD : (shard + 1) * SHARD]))
            self._publisher.put(self._publisher.keys.peers(number, shard), record)


def _blocks(spec: Spec) -> BlockSpec:
    return tuple(item for item in spec if isinstance(item, Block))


def _number(need: tuple[Need, ...], sets: dict[tuple[Need, ...], int]) -> int:
    if not need:
        return NO_SET
    return ANY_SET if need == (NO_NEED,) else sets[need]


def _having(needs: tuple[Need, ...]) -> SetSpec:
    """Pods that have one of these ports."""
    return tuple(sorted(replace(EVERY_POD, port_name=name, port=port) for name, port in needs))


def _text(spec: BlockSpec) -> str:
    """Equal for equal sets alone, and of bounded length."""
    text = block_text(spec)
    if len(text) <= TEXT:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{text[:TEXT].rpartition(' or ')[0] or text[:TEXT]} … ({len(spec)} blocks, {digest})"
