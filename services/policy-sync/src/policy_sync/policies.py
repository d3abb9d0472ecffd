"""The policies there are: understood, refused, or waiting for identities to carry what they select on."""

from collections.abc import Mapping

import msgspec

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


class Policies:
    """Handler of NetworkPolicy events."""

    def __init__(self, publisher: Publisher, subjects: Subjects, delegation: Delegation) -> None:
        self._publisher = publisher
        self._delegation = delegation
        self._subjects = subjects
        self._wanted: dict[Key, Policy] = {}
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
        for key, raw in last_good.items():
            try:
                self._stored[key] = msgspec.json.decode(raw, type=Policy)
            except msgspec.DecodeError as error:
                get_logger().warning("last good state of a policy not understood", policy=key, reason=str(error))

    def changed(self, item: objects.NetworkPolicy) -> None:
        self.uids[item.key] = item.metadata.uid
        self._delegation.set_policy(item.key, item.metadata.annotations)
        try:
            policy = compile_policy(item)
        except PolicyError as error:
            self._refuse(item.key, str(error), closed_policy(item))
            return
        self._publisher.problem(KIND, *item.key, None)
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
        if self._wanted.pop(key, None) is not None:
            self._subjects.set_policy(key, None)
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
        self._wanted[key] = policy
        self._ask()
        self._try(key)

    def listed(self) -> None:
        """All policies have been seen once: what none of them needs need not be asked for any longer."""
        if not self._ready:
            self._ready = True
            self._ask()

    def answered(self, keys: IdentityKeys) -> None:
        """endpoint-sync's identities carry these."""
        self._answered = keys
        for key in list(self._waiting):
            self._try(key)

    def _try(self, key: Key) -> None:
        policy = self._wanted[key]
        if self._can(policy):
            self._waiting.discard(key)
            self._subjects.set_policy(key, policy)
        else:
            # The previous state of the policy stays until identities carry what the new one looks at.
            self._waiting.add(key)

    def _can(self, policy: Policy) -> bool:
        labels, names = _needs(policy)
        return labels <= set(self._answered.label_keys) and names <= set(self._answered.port_names)

    def _ask(self) -> None:
        labels: set[str] = set()
        names: set[str] = set()
        for policy in self._wanted.values():
            more_labels, more_names = _needs(policy)
            labels |= more_labels
            names |= more_names
        if not self._ready:  # there may be more policies: ask for no less than before
            labels |= set(self._asked.label_keys)
            names |= set(self._asked.port_names)
        self._asked = IdentityKeys(label_keys=tuple(sorted(labels)), port_names=tuple(sorted(names)))
        self._publisher.put(self._publisher.keys.identity_keys(), self._asked)


def _needs(policy: Policy) -> tuple[frozenset[str], frozenset[str]]:
    return policy.label_keys & HIGH_CARDINALITY, policy.port_names
