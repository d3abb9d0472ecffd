"""What etcd says, read once: all records of a cluster, by kind."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from tidegate.records import (
    BackendShard,
    Endpoint,
    Identity,
    Keyspace,
    NamespaceAudit,
    Node,
    PeerSet,
    PeerShard,
    Problem,
    Record,
    RecordError,
    Rules,
    Service,
    Subject,
    Synced,
    decode,
)
from tidegate.runtime.settings import CommonSettings, store_options
from tidegate.store import StoreError, UnavailableError
from tidegate.store.etcd import EtcdStore

R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=Callable[..., Any])

Name = tuple[str, ...]

RUN = Path("/run/tidegate")


def here() -> Path:
    """Where the agents of this machine keep their state; with TIDEGATE_PLAYGROUND, those of the playground it names."""
    name = os.environ.get("TIDEGATE_PLAYGROUND", "")
    return RUN.with_name(f"{RUN.name}-{name}") if name else RUN


@dataclass
class Cluster:
    """All records by kind and name; `unreadable`: key → why."""

    revision: int = 0
    size: int = 0  # bytes of all values
    by_kind: dict[type[Record], dict[Name, Record]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    leaders: dict[str, str] = field(default_factory=dict)  # service → holder

    def all(self, kind: type[R]) -> dict[Name, R]:
        return self.by_kind.get(kind, {})  # type: ignore[return-value]

    def identity(self, number: int) -> Identity | None:
        return self.all(Identity).get((str(number),))

    def rules_of(self, identity: int) -> Rules | None:
        subject = self.all(Subject).get((str(identity),))
        return self.all(Rules).get((str(subject.policy),)) if subject else None

    @cached_property
    def audited(self) -> frozenset[str]:
        """Namespaces in audit. Of nodes that are, records say nothing."""
        return frozenset(name for (name,), record in self.all(NamespaceAudit).items() if record.enabled)

    @cached_property
    def _sets(self) -> dict[int, tuple[set[int], dict[tuple[bytes, int], int]]]:
        found: dict[int, tuple[set[int], dict[tuple[bytes, int], int]]] = {}
        for name, record in self.all(PeerShard).items():
            members, blocks = found.setdefault(int(name[0]), (set(), {}))
            members.update(record.members)
            blocks.update({(address, prefix): needed for address, prefix, needed in record.blocks})
        return found

    def members(self, group: int) -> set[int]:
        """Identities of a set."""
        return self._sets.get(group, (set(), {}))[0]

    def blocks(self, group: int) -> dict[tuple[bytes, int], int]:
        """Prefixes of a set of blocks → what holds there (records.PeerShard)."""
        return self._sets.get(group, (set(), {}))[1]

    def set_text(self, group: int) -> str:
        if group == 1:
            return "everybody"
        record = self.all(PeerSet).get((str(group),))
        return record.text if record else f"set {group}"

    def addresses(self) -> dict[bytes, str]:
        """Address → who has it, in words."""
        found = {a: f"node {name[0]}" for name, node in self.all(Node).items() for a in node.addresses}
        for name, service in self.all(Service).items():
            found.update(dict.fromkeys(service.cluster_ips, f"service {'/'.join(name)}"))
        for name, endpoint in self.all(Endpoint).items():
            found.update(dict.fromkeys(endpoint.addresses, "/".join(name)))
        return found


def parse(keys: Keyspace, values: Mapping[str, bytes], revision: int = 0) -> Cluster:
    cluster = Cluster(revision, sum(map(len, values.values())))
    for key, value in values.items():
        if key.startswith(f"{keys.root}leader/"):
            cluster.leaders[key.rsplit("/", 1)[-1]] = value.decode(errors="replace")
            continue
        parsed = keys.parse(key)
        if parsed is None:
            continue
        try:
            cluster.by_kind.setdefault(parsed.kind, {})[parsed.name] = decode(parsed.kind, value)
        except RecordError as error:
            cluster.unreadable[key] = str(error)
    return cluster


def reads_cluster(command: F) -> F:
    """Adds the etcd options; the command gets them as `common`."""
    return store_options(command)  # type: ignore[return-value]


def playground() -> dict[str, Any]:
    """What the playground says of itself, where one is up and the user has named no etcd; otherwise nothing."""
    chosen = click.get_current_context().get_parameter_source("etcd")
    state = here() / "playground" / "state.json"
    if chosen is not click.core.ParameterSource.DEFAULT or not state.exists():
        return {}
    known: dict[str, Any] = json.loads(state.read_text())
    return known


def resolve(common: CommonSettings) -> CommonSettings:
    """The etcd of the playground, where one is up and the user has named none."""
    known = playground()
    if not known.get("etcd"):
        return common
    return playground_settings(known)


def playground_settings(known: Mapping[str, Any], endpoint: str = "etcd") -> CommonSettings:
    """How to read the etcd of a playground, by its register. `endpoint`: "etcd", or "etcd_unix" for any namespace."""
    files = {name: Path(path) for name, path in known.get("etcd_files", {}).items()}
    return CommonSettings(
        cluster=known["cluster"],
        etcd=tuple(known[endpoint].split(",")),
        etcd_ca=files.get("etcd_ca"),
        etcd_cert=files.get("etcd_cert"),
        etcd_key=files.get("etcd_key"),
    )


class UnreadableError(click.ClickException):
    """What etcd says cannot be read; the text says why, and what to do."""


async def read_all(settings: CommonSettings) -> Cluster:
    """Raises StoreError."""
    keys = Keyspace(settings.cluster)
    store = EtcdStore(settings)
    try:
        snapshot = await store.snapshot(keys.root)
    finally:
        await store.close()
    return parse(keys, snapshot.values, snapshot.revision)


def load(common: CommonSettings) -> Cluster:
    """Reads the cluster, or ends the command with a sentence. Raises UnreadableError."""
    settings = resolve(common)
    try:
        cluster = asyncio.run(read_all(settings))
    except UnavailableError as error:
        raise UnreadableError(f"{error}. Name etcd with --etcd or TIDEGATE_ETCD") from error
    except StoreError as error:
        raise UnreadableError(str(error)) from error
    if not cluster.all(Synced) and not cluster.by_kind:
        text = f"etcd at {', '.join(settings.etcd)} holds nothing of a cluster {settings.cluster!r}"
        raise UnreadableError(f"{text}: name another with --cluster, or start the sync services")
    return cluster


def backends(cluster: Cluster, name: Name) -> BackendShard:
    """All backends of a Service as one record."""
    shards = [record for key, record in cluster.all(BackendShard).items() if key[:2] == name]
    merged = {backend.address: backend for shard in shards for backend in shard.backends}
    return BackendShard(backends=tuple(merged[address] for address in sorted(merged)))


def problems(cluster: Cluster) -> list[tuple[str, str, str, str, str]]:
    """(writer, kind, namespace, name, reason) of objects that were not understood."""
    return [(*name, record.reason) for name, record in sorted(cluster.all(Problem).items())]  # type: ignore[misc]
