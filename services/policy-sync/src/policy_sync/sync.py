"""From events to records: what runs in the process."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Protocol, TypeVar

from policy_sync.annotations import AUDIT, LOG_DENIED, Annotations, is_set, trouble
from policy_sync.logging import NAME as LOGGING_NAME
from policy_sync.logging import Delegation, LoggingConfig
from policy_sync.peers import Peers
from policy_sync.policies import Policies
from policy_sync.sets import Directory
from policy_sync.subjects import Subjects
from tidegate.kube import objects
from tidegate.kube.events import EventApi, Events, Notice
from tidegate.kube.track import Handler, Key, Tracker, track
from tidegate.kube.watch import NAMESPACES, NETWORK_LOGGING, NETWORK_POLICIES, Invalid, Listed, Resource, list_watch
from tidegate.kube.watch import Api as ReadApi
from tidegate.records import (
    Identity,
    IdentityKeys,
    Keyspace,
    NamespaceAudit,
    PeerSet,
    Problem,
    Record,
    RecordError,
    Rules,
    Synced,
    decode,
)
from tidegate.records.ids import rules_content
from tidegate.runtime.collector import building
from tidegate.runtime.http import Health
from tidegate.runtime.logging import get_logger
from tidegate.store import Incomplete, Put, Snapshot, Store, follow_marked
from tidegate.store.publisher import Publisher

T = TypeVar("T", bound=objects.Object)
R = TypeVar("R", bound=Record)

NAME = "policy-sync"
# What identities need not carry any more is said last: rules that looked at it have been replaced then.
RANKS = {"config/logging": 1, "config/audit": 1, "peers/": 2, "rules/": 3, "subjects/": 4, "config/identity-keys": 5}
IDENTITIES = "identities"
# Reasons of Events.
EXCEEDED, FITS = "TidegateRulesTooLarge", "TidegateRulesFit"


class Api(ReadApi, EventApi, Protocol):
    """It is watched, and gets Events."""


class Namespaces:
    """Handler of Namespace events: their labels decide which pods a namespaceSelector means, annotations
    what is logged, and what is in audit."""

    KIND = "Namespace"

    def __init__(
        self, publisher: Publisher, directory: Directory, peers: Peers, subjects: Subjects, delegation: Delegation
    ) -> None:
        self._publisher = publisher
        self._delegation = delegation
        self._directory = directory
        self._peers = peers
        self._subjects = subjects

    def changed(self, item: objects.Namespace) -> None:
        annotations = item.metadata.annotations
        self._publisher.problem(self.KIND, "", item.metadata.name, trouble(annotations, LOG_DENIED, AUDIT))
        self._annotate(item.metadata.name, annotations)
        self._label(item.metadata.name, dict(item.labels))

    def deleted(self, key: Key) -> None:
        self._publisher.problem(self.KIND, "", key[1], None)
        self._annotate(key[1], None)
        self._label(key[1], None)

    def invalid(self, item: Invalid) -> None:
        self._publisher.problem(self.KIND, "", item.name, item.reason)

    def _annotate(self, name: str, annotations: Annotations) -> None:
        self._delegation.set_namespace(name, annotations)
        audited = NamespaceAudit(enabled=True) if is_set(annotations, AUDIT) else None
        self._publisher.put(self._publisher.keys.namespace_audit(name), audited)

    def _label(self, name: str, labels: dict[str, str] | None) -> None:
        if self._directory.label_namespace(name, labels):
            self._peers.namespace_changed(name)
            self._subjects.namespace_changed(name)


class PolicySync:
    """The state of the service, and the tasks that keep it: `start` once, then `run`."""

    def __init__(self, store: Store, api: Api, keys: Keyspace, health: Health) -> None:
        self._store = store
        self._api = api
        self._keys = keys
        sources = [NAMESPACES.kind, NETWORK_POLICIES.kind, IDENTITIES]
        self.publisher = Publisher(store, keys, NAME, RANKS, sources, health)
        self._directory = Directory()
        self._peers = Peers(self.publisher, self._directory)
        self._subjects = Subjects(self.publisher, self._directory, self._peers)
        self._logging = LoggingConfig(self.publisher)
        self._delegation = Delegation(self.publisher)
        self._policies = Policies(self.publisher, self._subjects, self._delegation)
        self.publisher.prepare = self._logging.prepare
        self.publisher.take_over = self._take_over
        self._events = Events(api, f"tidegate-{NAME}", lambda: self.publisher.leading)
        self._subjects.tell(self._tell)

    async def start(self) -> None:
        """Takes over numbers from the store. Raises UnavailableError."""
        await self.publisher.writer.load()
        asked = None
        texts, contents = [], []
        last_good: dict[Key, str] = {}
        for key, value in self.publisher.writer.stored.items():
            parsed = self._keys.parse(key)
            if parsed is None:
                continue
            if parsed.kind is PeerSet:
                record = read(PeerSet, key, value)
                texts += [record.text] if record else []
            elif parsed.kind is Rules:
                rules = read(Rules, key, value)
                contents += [rules_content(rules)] if rules else []
            elif parsed.kind is IdentityKeys:
                asked = read(IdentityKeys, key, value)
            elif parsed.kind is Problem and parsed.name[1] == NETWORK_POLICIES.kind:
                problem = read(Problem, key, value)
                if problem is not None and problem.last_good:
                    last_good[parsed.name[2], parsed.name[3]] = problem.last_good
        self._peers.load(texts)
        self._subjects.load(contents)
        self._policies.load(asked, last_good)

    def _take_over(self) -> None:
        key = self._keys.identity_keys()
        value = self.publisher.writer.stored.get(key)
        self._policies.take_over(read(IdentityKeys, key, value) if value is not None else None)

    async def run(self, holder: str, ttl: int) -> None:
        """Never returns."""
        namespaces = Namespaces(self.publisher, self._directory, self._peers, self._subjects, self._delegation)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(NAMESPACES, namespaces))
            group.create_task(self._watch_policies())
            group.create_task(self._watch_logging())
            group.create_task(self._follow_identities())
            group.create_task(self._events.run())
            group.create_task(self.publisher.run(holder, ttl))

    def _tell(self, key: Key, reason: str) -> None:
        uid = self._policies.uids.get(key)
        if uid is None:  # it is gone
            self._events.forget(*key, NETWORK_POLICIES.kind)
            return
        what = (EXCEEDED, reason) if reason else (FITS, "its rules fit, and are in force")
        about = {"kind": NETWORK_POLICIES.kind, "api_version": "networking.k8s.io/v1"}
        self._events.tell(Notice(*key, uid, *what, warning=bool(reason), **about))

    async def _watch(self, resource: Resource[T], handler: Handler[T]) -> None:
        await track(self._api, resource, handler, NAME, self.publisher.after(resource.kind))

    async def _watch_policies(self) -> None:
        after = self.publisher.after(NETWORK_POLICIES.kind)

        def done(listed: bool) -> None:
            if listed:
                self._policies.listed()
            after(listed)

        await track(self._api, NETWORK_POLICIES, self._policies, NAME, done)

    async def _watch_logging(self) -> None:
        # No source that others wait for: a cluster may not have the kind, or not let us read it.
        async with aclosing(list_watch(self._api, NETWORK_LOGGING)) as events:
            tracker = Tracker(self._logging)
            async for event in events:
                tracker.apply(event)
                if isinstance(event, Listed) and not tracker.knows(("", LOGGING_NAME)):
                    self._logging.absent()
                self.publisher.changed()

    async def _follow_identities(self) -> None:
        # Rules made for a part of the identities would cut off the others: only complete states count.
        mark = self._keys.identities_synced()
        async with aclosing(follow_marked(self._store, f"{self._keys.prefix}identities/", [mark])) as changes:
            async for change in changes:
                if isinstance(change, Incomplete):
                    continue
                if isinstance(change, Snapshot):
                    with building():
                        self._replace(change.values)
                    self.publisher.listed(IDENTITIES)
                else:
                    for operation in change.operations:
                        value = operation.value if isinstance(operation, Put) else None
                        self._identity(operation.key, value)
                self.publisher.changed()

    def _replace(self, values: Mapping[str, bytes]) -> None:
        for number in list(self._directory.identities):
            if self._keys.identity(number) not in values:
                self._identity(self._keys.identity(number), None)
        for key, value in values.items():
            self._identity(key, value)

    def _identity(self, key: str, value: bytes | None) -> None:
        if key == self._keys.identities_synced():
            synced = read(Synced, key, value) if value is not None else None
            if synced is not None:
                self._policies.answered(synced.follows)
            return
        text = key.rsplit("/", 1)[-1]
        if not text.isdecimal():
            get_logger().warning("identity key not understood", key=key)
            return
        number = int(text)
        identity = read(Identity, key, value) if value is not None else None
        if value is not None and identity is None:
            return  # not understood: what we know of it stays
        if self._directory.identities.get(number) == identity:
            return
        if number in self._directory.identities:
            gone = self._directory.remove(number)
            self._peers.identity_removed(number, gone)
            self._subjects.identity_removed(number, gone)
        if identity is not None:
            self._directory.add(number, identity)
            self._peers.identity_added(number, identity)
            self._subjects.identity_added(number, identity)


def read(kind: type[R], key: str, value: bytes) -> R | None:
    try:
        return decode(kind, value)
    except RecordError as error:
        get_logger().warning("record not understood; leaving it out", key=key, reason=str(error))
        return None
