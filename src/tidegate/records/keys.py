"""Where records lie: readable keys under `/tidegate/<cluster>/v1/`.

| key                                          | record       | writer        |
|----------------------------------------------|--------------|---------------|
| meta/synced/<writer>                         | Synced       | both          |
| meta/problems/<writer>/<kind>/<ns>/<name>    | Problem      | both          |
| meta/writer/<writer>                         | LastWrite    | both          |
| meta/capacity                                | Capacity     | endpoint-sync |
| nodes/<node>                                 | Node         | endpoint-sync |
| identities/<identity>                        | Identity     | endpoint-sync |
| identities/synced                            | Synced       | endpoint-sync |
| endpoints/<ns>/<pod>                         | Endpoint     | endpoint-sync |
| services/<ns>/<name>                         | Service      | endpoint-sync |
| backends/<ns>/<name>/<shard>                 | BackendShard | endpoint-sync |
| config/identity-keys                         | IdentityKeys | policy-sync   |
| config/masquerade                            | Masquerade   | endpoint-sync |
| config/logging                               | Logging      | policy-sync   |
| config/logging/<ns>                          | NamespaceLogging | policy-sync |
| config/audit/<ns>                            | NamespaceAudit | policy-sync |
| peers/<set>                                  | PeerSet      | policy-sync   |
| peers/<set>/<shard>                          | PeerShard    | policy-sync   |
| rules/<policy>                               | Rules        | policy-sync   |
| subjects/<identity>                          | Subject      | policy-sync   |

Numbers are written in decimal. Leader keys lie beside, under `/tidegate/<cluster>/leader/`,
because agents watch all of v1.
"""

import re
from typing import NamedTuple

from tidegate.records.schema import (
    BackendShard,
    Capacity,
    Endpoint,
    Identity,
    IdentityKeys,
    LastWrite,
    Logging,
    Masquerade,
    NamespaceAudit,
    NamespaceLogging,
    Node,
    PeerSet,
    PeerShard,
    Problem,
    Record,
    Rules,
    Service,
    Subject,
    Synced,
)

_CLUSTER = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")

# (first segment, number of segments) → record; the segments after the first are the record's name.
_LAYOUT: dict[tuple[str, int], type[Record]] = {
    ("nodes", 2): Node,
    ("identities", 2): Identity,
    ("endpoints", 3): Endpoint,
    ("services", 3): Service,
    ("backends", 4): BackendShard,
    ("peers", 2): PeerSet,
    ("peers", 3): PeerShard,
    ("rules", 2): Rules,
    ("subjects", 2): Subject,
}


class Parsed(NamedTuple):
    """A key taken apart: `kind` is the class of the record, `name` the segments that name it."""

    kind: type[Record]
    name: tuple[str, ...]


class Keyspace:
    """The keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        if not _CLUSTER.fullmatch(cluster):
            raise ValueError(f"cluster name {cluster!r}: use lower-case letters, digits, '-' and '.'")
        self.cluster = cluster
        self.root = f"/tidegate/{cluster}/"
        self.prefix = f"{self.root}v1/"

    def leader(self, service: str) -> str:
        return f"{self.root}leader/{service}"

    def synced(self, writer: str) -> str:
        return f"{self.prefix}meta/synced/{writer}"

    def last_write(self, writer: str) -> str:
        return f"{self.prefix}meta/writer/{writer}"

    def problem(self, writer: str, kind: str, namespace: str, name: str) -> str:
        """`namespace` is empty for objects of the cluster and then written as `-`."""
        return f"{self.problems(writer)}{kind}/{namespace or '-'}/{name}"

    def problems(self, writer: str) -> str:
        """What the keys of all of a writer's problems begin with."""
        return f"{self.prefix}meta/problems/{writer}/"

    def capacity(self) -> str:
        return f"{self.prefix}meta/capacity"

    def node(self, name: str) -> str:
        return f"{self.prefix}nodes/{name}"

    def identity(self, identity: int) -> str:
        return f"{self.prefix}identities/{identity}"

    def identities_synced(self) -> str:
        return f"{self.prefix}identities/synced"

    @property
    def endpoints(self) -> str:
        """What the keys of all endpoints begin with."""
        return f"{self.prefix}endpoints/"

    @property
    def of_services(self) -> tuple[str, str]:
        """What the keys of all Services, and of all backends, begin with."""
        return f"{self.prefix}services/", f"{self.prefix}backends/"

    def endpoint(self, namespace: str, pod: str) -> str:
        return f"{self.endpoints}{namespace}/{pod}"

    def service(self, namespace: str, name: str) -> str:
        return f"{self.prefix}services/{namespace}/{name}"

    def backends(self, namespace: str, service: str, shard: int) -> str:
        return f"{self.prefix}backends/{namespace}/{service}/{shard}"

    def identity_keys(self) -> str:
        return f"{self.prefix}config/identity-keys"

    def masquerade(self) -> str:
        return f"{self.prefix}config/masquerade"

    def logging(self) -> str:
        return f"{self.prefix}config/logging"

    def namespace_logging(self, namespace: str) -> str:
        return f"{self.prefix}config/logging/{namespace}"

    def namespace_audit(self, namespace: str) -> str:
        return f"{self.prefix}config/audit/{namespace}"

    def peer_set(self, number: int) -> str:
        return f"{self.prefix}peers/{number}"

    def peers(self, number: int, shard: int) -> str:
        return f"{self.prefix}peers/{number}/{shard}"

    def rules(self, policy: int) -> str:
        return f"{self.prefix}rules/{policy}"

    def subject(self, identity: int) -> str:
        return f"{self.prefix}subjects/{identity}"

    def segments(self, key: str) -> tuple[str, ...]:
        """What of a key below `prefix` follows it, taken apart."""
        return tuple(key.removeprefix(self.prefix).split("/"))

    def parse(self, key: str) -> Parsed | None:
        """The record class and name of a key; None for keys that this version does not know (never an error)."""
        if not key.startswith(self.prefix):
            return None
        return parse(key.removeprefix(self.prefix))


def parse(path: str) -> Parsed | None:
    """Like Keyspace.parse, for the part of the key after `…/v1/`."""
    segments = tuple(path.split("/"))
    kind = _LAYOUT.get((segments[0], len(segments)))
    if kind is not None and path != "identities/synced":
        return Parsed(kind, segments[1:])
    if path == "config/identity-keys":
        return Parsed(IdentityKeys, segments[1:])
    if path == "config/masquerade":
        return Parsed(Masquerade, segments[1:])
    if path == "config/logging":
        return Parsed(Logging, segments[1:])
    if segments[:2] == ("config", "logging") and len(segments) == 3:
        return Parsed(NamespaceLogging, segments[2:])
    if segments[:2] == ("config", "audit") and len(segments) == 3:
        return Parsed(NamespaceAudit, segments[2:])
    if path == "meta/capacity":
        return Parsed(Capacity, segments[1:])
    if path == "identities/synced":
        return Parsed(Synced, ("endpoint-sync",))
    if segments[:2] == ("meta", "synced") and len(segments) == 3:
        return Parsed(Synced, segments[2:])
    if segments[:2] == ("meta", "writer") and len(segments) == 3:
        return Parsed(LastWrite, segments[2:])
    if segments[:2] == ("meta", "problems") and len(segments) == 6:
        return Parsed(Problem, segments[2:])
    return None
