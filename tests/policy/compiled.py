"""What the records in the store allow, read as the kernel reads its maps."""

from ipaddress import ip_address

from tests.endpoint_sync.world import World
from tests.policy.model import Packet

from tidegate.records import (
    ANY_SET,
    IDENTITY_REMOTE_NODE,
    IDENTITY_WORLD,
    Endpoint,
    NamespaceAudit,
    Node,
    PeerShard,
    Protocol,
    Rule,
    Rules,
    Subject,
)
from tidegate.records.addresses import is_ipv4, pack_address

NUMBERS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}


class Compiled:
    def __init__(self, world: World) -> None:
        self._pods = {"/".join(name): record for name, record in world.records(Endpoint).items()}
        self._nodes = {name[0]: record for name, record in world.records(Node).items()}
        self._rules = {int(number): record for (number,), record in world.records(Rules).items()}
        self._subjects = {int(number): record.policy for (number,), record in world.records(Subject).items()}
        self.audited = {name for (name,), record in world.records(NamespaceAudit).items() if record.enabled}
        self._members: dict[int, set[int]] = {}
        self._blocks: dict[int, dict[tuple[bytes, int], int]] = {}
        for (number, _), shard in world.records(PeerShard).items():
            self._members.setdefault(int(number), set()).update(shard.members)
            for address, prefix, needed in shard.blocks:
                self._blocks.setdefault(int(number), {})[address, prefix] = needed

    def allows(self, packet: Packet) -> bool:
        if packet.source == packet.target:
            return True
        return self._direction(1, packet) and self._direction(0, packet)

    def _direction(self, direction: int, packet: Packet) -> bool:
        name, peer = (packet.source, packet.target) if direction else (packet.target, packet.source)
        subject = self._pods.get(name)
        if subject is None or (not direction and peer == subject.node):
            return True
        rules = self._rules[self._subjects[subject.identity]]
        if not (rules.egress_isolated if direction else rules.ingress_isolated):
            return True
        identity, address = self._peer(peer, packet.family)
        return any(
            self._allowed(rule, identity, address)
            for rule in rules.rules
            if rule.direction == direction and covers(rule, packet)
        )

    def _peer(self, name: str, family: int) -> tuple[int, bytes]:
        known = self._pods.get(name) or self._nodes.get(name)
        if known is None:
            return IDENTITY_WORLD, pack_address(name)
        address = next(each for each in known.addresses if is_ipv4(each) == (family == 4))
        return known.identity if isinstance(known, Endpoint) else IDENTITY_REMOTE_NODE, address

    def _allowed(self, rule: Rule, identity: int, address: bytes) -> bool:
        if any(self._is_in(group, identity) for group in rule.sets):
            return True
        needed = self._longest(self._blocks.get(rule.blocks, {}), address)
        return needed is not None and self._is_in(needed, identity)

    def _is_in(self, group: int, identity: int) -> bool:
        return group == ANY_SET or identity in self._members.get(group, ())

    def _longest(self, blocks: dict[tuple[bytes, int], int], address: bytes) -> int | None:
        number = int(ip_address(address))
        matching = [
            (prefix, needed)
            for (start, prefix), needed in blocks.items()
            if (number ^ int.from_bytes(start, "big")) >> (128 - prefix) == 0
        ]
        return max(matching)[1] if matching else None


def covers(rule: Rule, packet: Packet) -> bool:
    if rule.protocol == Protocol.ANY:
        return True
    same = NUMBERS.get(packet.protocol) == rule.protocol
    return same and packet.port >> (16 - rule.prefix) == rule.port >> (16 - rule.prefix)
