"""Rules as the maps hold them, for a subject whose new ones find no room when the agent starts. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from node_agent.entries import SUBJECT_EGRESS_ISOLATED, SUBJECT_INGRESS_ISOLATED, Entries
from node_agent.table import Tables
from tidegate.records import FIRST_SET, Rules

# Of a set: an identity, or an address, a prefix length and what holds there (records.PeerShard).
Member = int | tuple[bytes, int, int]


@dataclass(frozen=True, slots=True)
class Recalled:
    policy: int
    rules: Rules
    sets: Mapping[int, frozenset[Member]]


def recall(tables: Tables, entries: Entries, identity: int) -> Recalled | None:
    """What holds for the identity in the kernel; None where nothing does."""
    value = tables.have("subjects").get(entries.subject_key(identity))
    if value is None:
        return None
    policy, flags = entries.subject_of(value)
    rules = tuple(
        rule
        for number, rule in (entries.rule_of(key, raw) for key, raw in tables.have("rules").items())
        if number == policy
    )
    groups = {group for rule in rules for group in (*rule.sets, rule.blocks) if group >= FIRST_SET}
    sets: dict[int, set[Member]] = {group: set() for group in groups}
    for key, raw in tables.have("peer_blocks").items():
        group, member = entries.peer_block_of(key, raw)
        if group in groups:
            sets[group].add(member)
            if member[2] >= FIRST_SET:
                sets.setdefault(member[2], set())
    for key in tables.have("members"):
        group, identity_in_it = entries.member_of(key)
        if group in sets:
            sets[group].add(identity_in_it)
    record = Rules(
        ingress_isolated=bool(flags & SUBJECT_INGRESS_ISOLATED),
        egress_isolated=bool(flags & SUBJECT_EGRESS_ISOLATED),
        rules=rules,
    )
    return Recalled(policy, record, {group: frozenset(members) for group, members in sets.items()})
