"""What nodes log of what policies allow and deny: the NetworkLogging object, and annotations where it delegates.

Object, fields and annotations are GKE Dataplane V2's (networking.gke.io/v1alpha1, "Use network policy logging"):
`delegate` leaves it to annotations what is logged, and needs `log`.
"""

from policy_sync.annotations import LOG_ALLOWED, LOG_DENIED, Annotations, is_set
from tidegate.kube import objects
from tidegate.kube.track import Key
from tidegate.kube.watch import NETWORK_LOGGING, Invalid
from tidegate.records import Logging, NamespaceLogging
from tidegate.store.publisher import Publisher

NAME = "default"  # of the one object that counts


class LoggingError(ValueError):
    """A NetworkLogging that contradicts itself; the text says where."""


def logging_record(item: objects.NetworkLogging) -> Logging:
    """Raises LoggingError."""
    cluster = (item.spec and item.spec.cluster) or objects.ClusterLogging()
    allow, deny = cluster.allow or objects.LogAction(), cluster.deny or objects.LogAction()
    for name, action in (("allow", allow), ("deny", deny)):
        if action.delegate and not action.log:
            raise LoggingError(f"spec.cluster.{name}: delegate is true, and log is not: nothing could be logged")
    return Logging(allowed=allow.log, allowed_delegated=allow.delegate, denied=deny.log, denied_delegated=deny.delegate)


class LoggingConfig:
    """Handler of NetworkLogging events. Until the first list what an earlier run has published stays."""

    KIND = NETWORK_LOGGING.kind

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._key = publisher.keys.logging()
        self._known = False  # whether what is published is what the API server says, or once said

    def changed(self, item: objects.NetworkLogging) -> None:
        name = item.metadata.name
        if name != NAME:
            self._publisher.problem(self.KIND, "", name, f"it has no effect: only the one named {NAME} counts")
            return
        try:
            record = logging_record(item)
        except LoggingError as error:
            self._publisher.problem(self.KIND, "", name, f"{error}; what was in force stays so")
            return
        self._known = True
        self._publisher.problem(self.KIND, "", name, None)
        self._publisher.put(self._key, record)

    def deleted(self, key: Key) -> None:
        self._publisher.problem(self.KIND, "", key[1], None)
        if key[1] == NAME:
            self.absent()

    def invalid(self, item: Invalid) -> None:
        self._publisher.problem(self.KIND, "", item.name, f"{item.reason}; what was in force stays so")

    def absent(self) -> None:
        """There is no such object."""
        self._known = True
        self._publisher.put(self._key, None)

    def prepare(self) -> None:
        """Before each writing: what is not known yet is not deleted."""
        if not self._known:
            self._publisher.keep(self._key)


class Delegation:
    """The annotations of NetworkPolicies and Namespaces."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._namespaces: dict[str, NamespaceLogging] = {}

    def set_policy(self, key: Key, annotations: Annotations) -> None:
        """None: it is gone."""
        namespace, name = key
        before = self._namespaces.get(namespace, NamespaceLogging())
        others = set(before.policies) - {name}
        more = {name} if is_set(annotations, LOG_ALLOWED) else set()
        self._set(namespace, NamespaceLogging(denied=before.denied, policies=tuple(sorted(others | more))))

    def set_namespace(self, name: str, annotations: Annotations) -> None:
        before = self._namespaces.get(name, NamespaceLogging())
        self._set(name, NamespaceLogging(denied=is_set(annotations, LOG_DENIED), policies=before.policies))

    def _set(self, namespace: str, record: NamespaceLogging) -> None:
        if record == self._namespaces.get(namespace, NamespaceLogging()):
            return
        wanted = None if record == NamespaceLogging() else record
        if wanted is None:
            del self._namespaces[namespace]
        else:
            self._namespaces[namespace] = wanted
        self._publisher.put(self._publisher.keys.namespace_logging(namespace), wanted)
