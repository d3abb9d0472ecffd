"""Map entries as bytes: one function a kind of entry. The layouts come from the C types, the meanings from types.h."""

from collections.abc import Callable, Mapping
from functools import lru_cache

from node_agent.layout import Form
from node_agent.loader import MapEntry
from tidegate.records import IDENTITY_NODE, IDENTITY_REMOTE_NODE, Rule

EP_POD, EP_OWN_NODE, EP_REMOTE_NODE, EP_CLOSED = 0x1, 0x2, 0x4, 0x8
DEVICE_UPLINK, DEVICE_MASQUERADE = 0x1, 0x2
NO_DEVICE = 0
FRONTEND_OPEN, FRONTEND_RANGES = 0x1, 0x2
SERVICE_DROP = 0x1
SUBJECT_INGRESS_ISOLATED, SUBJECT_EGRESS_ISOLATED, SUBJECT_LOG, SUBJECT_AUDIT = 0x1, 0x2, 0x4, 0x8
RULE_LOG = 0x1
LENGTH_ANY_PROTOCOL = 1 << 31

PRESENT = (1).to_bytes(4, "little")


class Entries:
    def __init__(self, maps: Mapping[str, MapEntry]) -> None:
        ours = {name: entry for name, entry in maps.items() if entry.type in ("hash", "lpm_trie")}
        self._keys = {name: Form(entry.key) for name, entry in ours.items()}
        self._values = {name: Form(entry.value) for name, entry in ours.items()}
        # There are as many of these as backends or pods in the cluster.
        self.backend_key = self._keys["backends"].packer("service", "slot")
        self.backend = self._values["backends"].packer("addr", "port")
        self.backend_address: Callable[[bytes], tuple[bytes, int]]
        self.backend_address = self._values["backends"].unpacker("addr", "port")
        self._ring_key = self._keys["ring"].packer("service", "position")
        self._number = self._values["ring"].packer("value")
        self.frontend_key = self._keys["frontends"].packer("addr", "port", "protocol")
        self._frontend = self._values["frontends"].packer("service", "outside", "flags")
        self.service_key = self._keys["services"].packer("value")
        self._service = self._values["services"].packer("count", "flags", "affinity_seconds", "positions")
        # Pods of one identity have equal values, and one object for them.
        self.pod = lru_cache(1 << 16)(self._pod)

    def _pod(self, identity: int | None, ifindex: int) -> bytes:
        """Without an identity the pod is closed."""
        flags = EP_POD | (EP_CLOSED if identity is None else 0)
        return self._values["endpoints"].pack(identity=identity or 0, ifindex=ifindex, flags=flags)

    def node(self, own: bool) -> bytes:
        identity, flags = (IDENTITY_NODE, EP_OWN_NODE) if own else (IDENTITY_REMOTE_NODE, EP_REMOTE_NODE)
        return self._values["endpoints"].pack(identity=identity, flags=flags)

    def pod_of(self, value: bytes) -> tuple[int, int] | None:
        """Identity and ifindex in the entry of an open pod, None in any other."""
        fields = self._values["endpoints"].unpack(value)
        is_open = fields["flags"] & EP_POD and not fields["flags"] & EP_CLOSED
        return (int(fields["identity"]), int(fields["ifindex"])) if is_open else None

    def device(self, index: int, ipv4: bytes, ipv6: bytes, masquerading: bool) -> tuple[bytes, bytes]:
        """An uplink, and the addresses under which connections leave the node through it; NO_DEVICE: the node.

        `masquerading`: what pods send out of the cluster does so, but for what `non_masquerade` holds.
        """
        flags = DEVICE_MASQUERADE * masquerading if index == NO_DEVICE else DEVICE_UPLINK
        return self._keys["devices"].pack(value=index), self._values["devices"].pack(flags=flags, addr=ipv4, addr6=ipv6)

    def non_masquerade(self, address: bytes, prefix: int) -> bytes:
        return self._keys["non_masquerade"].pack(prefix=prefix, addr=address)

    def frontend(self, service: int, outside: int, is_open: bool, has_ranges: bool) -> bytes:
        flags = FRONTEND_OPEN * is_open | FRONTEND_RANGES * has_ranges
        return self._frontend(service, outside, flags)

    def frontend_of(self, value: bytes) -> tuple[int, int]:
        """Selections for clients in the cluster, and outside."""
        fields = self._values["frontends"].unpack(value)
        return int(fields["service"]), int(fields["outside"])

    def address_alone(self, frontend: bytes) -> bytes:
        """The key of the entry that stands for the address of a frontend."""
        return self._keys["frontends"].pack(addr=self._keys["frontends"].unpack(frontend)["addr"])

    def selections(self, name: str, key: bytes, value: bytes) -> set[int]:
        """To which selections an entry of a map of Services belongs."""
        if name == "frontends":
            fields = self._values[name].unpack(value)
            return {int(fields["service"]), int(fields["outside"])}
        return {int(self._keys[name].unpack(key)["value" if name == "services" else "service"])}

    def source_range(self, service: int, address: bytes, prefix: int) -> bytes:
        return self._keys["source_ranges"].pack(prefix=32 + prefix, service=service, addr=address)

    def service(self, count: int, dropping: bool, affinity_seconds: int, positions: int = 0) -> bytes:
        """`dropping`: without backends its clients get no answer, rather than a refusal. `positions`: of its ring."""
        return self._service(count, SERVICE_DROP * dropping, affinity_seconds, positions)

    def slot(self, service: int, address: bytes, port: int, index: int) -> tuple[bytes, bytes]:
        key = self._keys["slots"].pack(service=service, addr=address, port=port)
        return key, self._values["slots"].pack(value=index)

    def ring(self, service: int, position: int, index: int) -> tuple[bytes, bytes]:
        return self._ring_key(service, position), self._number(index)

    def backend_slot(self, key: bytes) -> tuple[int, int]:
        fields = self._keys["backends"].unpack(key)
        return int(fields["service"]), int(fields["slot"])

    def subject_key(self, identity: int) -> bytes:
        return self._keys["subjects"].pack(value=identity)

    def subject(
        self,
        policy: int,
        isolated: tuple[bool, bool],
        lengths: tuple[int, int],
        logged: bool = False,
        audited: bool = False,
    ) -> bytes:
        """`isolated` and `lengths` for ingress and egress; `logged`: its namespace wants its denials logged;
        `audited`: it is in audit."""
        flags = SUBJECT_INGRESS_ISOLATED * isolated[0] | SUBJECT_EGRESS_ISOLATED * isolated[1]
        flags |= SUBJECT_LOG * logged | SUBJECT_AUDIT * audited
        return self._values["subjects"].pack(
            policy=policy, flags=flags, ingress_lengths=lengths[0], egress_lengths=lengths[1]
        )

    def rule(self, policy: int, rule: Rule, logged: bool = False) -> tuple[bytes, bytes]:
        """`logged`: some policy behind it asks that what it allows be logged."""
        key = self._keys["rules"].pack(
            policy=policy, direction=rule.direction, protocol=rule.protocol, length=rule.prefix, port=rule.port
        )
        return key, self._values["rules"].pack(
            sets=rule.sets, count=len(rule.sets), blocks=rule.blocks, flags=RULE_LOG * logged
        )

    def member_key(self, group: int, identity: int) -> bytes:
        return self._keys["members"].pack(set=group, member=identity)

    def peer_block(self, group: int, address: bytes, prefix: int, needed: int) -> tuple[bytes, bytes]:
        key = self._keys["peer_blocks"].pack(prefix=32 + prefix, set=group, addr=address)
        return key, self._values["peer_blocks"].pack(value=needed)

    def subject_of(self, value: bytes) -> tuple[int, int]:
        """Policy and flags."""
        fields = self._values["subjects"].unpack(value)
        return int(fields["policy"]), int(fields["flags"])

    def rule_of(self, key: bytes, value: bytes) -> tuple[int, Rule]:
        """Policy, and its rule."""
        where, what = self._keys["rules"].unpack(key), self._values["rules"].unpack(value)
        rule = Rule(
            direction=where["direction"],
            protocol=where["protocol"],
            port=where["port"],
            prefix=where["length"],
            sets=tuple(what["sets"][: what["count"]]),
            blocks=what["blocks"],
        )
        return int(where["policy"]), rule

    def member_of(self, key: bytes) -> tuple[int, int]:
        """Set and identity."""
        fields = self._keys["members"].unpack(key)
        return int(fields["set"]), int(fields["member"])

    def peer_block_of(self, key: bytes, value: bytes) -> tuple[int, tuple[bytes, int, int]]:
        """Set; address, prefix length and what holds there."""
        fields = self._keys["peer_blocks"].unpack(key)
        held = int(self._values["peer_blocks"].unpack(value)["value"])
        return int(fields["set"]), (bytes(fields["addr"]), int(fields["prefix"]) - 32, held)


def length_bit(rule: Rule) -> int:
    return LENGTH_ANY_PROTOCOL if rule.protocol == 0 else 1 << rule.prefix
