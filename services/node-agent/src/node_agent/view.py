"""From records in etcd to tables: the node's whole view of the cluster. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from node_agent.endpoints import EndpointView
from node_agent.entries import Entries
from node_agent.policy import PolicyView
from node_agent.services import ServiceView
from node_agent.table import Tables
from tidegate.records import (
    BackendShard,
    Endpoint,
    Keyspace,
    Node,
    PeerShard,
    RecordError,
    Rules,
    Service,
    Subject,
    decode,
)
from tidegate.store import Delete, Operation, Put

WRITERS = ("endpoint-sync", "policy-sync")
KINDS = (Node, Endpoint, Service, BackendShard, PeerShard, Rules, Subject)


class View:
    """Takes snapshots and batches; a record that cannot be understood leaves the previous one in force.

    Nothing reaches the tables before a complete snapshot: one in which both writers have said that they are done.
    """

    def __init__(self, own: str, keys: Keyspace, tables: Tables, entries: Entries) -> None:
        self._keys = keys
        self._tables = tables
        self.policy = PolicyView(tables, entries)
        self.endpoints = EndpointView(own, tables, entries, self.policy)
        self.services = ServiceView(tables, entries)
        self.problems: dict[str, str] = {}  # key → why it was not understood
        self._known: set[str] = set()
        self._waiting: dict[str, bytes] | None = {}  # values of an incomplete snapshot
        self._loaded = False
        self._judged: set[int] = set()
        self._setters: dict[type, Callable[[tuple[str, ...], Any], None]] = {
            Node: lambda name, record: self.endpoints.set_node(name[0], record),
            Endpoint: lambda name, record: self.endpoints.set_endpoint((name[0], name[1]), record),
            Service: lambda name, record: self.services.set_service((name[0], name[1]), record),
            BackendShard: lambda name, record: self.services.set_shard((name[0], name[1]), int(name[2]), record),
            PeerShard: lambda name, record: self.policy.set_shard(int(name[0]), int(name[1]), record),
            Rules: self._set_rules,
            Subject: self._set_subject,
        }

    @property
    def loaded(self) -> bool:
        """Whether a complete snapshot has ever been taken."""
        return self._loaded

    @property
    def missing(self) -> list[str]:
        """Writers that have not completed what the last snapshot holds."""
        if self._waiting is None:
            return []
        return [writer for writer in WRITERS if self._keys.synced(writer) not in self._waiting]

    def snapshot(self, values: Mapping[str, bytes]) -> None:
        self._waiting = dict(values)
        self._load_if_complete()

    def withdrawn(self, operations: Sequence[Operation]) -> bool:
        """Whether a writer's mark goes with these operations.

        Then the store is being emptied, and is not to be followed until a complete snapshot stands again.
        """
        marks = {self._keys.synced(writer) for writer in WRITERS}
        return any(isinstance(operation, Delete) and operation.key in marks for operation in operations)

    def batch(self, operations: Sequence[Operation]) -> None:
        if self._waiting is not None:
            for operation in operations:
                if isinstance(operation, Put):
                    self._waiting[operation.key] = operation.value
                else:
                    self._waiting.pop(operation.key, None)
            self._load_if_complete()
            return
        for operation in operations:
            self._set(operation.key, operation.value if isinstance(operation, Put) else None)
        self._settle()

    def _load_if_complete(self) -> None:
        values = self._waiting
        if values is None or self.missing:
            return
        self._waiting = None
        for key in (self._known | self.problems.keys()) - values.keys():
            self._set(key, None)
        for key, value in values.items():
            self._set(key, value)
        self._settle()
        if not self._loaded:
            self._tables.adopt()
            self._loaded = True

    def _set(self, key: str, value: bytes | None) -> None:
        parsed = self._keys.parse(key)
        if parsed is None or parsed.kind not in KINDS:
            return
        if value is None and key not in self._known:
            self.problems.pop(key, None)
            return
        try:
            record = decode(parsed.kind, value) if value is not None else None
            self._setters[parsed.kind](parsed.name, record)
        except (RecordError, ValueError) as error:
            self.problems[key] = str(error)
            return
        self.problems.pop(key, None)
        if value is None:
            self._known.discard(key)
        else:
            self._known.add(key)

    def _set_subject(self, name: tuple[str, ...], record: Subject | None) -> None:
        self.policy.set_subject(int(name[0]), record)
        self._judged.add(int(name[0]))

    def _set_rules(self, name: tuple[str, ...], record: Rules | None) -> None:
        self._judged.update(self.policy.set_rules(int(name[0]), record))

    def _settle(self) -> None:
        judged, self._judged = self._judged, set()
        for identity in judged:
            self.endpoints.judged(identity)
        self.policy.settle()
        self.services.settle()
