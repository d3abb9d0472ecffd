"""The records in etcd. One class a kind; a value is a msgpack map of its fields.

Every record carries `v`, a pair [major, minor]. A reader takes any minor version of its own major: fields that it
does not know are skipped, fields that an older writer did not send have defaults. A new major version lives
under a prefix of its own (`…/v2/`).

Units and forms, for all records:
- addresses are 16 bytes, IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2): the very bytes of the map keys;
- prefixes of CIDRs count in the 128-bit form (an IPv4 /24 is 120);
- protocols are IANA numbers, ports are host-order integers, identities, sets and policies are u32.
"""

from enum import IntEnum
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Address = Annotated[bytes, Meta(min_length=16, max_length=16)]
AddressPrefix = Annotated[int, Meta(ge=0, le=128)]

VERSION = (1, 0)

# Identities below FIRST_IDENTITY are fixed; the others follow from their content (records.ids). Bit 31 is kept
# free.
IDENTITY_UNKNOWN = 0
IDENTITY_NODE = 1
IDENTITY_REMOTE_NODE = 2
IDENTITY_WORLD = 3
FIRST_IDENTITY = 256

# The set that every peer is a member of; no `peers/` record describes it.
ANY_SET = 1
FIRST_SET = 256

# Rules naming more sets than one map entry holds are given one set that is the union of them.
MAX_SETS_PER_RULE = 8


class Protocol(IntEnum):
    """IANA protocol numbers. ANY stands in rules without a port."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    SCTP = 132


class Direction(IntEnum):
    INGRESS = 0
    EGRESS = 1


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all records have. `kind` is the segment of the key that the record is stored under."""

    kind: ClassVar[str] = ""

    # A default that a factory makes is written all the same (omit_defaults leaves out others): readers need it always.
    v: tuple[int, int] = msgspec.field(default_factory=lambda: VERSION)


class IdentityKeys(Record, frozen=True, kw_only=True):
    """`config/identity-keys`, from policy-sync: what endpoint-sync must keep in identities because a policy asks.

    endpoint-sync answers with them in its `Synced`; then policy-sync compiles the policies that asked.
    """

    kind: ClassVar[str] = "identity-keys"

    label_keys: tuple[str, ...] = ()  # label keys of high cardinality that some policy selects on
    port_names: tuple[str, ...] = ()  # port names that some policy uses
    asked: int = 0  # Unix time, ns: since when just this is asked for; it rises with each change


class Synced(Record, frozen=True, kw_only=True):
    """`meta/synced/<writer>`: all prefixes of this writer are complete. Written last, after each loading.

    endpoint-sync writes the same to `identities/synced`, for policy-sync, which follows that prefix alone.
    """

    kind: ClassVar[str] = "synced"

    epoch: int = 0  # create revision of the writer's leader key: rises with each leadership
    loaded: int = 0  # Unix time, ns: when the writer last compared all that the store held with what it wants
    follows: IdentityKeys = IdentityKeys()  # endpoint-sync only: what its identities carry


class LastWrite(Record, frozen=True, kw_only=True):
    """`meta/writer/<writer>`: written with each transaction of that writer, which holds only if it has not changed.

    Its token is drawn anew each time: so no two histories of a store are alike, however alike their records.
    """

    kind: ClassVar[str] = "last-write"

    sequence: int = 0  # transactions of this leadership so far
    token: bytes = b""


class Problem(Record, frozen=True, kw_only=True):
    """`meta/problems/<writer>/<kind>/<namespace>/<name>`: an object that could not be understood, or does not fit."""

    kind: ClassVar[str] = "problem"

    reason: str = ""
    last_good: str = ""  # the state that stays in force, as JSON in a form of the writer's own: for its next start
    held_back: bool = False  # it was understood, and does not fit


