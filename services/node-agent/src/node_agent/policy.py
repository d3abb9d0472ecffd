"""Subjects, rules and sets of the identities that have pods on this node. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from node_agent.entries import PRESENT, Entries, length_bit
from node_agent.recall import Member, recall
from node_agent.table import Tables
from tidegate.records import (
    ANY_SET,
    FIRST_SET,
    NamespaceAudit,
    NamespaceLogging,
    PeerShard,
    Rule,
    Rules,
    Subject,
    decode,
    encode,
)
from tidegate.records.addresses import innermost

NO_SHARD = -1  # where the members of a set stand that has no records any more
NEVER = -1
SIZED = ("rules", "members", "peer_blocks")


class PolicyView:
    """What policy-sync says, and the part of it that this node needs.

    Records come in through `set_…`; `take` and `release` say which identities have pods here; `settle` brings the
    tables up to date. A subject whose rules are not known, or do not fit beside all that the kernel holds, keeps what
    it has; members of sets that do not fit are left out.
    """

    def __init__(self, tables: Tables, entries: Entries, sizes: Mapping[str, int] = MappingProxyType({})) -> None:
        """`sizes`: map → entries that it holds; without, any number."""
        self._sizes = {name: sizes[name] for name in SIZED if name in sizes}
        self.refused: dict[int, str] = {}  # identity → why its rules are not, or not yet, those that it should have
        self._found: set[int] = set()  # identities that were refused before
        self.left_out: dict[tuple[int, Member], None] = {}  # members of sets in use that found no room
        self._tried = tables.removals
        self._tables = tables
        self._entries = entries
        self._subjects: dict[int, int] = {}
        self._identities: dict[int, set[int]] = {}  # policy → subjects that it is for
        self._rules: dict[int, bytes] = {}  # as they lie in etcd: most have no subject here
        self._shards: dict[int, dict[int, frozenset[Member]]] = {}
        self._local: Counter[int] = Counter()  # identity → pods here
        self._programmed: dict[int, int] = {}  # identity → policy whose entries it needs
        self._policy_users: Counter[int] = Counter()
        self._policy_rules: dict[int, Rules] = {}  # as programmed
        self._set_users: Counter[int] = Counter()
        self._dirty: set[int] = set()  # identities
        self._changed_shards: list[tuple[int, int, PeerShard | None]] = []  # of sets in use
        self._namespaces: dict[int, str] = {}  # of identities that have, or may get, pods here
        self._logged: dict[str, NamespaceLogging] = {}
        self._audited: set[str] = set()  # namespaces
        self._gone: set[int] = set()  # sets in use that are no more: rules that find no room leave others in force

    def judged(self, identity: int) -> bool:
        """Whether the identity's rules are known: only then may packets be judged by it."""
        policy = self._subjects.get(identity)
        return policy is not None and policy in self._rules

    def admit(self, identity: int, namespace: str) -> bool:
        """Whether a pod here, of that namespace, may get it: its rules are known, and there is room for them."""
        if not self.judged(identity):
            return False
        self._dirty.add(identity)  # where nobody takes it, what it has now goes again
        self._namespaces[identity] = namespace
        return self._try(identity)

    def again(self, identity: int) -> None:
        self._dirty.add(identity)

    def retry(self) -> list[int]:
        """Where something has gone from the maps since this was last asked: what found no room may find it now.

        Returns the identities that were refused.
        """
        if self._tried == self._tables.removals:
            return []
        self._tried = self._tables.removals
        left_out, self.left_out = self.left_out, {}
        for group, member in left_out:
            if group in self._set_users and member in self._members(group):
                self._member(group, member, True)
        return list(self.refused)

    @property
    def subjects(self) -> Iterable[int]:
        return self._programmed

    def set_subject(self, identity: int, record: Subject | None) -> None:
        before = self._subjects.pop(identity, None)
        if before is not None:
            self._identities[before].discard(identity)
            if not self._identities[before]:
                del self._identities[before]
        if record is not None:
            self._subjects[identity] = record.policy
            self._identities.setdefault(record.policy, set()).add(identity)
        self._dirty.add(identity)

    def set_rules(self, policy: int, value: bytes | None) -> set[int]:
        """`value`: Rules as they lie in etcd. Returns the identities that they concern."""
        if value is None:
            self._rules.pop(policy, None)
            return set()
        self._rules[policy] = value
        concerned = self._identities.get(policy, set())
        self._dirty.update(concerned)
        return concerned

    def set_namespace_logging(self, namespace: str, record: NamespaceLogging | None) -> None:
        """What is to be logged where that is left to annotations; entries that stand say so at once."""
        if record is None:
            self._logged.pop(namespace, None)
        else:
            self._logged[namespace] = record
        concerned = {policy for policy, rules in self._policy_rules.items() if _namespace(rules) == namespace}
        for policy in concerned:
            rules = self._policy_rules[policy]
            for rule in rules.rules:
                self._tables.want("rules", *self._entries.rule(policy, rule, self._is_logged(rules, rule)))
        self._mark_subjects(namespace)

    def set_namespace_audit(self, namespace: str, record: NamespaceAudit | None) -> None:
        """What policies deny its pods passes, or does not; entries that stand say so at once."""
        if record is not None and record.enabled:
            self._audited.add(namespace)
        else:
            self._audited.discard(namespace)
        self._mark_subjects(namespace)

    @property
    def audited(self) -> set[str]:
        """Namespaces in audit that have pods here."""
        return self._audited.intersection(self._namespaces.values()) if self._audited else set()

    def _mark_subjects(self, namespace: str) -> None:
        for identity, policy in self._programmed.items():
            if self._namespaces[identity] == namespace:
                self._tables.want("subjects", self._entries.subject_key(identity), self._subject(identity, policy))

    def _is_logged(self, rules: Rules, rule: Rule) -> bool:
        """Whether some policy by which the rule allows asks for it."""
        asking = self._logged.get(_namespace(rules), NamespaceLogging()).policies
        return any(name.partition("/")[2] in asking for _, names in rules.by_policies(rule) for name in names)

    def rules_of(self, policy: int) -> Rules | None:
        """As programmed here, or as last known."""
        return self._policy_rules.get(policy) or (self._read(policy) if policy in self._rules else None)

    def _read(self, policy: int) -> Rules:
        return decode(Rules, self._rules[policy])

    def is_in(self, group: int, identity: int, address: bytes) -> bool:
        """Whether a set has the peer in it, which has that identity and that address: as the programs ask."""
        shards = [shard for shard in self._shards.get(group, {}).values() if shard]
        if group == ANY_SET or any(identity in shard for shard in shards):
            return True
        blocks = (
            member
            for shard in shards
            if not isinstance(next(iter(shard)), int)  # a set has either identities or blocks
            for member in shard
            if not isinstance(member, int)
        )
        needed = innermost(blocks, address)
        return needed is not None and self.is_in(needed, identity, address)

    def set_set(self, group: int, present: bool) -> None:
        """Without this, a set without shards would be one without members."""
        if present:
            self._gone.discard(group)
        elif group in self._set_users:
            self._gone.add(group)

    def set_shard(self, group: int, shard: int, record: PeerShard | None) -> None:
        """A set that is in use changes once all subjects have their rules: it may go with their old ones."""
        if group in self._set_users:
            self._changed_shards.append((group, shard, record))
        else:
            self._change_shard(group, shard, record)

    def _change_shard(self, group: int, shard: int, record: PeerShard | None) -> None:
        if record is None and group in self._gone:
            return  # it is still in use, as it was
        shards = self._shards.setdefault(group, {})
        before = shards.pop(shard, frozenset())
        after: frozenset[Member] = frozenset((*record.members, *record.blocks)) if record else frozenset()
        if after:
            shards[shard] = after
        if not shards:
            del self._shards[group]
        if group not in self._set_users:
            if len(after) < len(before):
                self._tried = NEVER  # rules that wait for room may need less
            return
        # While a set is spread anew, a member may stand in two shards.
        others = [members for number, members in shards.items() if number != shard]
        for present, changed in ((False, before - after), (True, after - before)):
            for member in changed:
                if not any(member in other for other in others):
                    self._member(group, member, present)

    def take(self, identity: int, namespace: str) -> None:
        """One more pod here has it."""
        self._namespaces[identity] = namespace
        self._local[identity] += 1
        self._dirty.add(identity)

    def release(self, identity: int) -> None:
        self._local[identity] -= 1
        self._dirty.add(identity)

    def settle(self) -> set[int]:
        """Brings the tables up to date with all that was said since the last time.

        Returns the identities that were refused and have found room since: pods that could not get them may do so.
        """
        dirty, self._dirty = self._dirty, set()
        for identity in dirty:
            if not self._local[identity]:
                del self._local[identity]
                self._drop(identity)
                self._namespaces.pop(identity, None)
            elif self.judged(identity):
                self._try(identity)
        changed, self._changed_shards = self._changed_shards, []
        for group, shard, record in changed:
            self._change_shard(group, shard, record)
        found, self._found = self._found, set()
        return found

    def _try(self, identity: int) -> bool:
        """Programs the identity's rules, if there is room for them beside what is there."""
        policy = self._subjects[identity]
        if self._programmed.get(identity) == policy and identity not in self.refused:
            return True
        reason = "" if policy in self._policy_users else self._lacking(policy)
        if reason:
            self.refused[identity] = reason
            if identity not in self._programmed:
                self._recall(identity)
            return False
        if self.refused.pop(identity, None) is not None:
            self._found.add(identity)
        self._program(identity, policy)
        return True

    def _recall(self, identity: int) -> None:
        """After a restart: what the kernel holds for the identity stays, also where no record of it is left."""
        found = recall(self._tables, self._entries, identity)
        if found is None:
            return
        if found.policy not in self._rules:
            self._rules[found.policy] = encode(found.rules)
        for group, members in found.sets.items():
            if group not in self._shards and members:
                self._shards[group] = {NO_SHARD: members}
                self._gone.add(group)
        self._program(identity, found.policy)

    def _lacking(self, policy: int) -> str:
        """Why a policy that nobody has here finds no room; empty where it does."""
        rules = self._read(policy).rules
        sets = self._new_sets(rules)
        if all(self._most(name, rules, sets) <= size for name, size in self._sizes.items()):
            return ""
        more = Counter(name for name, key in self._keys(policy, rules, sets) if not self._stands(name, key))
        return "; ".join(
            f"map {name}: {more[name]} entries more, and the map holds {size}"
            for name, size in self._sizes.items()
            if more[name] and self._tables.occupied(name) + more[name] > size
        )

    def _most(self, name: str, rules: Sequence[Rule], sets: Iterable[int]) -> int:
        """No more entries than these there would be; cheaper to know than how many."""
        members = sum(len(self._members(group)) for group in sets) if name != "rules" else len(rules)
        return self._tables.occupied(name) + members

    def _keys(self, policy: int, rules: Iterable[Rule], sets: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        for rule in rules:
            yield "rules", self._entries.rule(policy, rule)[0]
        for group in sets:
            for member in self._members(group):
                yield self._entry(group, member)[:2]

    def _stands(self, name: str, key: bytes) -> bool:
        return key in self._tables.have(name) or key in self._tables.wanted(name)

    def _new_sets(self, rules: Iterable[Rule]) -> set[int]:
        """Sets that would come with the rules, those among them that blocks name."""
        found = {group for rule in rules for group in _sets(rule)}
        found |= {
            member[2]
            for group in found
            for member in self._members(group)
            if not isinstance(member, int) and member[2] >= FIRST_SET
        }
        return {group for group in found if group not in self._set_users}

    def _program(self, identity: int, policy: int) -> None:
        before = self._programmed.get(identity)
        if before != policy:
            self._take_policy(policy)
            self._programmed[identity] = policy
        self._tables.want("subjects", self._entries.subject_key(identity), self._subject(identity, policy))
        if before is not None and before != policy:
            self._release_policy(before)

    def _subject(self, identity: int, policy: int) -> bytes:
        rules = self._policy_rules[policy]
        lengths = [0, 0]
        for rule in rules.rules:
            lengths[rule.direction] |= length_bit(rule)
        isolated = rules.ingress_isolated, rules.egress_isolated
        namespace = self._namespaces[identity]
        logged = self._logged.get(namespace, NamespaceLogging()).denied
        return self._entries.subject(
            policy, isolated, (lengths[0], lengths[1]), logged, audited=namespace in self._audited
        )

    def _drop(self, identity: int) -> None:
        policy = self._programmed.pop(identity, None)
        if policy is not None:
            self._tables.retire("subjects", self._entries.subject_key(identity))
            self._release_policy(policy)

    def _take_policy(self, policy: int) -> None:
        self._policy_users[policy] += 1
        if self._policy_users[policy] > 1:
            return
        rules = self._policy_rules[policy] = self._read(policy)
        for rule in rules.rules:
            self._tables.want("rules", *self._entries.rule(policy, rule, self._is_logged(rules, rule)))
            for group in _sets(rule):
                self._take_set(group)

    def _release_policy(self, policy: int) -> None:
        self._policy_users[policy] -= 1
        if self._policy_users[policy]:
            return
        del self._policy_users[policy]
        for rule in self._policy_rules.pop(policy).rules:
            self._tables.retire("rules", self._entries.rule(policy, rule)[0])
            for group in _sets(rule):
                self._release_set(group)

    def _take_set(self, group: int) -> None:
        self._set_users[group] += 1
        if self._set_users[group] == 1:
            for member in self._members(group):
                self._member(group, member, True)

    def _release_set(self, group: int) -> None:
        self._set_users[group] -= 1
        if not self._set_users[group]:
            del self._set_users[group]
            for member in self._members(group):
                self._member(group, member, False, self._tables.retire)
            if group in self._gone:
                self._gone.discard(group)
                self._shards.pop(group, None)

    def _members(self, group: int) -> frozenset[Member]:
        return frozenset().union(*self._shards.get(group, {}).values())

    def _member(
        self, group: int, member: Member, present: bool, remove: Callable[[str, bytes], None] | None = None
    ) -> None:
        """`remove`: how, where it is not because the set loses it."""
        name, key, value = self._entry(group, member)
        needed = 0 if isinstance(member, int) else member[2]
        if present:
            if not self._has_room(name, key):
                self.left_out[group, member] = None
                return
            self._tables.want(name, key, value)
        elif self.left_out.pop((group, member), True) is None:
            return
        elif remove is not None:
            remove(name, key)
        else:
            self._tables.want(name, key, None)
        if needed >= FIRST_SET:
            (self._take_set if present else self._release_set)(needed)

    def _entry(self, group: int, member: Member) -> tuple[str, bytes, bytes]:
        """Map, key and value."""
        if isinstance(member, int):
            return "members", self._entries.member_key(group, member), PRESENT
        return "peer_blocks", *self._entries.peer_block(group, *member)

    def _has_room(self, name: str, key: bytes) -> bool:
        size = self._sizes.get(name)
        return size is None or self._stands(name, key) or self._tables.occupied(name) < size


def _namespace(rules: Rules) -> str:
    """Of the subjects: policies select pods of their own namespace. Empty where none does."""
    return rules.policies[0].partition("/")[0] if rules.policies else ""


def _sets(rule: Rule) -> Iterable[int]:
    """The sets whose members must stand for it."""
    return (group for group in (*rule.sets, rule.blocks) if group >= FIRST_SET)
