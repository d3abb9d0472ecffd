"""Which rules hold for which identity."""

from collections.abc import Iterable
from dataclasses import dataclass

from policy_sync.compile import ALL, Policy, PolicyRule, Ports
from policy_sync.portblocks import blocks
from policy_sync.selectors import PeerSelector, SetSpec
from policy_sync.sets import Directory, Sets
from tidegate.records import ANY_SET, MAX_SETS_PER_RULE, Direction, Identity, Protocol, Rule, Rules, Subject, encode
from tidegate.records.ids import Numbering, rules_content
from tidegate.store.publisher import Publisher
from tidegate.store.writer import MAX_BYTES

Key = tuple[str, str]
KIND = "Identity"
EVERY_POD = PeerSelector("", ALL, ALL)
# Where a rule applies: direction, protocol, port, prefix length.
Slot = tuple[int, int, int, int]


@dataclass
class _Compiled:
    """A rules record and what it needs."""

    number: int
    sets: tuple[int, ...]
    users: int = 0


class Subjects:
    """Rules by policies: identities that the same policies select share them."""

    def __init__(self, publisher: Publisher, directory: Directory, sets: Sets) -> None:
        self._publisher = publisher
        self._directory = directory
        self._sets = sets
        self._numbering = Numbering()
        self._policies: dict[Key, Policy] = {}
        self._of_namespace: dict[str, set[Key]] = {}
        self._compiled: dict[int, _Compiled] = {}  # by number of the rules
        self._of_identity: dict[int, int] = {}  # → number of its rules
        self._selected: dict[Key, set[int]] = {}  # policy → identities
        self._too_large: set[int] = set()  # identities whose rules no record holds
        self._egress_names: set[Key] = set()  # policies with port names in egress: they look at their peers' ports

    def load(self, contents: Iterable[bytes]) -> None:
        for content in contents:
            self._numbering.take(content)

    def set_policy(self, key: Key, policy: Policy | None) -> None:
        """The policy is this one now, or gone (None)."""
        before = self._policies.pop(key, None)
        affected = self._selected.pop(key, set())
        self._of_namespace.get(key[0], set()).discard(key)
        self._egress_names.discard(key)
        if policy is not None:
            self._policies[key] = policy
            self._of_namespace.setdefault(key[0], set()).add(key)
            if any(port.name for rule in policy.egress or () for port in rule.ports or ()):
                self._egress_names.add(key)
            selected = {
                number
                for number in self._directory.by_namespace.get(key[0], ())
                if policy.pods.matches(self._directory.identities[number].labels)
            }
            self._selected[key] = selected
            affected = affected | selected
        elif before is None:
            return
        for number in affected:
            self._decide(number)

    def identity_added(self, number: int, identity: Identity) -> None:
        for key in self._of_namespace.get(identity.namespace, ()):
            if self._policies[key].pods.matches(identity.labels):
                self._selected[key].add(number)
        self._decide(number)
        if identity.ports:
            self._ports_changed()

    def identity_removed(self, number: int, identity: Identity) -> None:
        for key in self._of_namespace.get(identity.namespace, ()):
            self._selected[key].discard(number)
        self._assign(number, None)
        self._clear(number, identity)
        if identity.ports:
            self._ports_changed()

    def namespace_changed(self, _: str) -> None:
        self._ports_changed()

    def _ports_changed(self) -> None:
        """A port name of egress rules may stand for other numbers now."""
        for key in self._egress_names:
            for number in self._selected[key]:
                self._decide(number)

    def _decide(self, number: int) -> None:
        identity = self._directory.identities[number]
        selecting = sorted(
            key for key in self._of_namespace.get(identity.namespace, ()) if number in self._selected[key]
        )
        wanted = self._rules([self._policies[key] for key in selecting], identity)
        if self._fits(number, identity, wanted.rules):
            self._assign(number, wanted)

    def _fits(self, number: int, identity: Identity, rules: Rules) -> bool:
        """Whether the record can be written; where it cannot, what held for the identity before stays."""
        size = _most_bytes(rules)
        if size > MAX_BYTES:
            size = len(encode(rules))
        if size <= MAX_BYTES:
            self._clear(number, identity)
            return True
        reason = f"{len(rules.policies)} policies make rules of {size} bytes for it, at most {MAX_BYTES} can be written"
        self._too_large.add(number)
        self._publisher.problem(KIND, identity.namespace, str(number), f"{reason}; what held before stays in force")
        return False

    def _clear(self, number: int, identity: Identity) -> None:
        if number in self._too_large:
            self._too_large.discard(number)
            self._publisher.problem(KIND, identity.namespace, str(number), None)

    def _assign(self, number: int, wanted: "_Wanted | None") -> None:
        before = self._of_identity.pop(number, None)
        if wanted is not None:
            compiled = self._take(wanted)
            self._of_identity[number] = compiled.number
            self._publisher.put(self._publisher.keys.subject(number), Subject(policy=compiled.number))
        else:
            self._publisher.put(self._publisher.keys.subject(number), None)
        if before is not None:
            self._release(before)

    def _take(self, wanted: "_Wanted") -> _Compiled:
        number = self._numbering.take(rules_content(wanted.rules))
        compiled = self._compiled.get(number)
        if compiled is None:
            compiled = _Compiled(number, tuple(self._sets.take(spec) for spec in wanted.specs))
            self._compiled[number] = compiled
            self._publisher.put(self._publisher.keys.rules(number), wanted.rules)
        compiled.users += 1
        return compiled

    def _release(self, number: int) -> None:
        compiled = self._compiled[number]
        compiled.users -= 1
        if compiled.users:
            return
        del self._compiled[number]
        self._numbering.release(number)
        self._publisher.put(self._publisher.keys.rules(number), None)
        for name in compiled.sets:
            self._sets.release(name)

    def _rules(self, policies: list[Policy], identity: Identity) -> "_Wanted":
        slots: dict[Slot, set[PeerSelector] | None] = {}  # None: everybody
        for policy in policies:
            for rule in policy.ingress or ():
                for slot, peers in self._ingress(rule, identity):
                    _allow(slots, slot, peers)
            for rule in policy.egress or ():
                for slot, peers in self._egress(rule):
                    _allow(slots, slot, peers)
        rules: list[Rule] = []
        used: dict[SetSpec, int] = {}
        for slot, selectors in sorted(slots.items()):
            if selectors is not None and not selectors:
                continue  # peers that nothing can match
            specs = _specs(selectors)
            for spec in specs:
                used.setdefault(spec, self._sets.number(spec))
            numbers = (ANY_SET,) if selectors is None else tuple(sorted(used[spec] for spec in specs))
            rules.append(Rule(direction=slot[0], protocol=slot[1], port=slot[2], prefix=slot[3], sets=numbers))
        record = Rules(
            ingress_isolated=any(policy.ingress is not None for policy in policies),
            egress_isolated=any(policy.egress is not None for policy in policies),
            rules=tuple(rules),
            policies=tuple(f"{policy.namespace}/{policy.name}" for policy in policies),
        )
        return _Wanted(record, tuple(used))

    def _ingress(self, rule: PolicyRule, identity: Identity) -> list[tuple[Slot, tuple[PeerSelector, ...] | None]]:
        found = []
        for port in rule.ports or (None,):
            if port is not None and port.name:
                # A port name means the subject's own port of that name (NetworkPolicyPort, API documentation).
                protocol, number = identity.ports.get(port.name, (0, 0))
                if protocol == port.protocol:
                    found.append(((int(Direction.INGRESS), protocol, number, 16), rule.peers))
            else:
                found += [(slot, rule.peers) for slot in _slots(Direction.INGRESS, port)]
        return found

    def _egress(self, rule: PolicyRule) -> list[tuple[Slot, tuple[PeerSelector, ...] | None]]:
        found: list[tuple[Slot, tuple[PeerSelector, ...] | None]] = []
        for port in rule.ports or (None,):
            if port is None or not port.name:
                found += [(slot, rule.peers) for slot in _slots(Direction.EGRESS, port)]
                continue
            # A port name means each receiver's port of that name: one rule for each number that it stands for.
            peers = rule.peers if rule.peers is not None else (EVERY_POD,)
            for number in self._numbers_of(peers, port):
                where = (int(port.protocol), number)
                named = tuple(PeerSelector(p.namespace, p.namespaces, p.pods, port.name, where) for p in peers)
                found.append(((int(Direction.EGRESS), port.protocol, number, 16), named))
        return found

    def _numbers_of(self, peers: tuple[PeerSelector, ...], port: Ports) -> list[int]:
        numbers = set()
        for number in self._directory.select(peers):
            protocol, value = self._directory.identities[number].ports.get(port.name, (0, 0))
            if protocol == port.protocol:
                numbers.add(value)
        return sorted(numbers)