class Masquerade(Record, frozen=True, kw_only=True):
    """`config/masquerade`: where pods are known by their own addresses outside of the cluster.

    What pods send to any other address, and which is for no pod and no node, leaves under the node's. Without this
    record nothing does.
    """

    kind: ClassVar[str] = "masquerade"

    non_masquerade: tuple[tuple[Address, AddressPrefix], ...] = ()  # sorted; link-local ranges among them


class Logging(Record, frozen=True, kw_only=True):
    """`config/logging`, from policy-sync: what nodes log of what policies allow and deny. Without it, nothing."""

    kind: ClassVar[str] = "logging"

    allowed: bool = False
    allowed_delegated: bool = False  # of what is allowed, what policies allow of which NamespaceLogging says so
    denied: bool = False
    denied_delegated: bool = False  # of what is denied, what concerns pods of namespaces of which it says so


class NamespaceLogging(Record, frozen=True, kw_only=True):
    """`config/logging/<namespace>`: what annotations in it ask for, where logging is delegated. Only where they do."""

    kind: ClassVar[str] = "namespace-logging"

    denied: bool = False
    policies: tuple[str, ...] = ()  # names of NetworkPolicies, sorted: what they allow


class NamespaceAudit(Record, frozen=True, kw_only=True):
    """`config/audit/<namespace>`, from policy-sync: what policies deny its pods passes. Only where it does."""

    kind: ClassVar[str] = "namespace-audit"

    enabled: bool = False


class Capacity(Record, frozen=True, kw_only=True):
    """`meta/capacity`: what all Services together may take, as endpoint-sync was told (records.capacity)."""

    kind: ClassVar[str] = "capacity"

    backends: int = 0
    frontends: int = 0
    source_ranges: int = 0


