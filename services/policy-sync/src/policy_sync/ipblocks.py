"""ipBlock: ranges of addresses with exceptions, and the prefixes that the kernel looks them up by. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from policy_sync.selectors import PolicyError
from tidegate.kube import objects
from tidegate.records.addresses import MAPPED, is_ipv4, pack_cidr, unpack_cidr

Cidr = tuple[bytes, int]  # 16 bytes without host bits, prefix length in 128-bit form

ALL_IPV4: Cidr = (MAPPED + bytes(4), 96)

# The port that an address must have besides: (name, (protocol, number)).
Need = tuple[str, tuple[int, int]]
NO_NEED: Need = ("", (0, 0))


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """The addresses of `cidr` that are in none of `excepts`.

    With a port name, only those of pods whose port of that name is (protocol, number).
    """

    cidr: Cidr
    excepts: tuple[Cidr, ...] = ()  # sorted, none within another
    port_name: str = ""
    port: tuple[int, int] = (0, 0)

    def named(self, name: str, port: tuple[int, int]) -> "Block":
        return replace(self, port_name=name, port=port)

    def __str__(self) -> str:
        text = unpack_cidr(*self.cidr)
        if self.excepts:
            text += f" except {', '.join(unpack_cidr(*cidr) for cidr in self.excepts)}"
        return f"{text}: port {self.port_name} is {self.port[1]}/{self.port[0]}" if self.port_name else text


# A set holds the addresses that any of its blocks has.
BlockSpec = tuple[Block, ...]


def ip_block(source: objects.IPBlock, field: str) -> Block:
    """Raises PolicyError for what ValidateIPBlock of the API server refuses.

    Host bits are cleared and leading zeros mean nothing, as everywhere where the API takes them in its older fields.
    """
    cidr = _cidr(source.cidr, f"{field}.cidr")
    excepts = set()
    for index, text in enumerate(source.except_ or ()):
        inner = _cidr(text, f"{field}.except[{index}]")
        if inner == cidr or _is_ipv4(inner) != _is_ipv4(cidr) or not is_within(inner, cidr):
            raise PolicyError(f"{field}.except[{index}]: {text} is no part of {source.cidr}, or all of it")
        excepts.add(inner)
    outermost = (one for one in excepts if not any(is_within(one, other) for other in excepts - {one}))
    return Block(cidr, tuple(sorted(outermost)))


def _cidr(text: str, field: str) -> Cidr:
    try:
        return pack_cidr(text, legacy=True)
    except ValueError as error:
        raise PolicyError(f"{field}: {error}") from error


def _is_ipv4(cidr: Cidr) -> bool:
    return is_ipv4(cidr[0]) and cidr[1] >= ALL_IPV4[1]


def truncate(cidr: Cidr, prefix: int) -> Cidr:
    """The range of that prefix length around it."""
    keep = ((1 << prefix) - 1) << (128 - prefix)
    return (int.from_bytes(cidr[0], "big") & keep).to_bytes(16, "big"), prefix


def is_within(inner: Cidr, outer: Cidr) -> bool:
    return inner[1] >= outer[1] and truncate(inner, outer[1]) == outer


def prefixes(spec: BlockSpec) -> list[tuple[Cidr, tuple[Need, ...]]]:
    """Of an address, its longest prefix among these says what it must have to be in the set: one of these ports;
    NO_NEED alone: nothing; none at all: it is not in the set. As few as possible, sorted."""
    # A block covers an address by its cidr (+1), unless one of its exceptions does, too (-1).
    counts: dict[Cidr, Counter[Need]] = {}
    for block in spec:
        need = (block.port_name, block.port)
        counts.setdefault(block.cidr, Counter())[need] += 1
        for cidr in _excepts(block):
            counts.setdefault(cidr, Counter())[need] -= 1
    lengths = sorted({prefix for _, prefix in counts})
    sums: dict[Cidr, Counter[Need]] = {}
    kept = []
    for cidr in sorted(counts, key=lambda cidr: cidr[1]):
        outer = _outer(cidr, lengths, sums)
        before = sums.get(outer, Counter()) if outer else Counter()
        total = sums[cidr] = Counter(before)
        total.update(counts[cidr])
        if _needs(total) != _needs(before):
            kept.append((cidr, _needs(total)))
    return sorted(kept)


def _excepts(block: Block) -> Iterable[Cidr]:
    """IPv6 ranges never mean IPv4 addresses, which lie in ::ffff:0:0/96 of ours."""
    if _is_ipv4(block.cidr) or not is_within(ALL_IPV4, block.cidr):
        return block.excepts
    if any(is_within(ALL_IPV4, cidr) for cidr in block.excepts):
        return block.excepts
    return (*block.excepts, ALL_IPV4)


def _outer(cidr: Cidr, lengths: list[int], known: dict[Cidr, Counter[Need]]) -> Cidr | None:
    """The smallest known range around it."""
    for prefix in reversed(lengths):
        if prefix < cidr[1]:
            outer = truncate(cidr, prefix)
            if outer in known:
                return outer
    return None


def _needs(total: Counter[Need]) -> tuple[Need, ...]:
    present = sorted(need for need, count in total.items() if count > 0)
    return (NO_NEED,) if NO_NEED in present else tuple(present)


def block_text(spec: BlockSpec) -> str:
    return " or ".join(map(str, spec))
