"""The policies there are: understood, refused, or waiting for identities to carry what they select on."""

import time
from collections import Counter
from collections.abc import Mapping

import msgspec

from policy_sync.annotations import LOG_ALLOWED, trouble
from policy_sync.compile import Policy, closed_policy, compile_policy
from policy_sync.logging import Delegation
from policy_sync.selectors import PolicyError
from policy_sync.subjects import Subjects
from tidegate.kube import objects
from tidegate.kube.track import Key
from tidegate.kube.watch import Invalid
from tidegate.records import IdentityKeys
from tidegate.records.labels import HIGH_CARDINALITY
from tidegate.runtime.logging import get_logger
from tidegate.store.publisher import Publisher

KIND = "NetworkPolicy"

LABEL, PORT = "label", "port"
Need = tuple[str, str]  # a label key, or the name of a port, that identities must carry


class Policies:
    """Handler of NetworkPolicy events.

    What identities must carry is asked of endpoint-sync as long as a policy that is wanted needs it, or a state that is
    in force. An answer counts for what has been asked for without a break since the asking that it answers: an
    earlier one says nothing, since identities may have lost it in between.
    """

    def __init__(self, publisher: Publisher, subjects: Subjects, delegation: Delegation) -> None:
        self._publisher = publisher
        self._delegation = delegation
        self._subjects = subjects
        self._wanted: dict[Key, Policy] = {}
        self._in_force: dict[Key, Policy] = {}
        self._needed: Counter[Need] = Counter()  # by states that are wanted, and by those in force
        self._since: dict[Need, int] = {}  # IdentityKeys.asked from which on it has been asked for
        self._waiting: set[Key] = set()
        self._good: set[Key] = set()
        self._stored: dict[Key, Policy] = {}  # last good states of those that were bad when the last run ended
        self._asked = IdentityKeys()
        self._answered = IdentityKeys()
        self._ready = False
        self.uids: dict[Key, str] = {}

    def load(self, asked: IdentityKeys | None, last_good: Mapping[Key, str]) -> None:
        """What was asked of endpoint-sync before, and which states were in force for policies not understood."""
        if asked is not None:
            self._asked = asked
            self._since = dict.fromkeys(_asked_for(asked), asked.asked)
        for key, raw in last_good.items():
            try:
                self._stored[key] = msgspec.json.decode(raw, type=Policy)
            except objects.UNDECODABLE as error:
                get_logger().warning("last good state of a policy not understood", policy=key, reason=str(error))

    def changed(self, item: objects.NetworkPolicy) -> None:
        self.uids[item.key] = item.metadata.uid
        self._delegation.set_policy(item.key, item.metadata.annotations)
        try:
            policy = compile_policy(item)
        except PolicyError as error:
            self._refuse(item.key, str(error), closed_policy(item))
            return
        self._publisher.problem(KIND, *item.key, trouble(item.metadata.annotations, LOG_ALLOWED))
        self._good.add(item.key)
        self._stored.pop(item.key, None)
        self._set(item.key, policy)

    def deleted(self, key: Key) -> None:
        self._publisher.problem(KIND, *key, None)
        self._delegation.set_policy(key, None)
        self._stored.pop(key, None)
        self._good.discard(key)
        self._waiting.discard(key)
        self.uids.pop(key, None)
        if key in self._wanted:
            self._want(key, None)
            self._enforce(key, None)
            self._ask()

    def invalid(self, item: Invalid) -> None:
        self._refuse((item.namespace, item.name), item.reason, None)

    def _refuse(self, key: Key, reason: str, closed: Policy | None) -> None:
        if key in self._stored:
            self._good.add(key)
            self._set(key, self._stored.pop(key))
        if key in self._good:
            last_good = msgspec.json.encode(self._wanted[key]).decode()
            self._publisher.problem(KIND, *key, f"{reason}; its previous state stays in force", last_good)
        elif closed is not None or key in self._wanted:
            # Also where it can be read even less than before: what is closed stays closed.
            self._publisher.problem(
                KIND, *key, f"{reason}; until it is mended its pods are isolated, nothing is allowed"
            )
            if closed is not None:
                self._set(key, closed)
        else:
            self._publisher.problem(KIND, *key, f"{reason}; it has no effect")

    def _set(self, key: Key, policy: Policy) -> None:
        if self._wanted.get(key) == policy and key not in self._waiting:
            return
        self._want(key, policy)
        self._try(key)
        self._ask()

    def _want(self, key: Key, policy: Policy | None) -> None:
        self._count(self._wanted.pop(key, None), policy)
        if policy is not None:
            self._wanted[key] = policy

    def _enforce(self, key: Key, policy: Policy | None) -> None:
        self._count(self._in_force.pop(key, None), policy)
        if policy is not None:
            self._in_force[key] = policy
        self._subjects.set_policy(key, policy)

    def _count(self, before: Policy | None, after: Policy | None) -> None:
        if after is not None:
            self._needed.update(_needs(after))
        if before is not None:
            self._needed.subtract(_needs(before))

    def listed(self) -> None:
        """All policies have been seen once: what none of them needs need not be asked for any longer."""
        if not self._ready:
            self._ready = True
            self._ask()

    def answered(self, keys: IdentityKeys) -> None:
        """endpoint-sync's identities carry these."""
        self._answered = keys
        if not self._publisher.leading:
            self._adopt(keys)
        for key in list(self._waiting):
            self._try(key)
        self._ask()

    def take_over(self, asked: IdentityKeys | None) -> None:
        """This was asked last by whoever led before."""
        if asked is not None:
            self._adopt(asked)

    def _adopt(self, keys: IdentityKeys) -> None:
        """Another has asked for the same: so it is not asked anew when this process leads."""
        if _asked_for(keys) == _asked_for(self._asked):
            self._asked = keys
            self._since = dict.fromkeys(_asked_for(keys), keys.asked)

    def _try(self, key: Key) -> None:
        policy = self._wanted[key]
        if self._can(policy):
            self._waiting.discard(key)
            self._enforce(key, policy)
        else:
            # The previous state of the policy stays until identities carry what the new one looks at.
            self._waiting.add(key)

    def _can(self, policy: Policy) -> bool:
        carried = _asked_for(self._answered)
        return all(
            need in carried and need in self._since and self._since[need] <= self._answered.asked
            for need in _needs(policy)
        )

    def _ask(self) -> None:
        needed = {need for need, count in self._needed.items() if count > 0}
        if not self._ready:  # there may be more policies: ask for no less than before
            needed |= _asked_for(self._asked)
        if needed != _asked_for(self._asked):
            # Later than any asking before, whatever the store has lost of them.
            asked = max(time.time_ns(), self._asked.asked + 1)
            self._since = {need: self._since.get(need, asked) for need in needed}
            self._asked = IdentityKeys(
                label_keys=tuple(sorted(name for kind, name in needed if kind == LABEL)),
                port_names=tuple(sorted(name for kind, name in needed if kind == PORT)),
                asked=asked,
            )
        self._publisher.put(self._publisher.keys.identity_keys(), self._asked)


def _needs(policy: Policy) -> frozenset[Need]:
    labels = ((LABEL, key) for key in policy.label_keys & HIGH_CARDINALITY)
    return frozenset((*labels, *((PORT, name) for name in policy.port_names)))


def _asked_for(keys: IdentityKeys) -> frozenset[Need]:
    return frozenset((*((LABEL, key) for key in keys.label_keys), *((PORT, name) for name in keys.port_names)))
