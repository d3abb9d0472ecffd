"""Numbers that follow from content.

Identities, sets, policies and service ports are named in maps by u32 numbers. Each number is a hash of what it names,
so that a writer that starts from nothing (etcd wiped, or restored from an old copy) arrives at the same numbers, and
agents find nothing to change. Where two contents meet in one number, the later one takes the next hash of a chain.
"""

import hashlib
from collections.abc import Iterable, Mapping

from tidegate.records.schema import FIRST_IDENTITY, Identity, Rules

SPACE = 1 << 31  # bit 31 is kept free


# Of the numbers of service ports two more bits are free: for the selections of one port, and for host ports.
SERVICE_SPACE = 1 << 29


def candidate(content: bytes, attempt: int, first: int = FIRST_IDENTITY, space: int = SPACE) -> int:
    """The number for `content` at the given attempt (0, 1, …), in [first, space)."""
    digest = hashlib.blake2b(content, digest_size=8, salt=attempt.to_bytes(4, "big")).digest()
    return first + int.from_bytes(digest, "big") % (space - first)


class Numbering:
    """Content ↔ number, without clashes. Deterministic but for contents whose hashes clash.

    >>> numbering = Numbering()
    >>> numbering.take(b"a") == numbering.take(b"a")
    True
    """

    def __init__(self, taken: Mapping[int, bytes] | None = None, space: int = SPACE) -> None:
        self._space = space
        self._content: dict[int, bytes] = dict(taken or {})
        self._number: dict[bytes, int] = {content: number for number, content in self._content.items()}

    def take(self, content: bytes) -> int:
        """The number of `content`; the same as long as it is not released."""
        known = self._number.get(content)
        if known is not None:
            return known
        attempt = 0
        while (number := candidate(content, attempt, space=self._space)) in self._content:
            attempt += 1
        self._content[number] = content
        self._number[content] = number
        return number

    def release(self, number: int) -> None:
        """Forgets the number. A number that is not taken is a mistake of the caller: KeyError."""
        del self._number[self._content.pop(number)]

    def __len__(self) -> int:
        return len(self._content)


def _join(parts: Iterable[str]) -> bytes:
    # Lengths in front of each part: no two lists of parts give the same bytes.
    return b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode() for part in parts))


def identity_content(identity: Identity) -> bytes:
    parts = [identity.namespace]
    for key, value in sorted(identity.labels.items()):
        parts += [key, value]
    parts.append("ports")
    for name, (protocol, port) in sorted(identity.ports.items()):
        parts += [name, str(protocol), str(port)]
    return _join(parts)


def service_port_content(namespace: str, name: str, port_name: str) -> bytes:
    return _join(("service", namespace, name, port_name))


def set_content(text: str) -> bytes:
    """`text` is the canonical wording of the selector, as in PeerSet.text."""
    return _join(("set", text))


def rules_content(rules: Rules) -> bytes:
    parts = ["rules", str(int(rules.ingress_isolated)), str(int(rules.egress_isolated))]
    parts += [
        f"{rule.direction} {rule.protocol} {rule.port} {rule.prefix} {' '.join(map(str, rule.sets))} | {rule.blocks}"
        + "".join(f" | {ground.set} by {' '.join(map(str, ground.policies))}" for ground in rule.grounds)
        for rule in rules.rules
    ]
    parts += ["policies", *rules.policies]
    return _join(parts)
