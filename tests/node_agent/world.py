"""A cluster's records, written as people say them, and the tables that follow from them, read back in the same way."""

from collections.abc import Iterable, Mapping
from typing import Any

from node_agent.entries import Entries
from node_agent.layout import Form
from node_agent.loader import Field, Layout, MapEntry
from node_agent.table import ORDER, Step, Tables
from node_agent.view import View
from tidegate.records import (
    Backend,
    BackendShard,
    Endpoint,
    Keyspace,
    Masquerade,
    Node,
    PeerShard,
    Rule,
    Rules,
    Service,
    ServicePort,
    Subject,
    Synced,
    encode,
)
from tidegate.records.addresses import pack_address, pack_cidr, unpack_address
from tidegate.store import Delete, Operation, Put

OWN = "n1"
KEYS = Keyspace("test")
MARKS = {KEYS.synced(writer): encode(Synced(epoch=1)) for writer in ("endpoint-sync", "policy-sync")}

Contents = dict[str, dict[bytes, bytes]]
Values = dict[str, bytes]
Rows = dict[str, dict[Any, Any]]

_KINDS = {"u8": 1, "u32": 4, "be16": 2, "addr": 16, "u32[]": 32}

# Keys and values of the agent's maps, beside those that the loader derives from the C types: a test compares both.
FIELDS = {
    "endpoints": ("addr:addr", "identity:u32 ifindex:u32 flags:u32"),
    "devices": ("value:u32", "flags:u32 addr:addr addr6:addr"),
    "frontends": ("addr:addr port:be16 protocol:u8 pad:u8", "service:u32 outside:u32 flags:u32 pad:u32"),
    "services": ("value:u32", "count:u32 flags:u32 affinity_seconds:u32 positions:u32"),
    "backends": ("service:u32 slot:u32", "addr:addr port:be16 pad:bytes2 flags:u32"),
    "source_ranges": ("prefix:u32 service:u32 addr:addr", "value:u32"),
    "non_masquerade": ("prefix:u32 addr:addr", "value:u32"),
    "slots": ("service:u32 port:be16 pad:bytes2 addr:addr", "value:u32"),
    "ring": ("service:u32 position:u32", "value:u32"),
    "subjects": ("value:u32", "policy:u32 flags:u32 ingress_lengths:u32 egress_lengths:u32"),
    "rules": (
        "policy:u32 direction:u8 protocol:u8 length:u8 pad:u8 port:be16 pad2:bytes2",
        "sets:u32[] count:u32 flags:u32 blocks:u32",
    ),
    "peer_blocks": ("prefix:u32 set:u32 addr:addr", "value:u32"),
    "members": ("set:u32 member:u32", "value:u32"),
}


def _layout(text: str) -> Layout:
    fields, offset = [], 0
    for part in text.split():
        name, _, kind = part.partition(":")
        size = _KINDS.get(kind) or int(kind.removeprefix("bytes"))
        fields.append(Field(name, offset, size, kind if kind in _KINDS else "bytes"))
        offset += size
    return Layout(offset, tuple(fields))


def _entry(name: str) -> MapEntry:
    key, value = map(_layout, FIELDS[name])
    return MapEntry("/nowhere", "hash", 1000, key.size, value.size, key, value)


MAPS = {name: _entry(name) for name in FIELDS}
ENTRIES = Entries(MAPS)


class Agent:
    """The pure part of an agent, and a dictionary for a kernel."""

    def __init__(self, kernel: Contents | None = None, sizes: Mapping[str, int] | None = None) -> None:
        self.sizes = sizes or {}
        self.kernel: Contents = kernel if kernel is not None else {name: {} for name in ORDER}
        self.tables = Tables(self.kernel)
        self.view = View(OWN, KEYS, self.tables, ENTRIES, self.sizes)

    def snapshot(self, values: Mapping[str, bytes]) -> list[Step]:
        """A complete one; the steps that followed from it, as they were carried out."""
        self.view.snapshot({**MARKS, **values})
        return self.write()

    def batch(self, *operations: Operation) -> list[Step]:
        self.view.batch(operations)
        return self.write()

    def change(self, values: Mapping[str, bytes]) -> list[Step]:
        return self.batch(*(Put(key, value) for key, value in values.items()))

    def remove(self, *keys: str) -> list[Step]:
        return self.batch(*map(Delete, keys))

    def route(self, pods: Mapping[str, int], addresses: Iterable[str] = ()) -> list[Step]:
        """The node has these host routes (address → ifindex) and addresses."""
        devices = {pack_address(text): index for text, index in pods.items()}
        self.view.set_host(devices, frozenset(map(pack_address, addresses)))
        return self.write()

    def write(self) -> list[Step]:
        """All that is to be done; no program runs meanwhile."""
        found: list[Step] = []
        while True:
            steps = self.tables.plan()
            for step in steps:
                self.carry_out(step)
                self.tables.done(step.map, step.puts, step.deletes)
            found += steps
            retiring = self.tables.retiring()
            if retiring is None:
                return found
            self.tables.expire(retiring)

    def carry_out(self, step: Step) -> None:
        self.kernel[step.map].update(step.puts)
        for key in step.deletes:
            del self.kernel[step.map][key]

    def restarted(self) -> "Agent":
        """Another agent that finds the same kernel."""
        return type(self)(self.kernel, self.sizes)

    def rows(self, name: str) -> dict[Any, Any]:
        return rows(name, self.kernel[name])

    def flags(self, name: str, key: Any) -> int:
        return flags(name, self.kernel[name])[key]