@dataclass(frozen=True, slots=True)
class _Wanted:
    rules: Rules
    specs: tuple[SetSpec, ...]


def _most_bytes(rules: Rules) -> int:
    """More than the record has, and cheaper to know: 90 for a rule with all its sets, a name and what goes with it."""
    return 100 + 90 * len(rules.rules) + sum(len(name) + 3 for name in rules.policies)


def _slots(direction: Direction, port: Ports | None) -> list[Slot]:
    if port is None:
        return [(int(direction), int(Protocol.ANY), 0, 0)]
    return [(int(direction), port.protocol, low, prefix) for low, prefix in blocks(port.low, port.high)]


def _allow(slots: dict[Slot, set[PeerSelector] | None], slot: Slot, peers: tuple[PeerSelector, ...] | None) -> None:
    known = slots.setdefault(slot, set())
    if peers is None or known is None:
        slots[slot] = None
    else:
        known.update(peers)


def _specs(selectors: set[PeerSelector] | None) -> list[SetSpec]:
    """The sets of one rule: one for each selector, or the union of all where a map entry does not hold as many."""
    if not selectors:
        return []
    ordered = sorted(selectors)
    return [(peer,) for peer in ordered] if len(ordered) <= MAX_SETS_PER_RULE else [tuple(ordered)]
