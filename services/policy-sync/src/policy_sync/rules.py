"""From the policies that select an identity to its rules. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from policy_sync.compile import Policy, PolicyRule, Ports
from policy_sync.ipblocks import Block
from policy_sync.peers import Spec
from policy_sync.portblocks import blocks
from policy_sync.selectors import EVERY_POD, PeerSelector, SetSpec
from policy_sync.sets import Directory
from tidegate.records import ANY_SET, MAX_SETS_PER_RULE, Direction, Ground, Identity, Protocol, Rule, Rules

# Where a rule applies: direction, protocol, port, prefix length.
Slot = tuple[int, int, int, int]
# Whom it allows; None: everybody.
Peer = PeerSelector | Block | None
# Places of policies in Rules.policies.
Places = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    rules: Rules
    specs: tuple[Spec, ...]  # the sets that they name

    @property
    def blocks(self) -> bool:
        """Whether some of these are blocks of addresses."""
        return any(rule.blocks for rule in self.rules.rules)


class RuleMaker:
    def __init__(self, directory: Directory, number: Callable[[Spec], int]) -> None:
        self._directory = directory
        self._number = number

    def rules(self, policies: Sequence[Policy], identity: Identity) -> Wanted:
        """`policies`: those that select the identity, sorted."""
        slots: dict[Slot, dict[Peer, set[int]]] = {}
        for place, policy in enumerate(policies):
            for slot, peers in self._allowed(policy, identity):
                allowed = slots.setdefault(slot, {})
                for peer in peers:
                    allowed.setdefault(peer, set()).add(place)
        used: dict[Spec, int] = {}

        def number(spec: Spec) -> int:
            if spec not in used:
                used[spec] = self._number(spec)
            return used[spec]

        everyone = tuple(range(len(policies)))
        rules = [
            rule_of(slot, {peer: tuple(sorted(places)) for peer, places in allowed.items()}, everyone, number)
            for slot, allowed in sorted(slots.items())
            if allowed  # not so where no peer has a port of the name
        ]
        record = Rules(
            ingress_isolated=any(policy.ingress is not None for policy in policies),
            egress_isolated=any(policy.egress is not None for policy in policies),
            rules=tuple(rules),
            policies=tuple(f"{policy.namespace}/{policy.name}" for policy in policies),
        )
        return Wanted(record, tuple(used))

    def _allowed(self, policy: Policy, identity: Identity) -> Iterable[tuple[Slot, Sequence[Peer]]]:
        for rule in policy.ingress or ():
            yield from self._ingress(rule, identity)
        for rule in policy.egress or ():
            yield from self._egress(rule)

    def _ingress(self, rule: PolicyRule, identity: Identity) -> Iterable[tuple[Slot, Sequence[Peer]]]:
        for port in rule.ports or (None,):
            if port is not None and port.name:
                # A port name means the subject's own port of that name (NetworkPolicyPort, API documentation).
                protocol, number = identity.ports.get(port.name, (0, 0))
                if protocol == port.protocol:
                    yield (int(Direction.INGRESS), protocol, number, 16), _peers(rule)
            else:
                yield from ((slot, _peers(rule)) for slot in _slots(Direction.INGRESS, port))

    def _egress(self, rule: PolicyRule) -> Iterable[tuple[Slot, Sequence[Peer]]]:
        for port in rule.ports or (None,):
            if port is None or not port.name:
                yield from ((slot, _peers(rule)) for slot in _slots(Direction.EGRESS, port))
                continue
            # A port name means each receiver's port of that name: one rule for each number that it stands for.
            selectors = (EVERY_POD,) if rule.peers is None else rule.peers
            for number in self._numbers_of((EVERY_POD,) if rule.blocks else selectors, port):
                where = (int(port.protocol), number)
                pods = [replace(peer, port_name=port.name, port=where) for peer in selectors]
                addresses = [block.named(port.name, where) for block in rule.blocks]
                yield (int(Direction.EGRESS), port.protocol, number, 16), [*pods, *addresses]

    def _numbers_of(self, peers: SetSpec, port: Ports) -> list[int]:
        numbers = set()
        for number in self._directory.select(peers):
            protocol, value = self._directory.identities[number].ports.get(port.name, (0, 0))
            if protocol == port.protocol:
                numbers.add(value)
        return sorted(numbers)


def _peers(rule: PolicyRule) -> Sequence[Peer]:
    return (None,) if rule.peers is None else (*rule.peers, *rule.blocks)


def _slots(direction: Direction, port: Ports | None) -> list[Slot]:
    if port is None:
        return [(int(direction), int(Protocol.ANY), 0, 0)]
    return [(int(direction), port.protocol, low, prefix) for low, prefix in blocks(port.low, port.high)]


def rule_of(slot: Slot, allowed: Mapping[Peer, Places], everyone: Places, number: Callable[[Spec], int]) -> Rule:
    """`allowed`: peer → the policies that allow it; `everyone`: all policies of the record."""
    by_all = allowed.get(None)
    if by_all is not None:
        # The others only tell who else allows.
        allowed = {peer: places for peer, places in allowed.items() if not set(places) <= set(by_all)}
    selectors = {peer: places for peer, places in allowed.items() if isinstance(peer, PeerSelector)}
    addresses = {peer: places for peer, places in allowed.items() if isinstance(peer, Block)}
    pod_grounds: list[tuple[Spec, Places]] = [((peer,), places) for peer, places in sorted(selectors.items())]
    if len(pod_grounds) > MAX_SETS_PER_RULE:
        pod_grounds = _by_places(selectors)
    block_grounds = _by_places(addresses)
    grounds = [*pod_grounds, *block_grounds]
    found = [Ground(number(spec), places) for spec, places in grounds]
    if by_all is not None:
        found.append(Ground(ANY_SET, by_all))
    sets: Iterable[int] = (ANY_SET,)
    block_set = 0
    if by_all is None:
        specs = [spec for spec, _ in pod_grounds]
        sets = map(number, specs if len(specs) <= MAX_SETS_PER_RULE else [tuple(sorted(selectors))])
        block_set = number(tuple(sorted(addresses))) if addresses else 0
    return Rule(
        direction=slot[0],
        protocol=slot[1],
        port=slot[2],
        prefix=slot[3],
        sets=tuple(sorted(sets)),
        blocks=block_set,
        grounds=() if all(ground.policies == everyone for ground in found) else tuple(sorted(found)),
    )


def _by_places(peers: Mapping[Any, Places]) -> list[tuple[Spec, Places]]:
    """One set for what the same policies allow."""
    groups: dict[Places, list[Peer]] = {}
    for peer in sorted(peers):
        groups.setdefault(peers[peer], []).append(peer)
    return [(tuple(group), places) for places, group in sorted(groups.items())]  # type: ignore[misc]