def flags(name: str, entries: Mapping[bytes, bytes]) -> dict[Any, int]:
    """Key → the entry's flags."""
    key_form, value_form = Form(MAPS[name].key), Form(MAPS[name].value)
    found = {}
    for raw_key, raw_value in entries.items():
        key = _plain(key_form.unpack(raw_key))
        whole = tuple(key.values()) if len(key) > 1 else next(iter(key.values()))
        found[whole] = int(value_form.unpack(raw_value)["flags"])
    return found


# Maps of whose values the first field says it all.
PLAIN = (
    "services",
    "members",
    "devices",
    "frontends",
    "rules",
    "slots",
    "ring",
    "source_ranges",
    "non_masquerade",
    "peer_blocks",
)


def rows(name: str, entries: Mapping[bytes, bytes]) -> dict[Any, Any]:
    """Entries of a map in words; what is always zero is left out."""
    key_form, value_form = Form(MAPS[name].key), Form(MAPS[name].value)
    found: dict[Any, Any] = {}
    for raw_key, raw_value in entries.items():
        key, value = _plain(key_form.unpack(raw_key)), _plain(value_form.unpack(raw_value))
        if name == "rules":
            value = {"sets": (*value["sets"][: value["count"]], *filter(None, [value["blocks"]]))}
        whole = tuple(key.values()) if len(key) > 1 else next(iter(key.values()))
        found[whole] = next(iter(value.values())) if name in PLAIN else value
    return found


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if not name.startswith("pad")}
    return {name: unpack_address(value) if isinstance(value, bytes) else value for name, value in kept.items()}


def touched(steps: Iterable[Step]) -> int:
    """How many entries the steps write or remove."""
    return sum(len(step.puts) + len(step.deletes) for step in steps)


def addresses(*texts: str) -> tuple[bytes, ...]:
    return tuple(map(pack_address, texts))


def pod(name: str, identity: int, *ips: str, node: str = OWN) -> Values:
    return {pod_key(name): encode(Endpoint(node=node, identity=identity, addresses=addresses(*ips)))}


def pod_key(name: str) -> str:
    return KEYS.endpoint("default", name)


def node(name: str, *ips: str, cidrs: tuple[str, ...] = ()) -> Values:
    return {KEYS.node(name): encode(Node(addresses=addresses(*ips), pod_cidrs=tuple(map(pack_cidr, cidrs))))}


def masquerade(*cidrs: str) -> Values:
    return {KEYS.masquerade(): encode(Masquerade(non_masquerade=tuple(map(pack_cidr, cidrs))))}


def subject(identity: int, policy: int) -> Values:
    return {KEYS.subject(identity): encode(Subject(policy=policy))}


def rules(policy: int, *items: Rule, ingress: bool = True, egress: bool = False) -> Values:
    record = Rules(ingress_isolated=ingress, egress_isolated=egress, rules=tuple(sorted(items)))
    return {KEYS.rules(policy): encode(record)}


def from_set(group: int, port: int = 80) -> Rule:
    return Rule(direction=0, protocol=6, port=port, prefix=16, sets=(group,))


def members(group: int, shard: int, *identities: int) -> Values:
    return {KEYS.peers(group, shard): encode(PeerShard(members=identities))}


def blocks(group: int, shard: int, *items: tuple[str, int]) -> Values:
    """(CIDR, what holds in it)"""
    found = tuple((*pack_cidr(cidr), needed) for cidr, needed in items)
    return {KEYS.peers(group, shard): encode(PeerShard(blocks=found))}


def judged(identity: int, policy: int = 900) -> Values:
    """Open to everybody."""
    return {**rules(policy, ingress=False), **subject(identity, policy)}


def service(name: str, ip: str, **ports: int) -> Values:
    """`ports`: name → number of the port; its id is that number plus 5000."""
    listed = tuple(ServicePort(id=5000 + port, name=label, port=port) for label, port in ports.items())
    return {KEYS.service("default", name): encode(Service(cluster_ips=addresses(ip), ports=listed))}


def backends(name: str, shard: int, *items: Backend) -> Values:
    return {KEYS.backends("default", name, shard): encode(BackendShard(backends=items))}


def backend(ip: str, ready: bool = True, serving: bool = True, terminating: bool = False) -> Backend:
    return Backend(
        address=pack_address(ip), ports={"http": 8080}, ready=ready, serving=serving, terminating=terminating
    )


def undecodable(values: Mapping[str, bytes]) -> Values:
    return dict.fromkeys(values, b"\xc1")


def puts(values: Values) -> list[Put | Delete]:
    return [Put(key, value) for key, value in values.items()]


def slots(agent: Agent, number: int = 5080) -> dict[int, str]:
    """Slot → address of a service port's backends, which must lie without a gap."""
    found = {slot: row["addr"] for (of, slot), row in agent.rows("backends").items() if of == number}
    assert sorted(found) == list(range(agent.rows("services")[number]))
    return found