class Node(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = "node"

    addresses: tuple[Address, ...] = ()  # InternalIPs first, then the others, in the order of the Node's status
    pod_cidrs: tuple[tuple[Address, AddressPrefix], ...] = ()  # (address, prefix length in 128-bit form)
    zone: str = ""
    region: str = ""


class Identity(Record, frozen=True, kw_only=True):
    """What makes this identity: the pods with equal values here are one identity."""

    kind: ClassVar[str] = "identity"

    namespace: str = ""
    labels: dict[str, str] = {}
    ports: dict[str, tuple[U8, Port]] = {}  # port name → (protocol, port); only names that some policy uses


class HostPort(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A port of the pod's node that leads to a port of the pod, on one address of the node or on all of them."""

    protocol: U8 = Protocol.TCP
    port: Port
    target: Port
    address: Annotated[bytes, Meta(max_length=16)] = b""  # empty: every address of the node


class Endpoint(Record, frozen=True, kw_only=True):
    """A pod that has an address. Pods of the host network are no endpoints of their own: they are their node."""

    kind: ClassVar[str] = "endpoint"

    node: str = ""
    identity: U32 = 0
    addresses: tuple[Address, ...] = ()
    ports: dict[str, tuple[U8, Port]] = {}
    host_ports: tuple[HostPort, ...] = ()
    workload_kind: str = ""
    workload_name: str = ""
    uid: str = ""


class ServicePort(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: U32  # follows from namespace/name/port name (records.ids); the key of the service maps
    name: str = ""
    protocol: U8 = Protocol.TCP
    port: Port = 0
    node_port: Port = 0


class Service(Record, frozen=True, kw_only=True):
    """A Service with frontends. Headless and ExternalName Services have none and no record."""

    kind: ClassVar[str] = "service"

    type: str = "ClusterIP"
    cluster_ips: tuple[Address, ...] = ()
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()  # those with ipMode VIP: what is sent to them is ours
    ports: tuple[ServicePort, ...] = ()
    internal_local: bool = False  # internalTrafficPolicy: Local
    external_local: bool = False  # externalTrafficPolicy: Local
    affinity_seconds: U32 = 0  # sessionAffinity: ClientIP with this timeout; 0: None
    source_ranges: tuple[tuple[Address, AddressPrefix], ...] = ()  # who may use load_balancer_ips; empty: everybody
    health_port: Port = 0  # healthCheckNodePort


class Backend(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One endpoint address of one EndpointSlice. `ports` maps a Service port's name to the backend's port."""

    address: Address
    ports: dict[str, Port] = {}
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    for_zones: tuple[str, ...] = ()  # hints: clients of these zones should use it (KEP-2433)
    for_nodes: tuple[str, ...] = ()  # hints: clients of these nodes should use it (KEP-3015)


class BackendShard(Record, frozen=True, kw_only=True):
    """`backends/<namespace>/<service>/<shard>`: some backends of a Service; all of them are the union of its shards."""

    kind: ClassVar[str] = "backends"

    backends: tuple[Backend, ...] = ()


class PeerSet(Record, frozen=True, kw_only=True):
    """`peers/<set>`: what the set stands for, in words; its members are in the shards below it."""

    kind: ClassVar[str] = "peer-set"

    text: str = ""


class PeerShard(Record, frozen=True, kw_only=True):
    """`peers/<set>/<shard>`: some members of a set; all of them are the union of its shards.

    A set has either identities or blocks of addresses. Of these, the one with the longest prefix around an address
    decides: its number is ANY_SET, or 0 for an exception, or the set of identities that the address's owner must be in
    besides. They never change under one set's number.
    """

    kind: ClassVar[str] = "peers"

    members: tuple[U32, ...] = ()
    blocks: tuple[tuple[Address, AddressPrefix, U32], ...] = ()


class Ground(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The members of a set are allowed by these NetworkPolicies."""

    set: U32
    policies: tuple[U32, ...]  # places in Rules.policies, sorted


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, order=True):
    """Allows the members of `sets`, and the addresses in the set `blocks`, to meet the subject on a block of ports.

    `port` and `prefix` name the ports whose upper `prefix` bits equal those of `port`: 16 is one port, 0 is all.
    Protocol ANY comes only with prefix 0 and covers what has no ports as well (ICMP echo).
    """

    direction: Annotated[int, Meta(ge=0, le=1)]
    protocol: U8 = Protocol.ANY
    port: Port = 0
    prefix: Annotated[int, Meta(ge=0, le=16)] = 0
    sets: Annotated[
        tuple[U32, ...], Meta(max_length=MAX_SETS_PER_RULE)
    ] = ()  # sorted, at most MAX_SETS_PER_RULE, or exactly (ANY_SET,)
    blocks: U32 = 0  # a set of blocks of addresses; 0: none
    # Which policies allow whom, as sets that may be finer than those above. Empty: all policies allow all of them.
    grounds: tuple[Ground, ...] = ()

    def covers(self, protocol: int, port: int) -> bool:
        if self.protocol == Protocol.ANY:
            return True
        return self.protocol == protocol and port >> (16 - self.prefix) == self.port >> (16 - self.prefix)


class Rules(Record, frozen=True, kw_only=True):
    """`rules/<policy>`: compiled rules, shared by all subjects whose rules are equal. The id follows from the content.

    A direction that is not isolated allows everything and has no rules.
    """

    kind: ClassVar[str] = "rules"

    ingress_isolated: bool = False
    egress_isolated: bool = False
    rules: tuple[Rule, ...] = ()  # sorted; at most one for a (direction, protocol, port, prefix)
    policies: tuple[str, ...] = ()  # namespace/name of the NetworkPolicies in it, sorted; part of the content

    def by_policies(self, rule: Rule) -> list[tuple[int, tuple[str, ...]]]:
        """Sets of one of its rules, and the policies that allow them."""
        if not rule.grounds:
            return [(group, self.policies) for group in (*rule.sets, rule.blocks) if group]
        return [(ground.set, tuple(self.policies[place] for place in ground.policies)) for ground in rule.grounds]


class Subject(Record, frozen=True, kw_only=True):
    """`subjects/<identity>`: the rules of an identity. Every identity has one, also "not selected".

    An identity without this record is not yet judged: its pods stay closed, or keep their previous identity.
    """

    kind: ClassVar[str] = "subject"

    policy: U32 = 0
