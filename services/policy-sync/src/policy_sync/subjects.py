"""Which rules hold for which identity."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from policy_sync.compile import Policy
from policy_sync.peers import Peers
from policy_sync.rules import RuleMaker, Wanted
from policy_sync.sets import Directory
from tidegate.records import Identity, Rules, Subject, encode
from tidegate.records.capacity import POLICY_SIZES
from tidegate.records.ids import Numbering, rules_content
from tidegate.store.publisher import Publisher
from tidegate.store.writer import MAX_BYTES

Key = tuple[str, str]
KIND = "Identity"


@dataclass
class _Compiled:
    """A rules record and what it needs."""

    number: int
    sets: tuple[int, ...]
    users: int = 0


class Subjects:
    """Rules by policies: identities that the same policies select share them."""

    def __init__(self, publisher: Publisher, directory: Directory, peers: Peers) -> None:
        self._publisher = publisher
        self._directory = directory
        self._peers = peers
        self._maker = RuleMaker(directory, peers.number)
        self._numbering = Numbering()
        self._policies: dict[Key, Policy] = {}
        self._of_namespace: dict[str, set[Key]] = {}
        self._compiled: dict[int, _Compiled] = {}  # by number of the rules
        self._of_identity: dict[int, int] = {}  # → number of its rules
        self._selected: dict[Key, set[int]] = {}  # policy → identities
        self._too_large: dict[int, tuple[Key, ...]] = {}  # identities whose rules do not fit → policies that make them
        self._telling: Callable[[Key, str], None] = lambda _key, _reason: None
        self._made: dict[tuple[tuple[Key, ...], frozenset[tuple[str, tuple[int, int]]]], Wanted] = {}
        self._egress_names: set[Key] = set()  # policies with port names in egress: they look at their peers' ports

    def tell(self, telling: Callable[[Key, str], None]) -> None:
        """Whom to tell of a policy that makes rules which do not fit (with the reason), or no more (an empty one)."""
        self._telling = telling

    def load(self, contents: Iterable[bytes]) -> None:
        for content in contents:
            self._numbering.take(content)

    def set_policy(self, key: Key, policy: Policy | None) -> None:
        """The policy is this one now, or gone (None)."""
        self._made.clear()
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
        wanted = self._wanted(tuple(selecting), identity)
        if self._fits(number, identity, wanted, tuple(selecting)):
            self._assign(number, wanted)

    def _wanted(self, selecting: tuple[Key, ...], identity: Identity) -> Wanted:
        """Made once for all identities that the same policies select, and whose ports have the same names."""
        policies = [self._policies[key] for key in selecting]
        if not self._egress_names.isdisjoint(selecting):
            return self._maker.rules(policies, identity)  # it depends on others' ports as well
        key = selecting, frozenset(identity.ports.items())
        wanted = self._made.get(key)
        if wanted is None:
            wanted = self._made[key] = self._maker.rules(policies, identity)
        return wanted

    def _fits(self, number: int, identity: Identity, wanted: Wanted, policies: tuple[Key, ...]) -> bool:
        """Whether a record and a node hold the rules; where they do not, what held for the identity before stays."""
        reason = self._lacking(wanted)
        if not reason:
            self._clear(number, identity)
            return True
        told = f"{len(policies)} policies make {reason}; what held before stays in force"
        self._publisher.problem(KIND, identity.namespace, str(number), told)
        gone = set(self._too_large.get(number, ())) - set(policies)
        self._too_large[number] = policies
        self._relieve(gone)
        for key in policies:
            self._telling(key, f"not in force for identity {number}: {told}")
        return False

    def _lacking(self, wanted: Wanted) -> str:
        size = _most_bytes(wanted.rules)
        if size > MAX_BYTES:
            size = len(encode(wanted.rules))
        if size > MAX_BYTES:
            return f"rules of {size} bytes for it, at most {MAX_BYTES} can be written"
        entries = Counter({"rules": len(wanted.rules.rules)})
        if len(wanted.specs) * len(self._directory.identities) > POLICY_SIZES["members"] or wanted.blocks:
            for name, count in map(self._peers.size, wanted.specs):
                entries[name] += count
        more = [f"{count} entries of {name}" for name, count in entries.items() if count > POLICY_SIZES[name]]
        held = ", ".join(f"{POLICY_SIZES[name]} of {name}" for name in entries if entries[name] > POLICY_SIZES[name])
        return f"{' and '.join(more)} for it, and a node holds {held}" if more else ""

    def _clear(self, number: int, identity: Identity) -> None:
        policies = self._too_large.pop(number, None)
        if policies is not None:
            self._publisher.problem(KIND, identity.namespace, str(number), None)
            self._relieve(policies)

    def _relieve(self, policies: Iterable[Key]) -> None:
        """Tells of those that make nothing any more that does not fit."""
        for key in policies:
            if not any(key in others for others in self._too_large.values()):
                self._telling(key, "")

    def _assign(self, number: int, wanted: Wanted | None) -> None:
        before = self._of_identity.pop(number, None)
        if wanted is not None:
            compiled = self._take(wanted)
            self._of_identity[number] = compiled.number
            self._publisher.put(self._publisher.keys.subject(number), Subject(policy=compiled.number))
        else:
            self._publisher.put(self._publisher.keys.subject(number), None)
        if before is not None:
            self._release(before)

    def _take(self, wanted: Wanted) -> _Compiled:
        number = self._numbering.take(rules_content(wanted.rules))
        compiled = self._compiled.get(number)
        if compiled is None:
            compiled = _Compiled(number, tuple(self._peers.take(spec) for spec in wanted.specs))
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
            self._peers.release(name)


def _most_bytes(rules: Rules) -> int:
    """More than the record has, and cheaper to know: 100 for a rule with all its sets, 8 for a ground and 3 for each of
    its policies, a name and what goes with it."""
    grounds = sum(8 + 3 * len(ground.policies) for rule in rules.rules for ground in rule.grounds)
    return 100 + 110 * len(rules.rules) + grounds + sum(len(name) + 3 for name in rules.policies)
