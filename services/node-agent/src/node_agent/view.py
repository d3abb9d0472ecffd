"""From records in etcd to tables: the node's whole view of the cluster. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from sys import intern
from types import MappingProxyType
from typing import Any

from node_agent.departures import Departures
from node_agent.endpoints import EndpointView
from node_agent.entries import Entries
from node_agent.hostports import HostPortView
from node_agent.masquerade import MasqueradeView
from node_agent.policy import PolicyView
from node_agent.room import Room
from node_agent.selections import FrontendTable, SelectionTable
from node_agent.services import ServiceView
from node_agent.table import Tables
from tidegate.records import (
    BackendShard,
    Endpoint,
    Keyspace,
    Logging,
    Masquerade,
    NamespaceAudit,
    NamespaceLogging,
    Node,
    PeerSet,
    PeerShard,
    Record,
    RecordError,
    Rules,
    Service,
    Subject,
    decode,
)
from tidegate.records.keys import Parsed
from tidegate.store import Operation, Put


class View:
    """Takes complete snapshots and batches; a record that cannot be understood leaves the previous one in force."""

    def __init__(
        self,
        own: str,
        keys: Keyspace,
        tables: Tables,
        entries: Entries,
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """`sizes`: map → entries that it holds; without, any number."""
        self._own = own
        self._keys = keys
        self._tables = tables
        self.policy = PolicyView(tables, entries, sizes)
        self.endpoints = EndpointView(own, tables, entries, self.policy)
        self.room = Room(tables, entries, sizes)
        selections, leading = SelectionTable(tables, entries), FrontendTable(tables, entries)
        self.services = ServiceView(own, tables, entries, selections, leading, self.room)
        self.host_ports = HostPortView(own, selections, leading, self.room)
        self.departures = Departures(self.services, self.endpoints, self._has_unread)
        self.masquerade = MasqueradeView(tables, entries)
        self.logging = Logging()
        self.problems: dict[str, str] = {}  # key → why it was not understood
        self._known: set[str] = set()  # keys of records that have been understood, but for those of endpoints
        self._loaded = False
        self._judged: set[int] = set()
        # What a record is taken by; `value` is how it lies in etcd, where so many are kept that they are kept so.
        self._setters: dict[type, Callable[[tuple[str, ...], Any, bytes | None], None]] = {
            Node: lambda name, record, _: self._set_node(name[0], record),
            Masquerade: lambda _name, record, _: self.masquerade.set_config(record),
            Logging: lambda _name, record, _: self._set_logging(record),
            NamespaceLogging: lambda name, record, _: self.policy.set_namespace_logging(name[0], record),
            NamespaceAudit: lambda name, record, _: self.policy.set_namespace_audit(name[0], record),
            Endpoint: self._set_endpoint,
            Service: lambda name, record, _: self._set_service(_service_key(name), record),
            BackendShard: self._set_backends,
            PeerSet: lambda name, record, _: self.policy.set_set(int(name[0]), record is not None),
            PeerShard: lambda name, record, _: self.policy.set_shard(int(name[0]), int(name[1]), record),
            Rules: lambda name, _, value: self._set_rules(int(name[0]), value),
            Subject: self._set_subject,
        }

    @property
    def loaded(self) -> bool:
        """Whether a snapshot has ever been taken."""
        return self._loaded

    def snapshot(self, values: dict[str, bytes]) -> None:
        """What is known and not in `values` is gone. Empties `values`: what has been taken makes room for what is kept
        of it."""
        for key in [key for key in self._all_known() if key not in values]:
            self._set(key, None)
        of_endpoints, of_services = self._keys.endpoints, self._keys.of_services
        owners: dict[tuple[str, ...], list[str]] = {}
        # Rules first, then whole Services: each pod and each Service is looked at once, when all is known about it.
        for key in [key for key in values if not key.startswith(of_endpoints)]:
            if key.startswith(of_services):
                owners.setdefault(self._keys.segments(key)[1:3], []).append(key)
            else:
                self._set(key, values.pop(key))
        self._judge()
        for owner in sorted(owners):
            for key in owners.pop(owner):
                self._set(key, values.pop(key))
            self.services.settle()
        # In etcd's order, as of two that claim an address the later one has it; and no list holds the keys any longer.
        endpoints = [*values]
        endpoints.reverse()
        while endpoints:
            key = endpoints.pop()
            self._set(key, values.pop(key))
        self._settle()
        if not self._loaded:
            self._tables.adopt()
            self.endpoints.recall_no_more()
            self._loaded = True

    def batch(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            self._set(operation.key, operation.value if isinstance(operation, Put) else None)
        self._settle()

    def _has_unread(self, kind: type[Record]) -> bool:
        """Whether a record of this kind has never been understood."""
        problems = ((key, self._keys.parse(key)) for key in self.problems)
        return any(
            parsed is not None and parsed.kind is kind and not self._knows(key, parsed) for key, parsed in problems
        )

    def _all_known(self) -> Iterator[str]:
        yield from self._known | self.problems.keys()
        yield from (self._keys.endpoints + key for key in self.endpoints.keys)

    def _knows(self, key: str, parsed: Parsed) -> bool:
        """Whether the record has ever been understood. The keys of endpoints are not kept twice."""
        if parsed.kind is Endpoint:
            return "/".join(parsed.name) in self.endpoints.keys
        return key in self._known

    def _set(self, key: str, value: bytes | None) -> None:
        parsed = self._keys.parse(key)
        if parsed is None or parsed.kind not in self._setters:
            return
        unread = key in self.problems and not self._knows(key, parsed)
        if value is not None or self._knows(key, parsed):
            try:
                self._take(key, value, parsed)
            except (RecordError, ValueError) as error:
                self.problems[key] = str(error)
                return
        self.problems.pop(key, None)
        if unread:
            self.departures.everything()

    def _take(self, key: str, value: bytes | None, parsed: Parsed) -> None:
        """Raises RecordError, ValueError."""
        kind, name = parsed
        self._setters[kind](name, decode(kind, value) if value is not None else None, value)
        if value is None:
            self._known.discard(key)
        elif kind is not Endpoint:
            self._known.add(key)

    def _set_service(self, key: tuple[str, str], record: Service | None) -> None:
        before = self.services.services.get(key)
        self.services.set_service(key, record)
        self.departures.service(key, before, record)

    def _set_backends(self, name: tuple[str, ...], record: BackendShard | None, value: bytes | None) -> None:
        key, shard = _service_key(name), int(name[2])
        before = self.services.set_shard(key, shard, record, value)
        self.departures.shard(key, before, record)

    def _set_endpoint(self, name: tuple[str, ...], record: Endpoint | None, _: bytes | None) -> None:
        before = self.endpoints.set_endpoint("/".join(name), record)
        if before is not None or (record is not None and record.host_ports):
            self.host_ports.set_endpoint((name[0], name[1]), record)
        if before is not None:
            self.departures.endpoint(before.addresses, record.addresses if record is not None else ())

    def _set_logging(self, record: Logging | None) -> None:
        self.logging = record or Logging()

    def _set_node(self, name: str, record: Node | None) -> None:
        self.endpoints.set_node(name, record)
        self.masquerade.set_node(name, record)
        if name == self._own:
            self.services.set_zone(record.zone if record else "")

    def set_host(self, pods: Mapping[bytes, int], addresses: frozenset[bytes]) -> None:
        """The node's host routes to pods (address → ifindex) and its own addresses."""
        self.endpoints.set_host(pods, addresses)
        for identity in self.policy.retry():
            self.policy.again(identity)
            self.endpoints.judged(identity)
        self._settle_policy()
        due = self.room.retry()
        self.services.again(due)
        self.host_ports.again(due)
        self.services.set_addresses(addresses)
        self.host_ports.set_addresses(addresses)
        self.services.settle()

    @property
    def refused_policies(self) -> dict[str, str]:
        """Whose rules are not those that they should be → why."""
        found = {}
        for identity, reason in self.policy.refused.items():
            pods = self.endpoints.pods_of(identity)
            more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
            if pods:
                found[f"policies of {pods[0]}{more}"] = reason
        if self.policy.left_out:
            sets = len({group for group, _ in self.policy.left_out})
            text = f"{len(self.policy.left_out)} members found no room, and are not allowed what they should be"
            found[f"{sets} sets of peers"] = text
        return found

    def _set_subject(self, name: tuple[str, ...], record: Subject | None, _: bytes | None) -> None:
        self.policy.set_subject(int(name[0]), record)
        self._judged.add(int(name[0]))

    def _set_rules(self, policy: int, value: bytes | None) -> None:
        self._judged.update(self.policy.set_rules(policy, value))

    def _judge(self) -> None:
        judged, self._judged = self._judged, set()
        for identity in judged:
            self.endpoints.judged(identity)

    def _settle(self) -> None:
        self._judge()
        self._settle_policy()
        self.services.settle()

    def _settle_policy(self) -> None:
        while found := self.policy.settle():
            for identity in found:
                self.endpoints.judged(identity)


def _service_key(name: tuple[str, ...]) -> tuple[str, str]:
    """Namespace and name, of the record of a Service or of its backends: one string for all that is kept of them."""
    return intern(name[0]), intern(name[1])
