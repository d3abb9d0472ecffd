"""Random clusters and policies (hypothesis), small enough that everything meets everything."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import chain, islice, product, zip_longest
from typing import TypeVar

from hypothesis import strategies as st
from tests.endpoint_sync.world import Object, annotated, match, namespace, node, pod, policy
from tests.policy.model import Documentation, Packet

from policy_sync.annotations import AUDIT

T = TypeVar("T")

NODES = [node("n1", "192.168.0.1", "fd00:192::1"), node("n2", "192.168.0.2", "fd00:192::2")]
OUTSIDE = {4: ["203.0.113.1", "203.0.113.129"], 6: ["2001:db8::1", "2001:db8:1::1"]}
# Name → address and node: what keeps its address while it becomes another pod.
PLACES = {f"p{n}": (f"10.0.0.{n} fd00::{n}", "n1" if n < 4 else "n2") for n in range(1, 7)}
HOMES = ["shop", "pay", "ops"]
homes = st.sampled_from(["shop", "shop", "pay", "pay", "ops"])  # such that many pods share one
PORTS = [("TCP", 80), ("TCP", 8080), ("TCP", 8081), ("TCP", 9100), ("UDP", 53), ("SCTP", 80), ("ICMP", 0)]

label_keys = st.sampled_from(["app", "app", "tier", "pod-template-hash"])
label_values = st.sampled_from(["web", "web", "db", "h1"])
expressions: st.SearchStrategy[Object] = st.one_of(
    st.fixed_dictionaries(
        {
            "key": label_keys,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(label_values, min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": label_keys, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
pod_selectors: st.SearchStrategy[Object] = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(label_keys, label_values, max_size=1),
        "matchExpressions": st.lists(expressions, max_size=2),
    },
)
namespace_selectors: st.SearchStrategy[Object] = st.sampled_from(
    [
        {},
        match(team="a"),
        match(team="b"),
        match(**{"kubernetes.io/metadata.name": "pay"}),
        {"matchExpressions": [{"key": "tier", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["b"]}]},
    ]
)


def block(cidr: str, *excepts: str) -> Object:
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepts)} if excepts else {})}}


@st.composite
def blocks(draw: st.DrawFn) -> Object:
    """Of a few addresses that matter, so that blocks often meet."""
    address = ip_address(draw(st.sampled_from(["10.0.0.4", "10.0.0.1", "192.168.0.2", "203.0.113.1", "fd00::4", "::"])))
    most = address.max_prefixlen
    length = draw(st.sampled_from([0, 8, 24, most - 2, most - 1, most]))
    around = ip_network((address, length), strict=False)
    inner = st.sampled_from([bits for bits in (length + 1, length + 2, most - 1, most) if length < bits <= most] or [0])
    offsets = st.integers(0, min(around.num_addresses, 8) - 1)
    excepts = st.builds(lambda offset, bits: str(ip_network((around[offset], bits), strict=False)), offsets, inner)
    written = f"{address}/{length}"  # with its host bits
    return block(written, *draw(st.lists(excepts, max_size=2) if length < most else st.just([])))


def mostly(usual: st.SearchStrategy[T], other: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Three times of four the first. Of what hypothesis may leave out, half is, and little remains."""
    return st.integers(0, 3).flatmap(lambda number: usual if number else other)


by_pods: st.SearchStrategy[Object] = st.one_of(
    st.fixed_dictionaries({"podSelector": pod_selectors}),
    st.fixed_dictionaries({"namespaceSelector": namespace_selectors}),
    st.fixed_dictionaries({"podSelector": pod_selectors, "namespaceSelector": namespace_selectors}),
)
peers = st.booleans().flatmap(lambda addresses: blocks() if addresses else by_pods)
protocols = st.sampled_from(["TCP", "UDP", "SCTP"])
by_number: st.SearchStrategy[Object] = st.one_of(
    st.fixed_dictionaries({"protocol": protocols, "port": st.sampled_from([53, 80, 8080, 8081, 9100])}),
    st.fixed_dictionaries({"port": st.just(80), "endPort": st.sampled_from([80, 443, 8080, 8081, 9000])}),
    st.fixed_dictionaries({"protocol": protocols}),
)
by_name: st.SearchStrategy[Object] = st.fixed_dictionaries(
    {"protocol": mostly(st.just("TCP"), protocols), "port": st.sampled_from(["http", "dns", "metrics"])}
)
ports = st.booleans().flatmap(lambda name: by_name if name else by_number)


def rules(side: str) -> st.SearchStrategy[list[Object]]:
    """Mostly with peers: without, or with none, everything else is hidden by them."""
    some = mostly(st.lists(peers, min_size=1, max_size=3), st.just([]))
    optional = {"ports": mostly(st.lists(ports, min_size=1, max_size=2), st.just([]))}
    rule: st.SearchStrategy[Object] = mostly(
        st.fixed_dictionaries({side: some}, optional=optional), st.fixed_dictionaries({}, optional=optional)
    )
    return mostly(st.lists(rule, min_size=1, max_size=2), st.just([]))


def _spec(pods: Object, ingress: list[Object] | None, egress: list[Object] | None, types: list[str] | None) -> Object:
    given = {"ingress": ingress, "egress": egress, "policyTypes": types}
    return {"pods": pods, **{key: value for key, value in given.items() if value is not None}}


specs = st.builds(
    _spec,
    mostly(st.just({}), pod_selectors),
    mostly(rules("from"), st.none()),
    mostly(rules("to"), st.none()),
    mostly(st.none(), st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]])),
)
named_ports = st.dictionaries(
    st.sampled_from(["http", "dns", "metrics"]),
    st.sampled_from([("TCP", 80), ("TCP", 80), ("TCP", 8080), ("TCP", 9100), ("UDP", 53), ("SCTP", 80)]),
    min_size=1,
    max_size=3,
)
namespaces = st.tuples(
    *(
        st.builds(
            lambda name, labels, audit: annotated(namespace(name, **labels), AUDIT, audit),
            st.just(name),
            st.fixed_dictionaries({}, optional={"team": st.sampled_from("ab"), "tier": st.just("infra")}),
            mostly(st.just("false"), st.just("true")),
        )
        for name in HOMES
    )
)


def pods(name: str) -> st.SearchStrategy[Object]:
    addresses, at = PLACES[name]
    return st.builds(
        lambda home, labels, listed: pod(f"{home}/{name}", addresses, labels, listed, at, uid=f"{home}-{name}"),
        homes,
        st.dictionaries(label_keys, label_values, max_size=2),
        named_ports,
    )


policies = st.builds(lambda home, name, spec: policy(f"{home}/{name}", **spec), homes, st.sampled_from("xyz"), specs)


@dataclass(frozen=True)
class Case:
    namespaces: Sequence[Object]
    pods: Sequence[Object]
    policies: Sequence[Object]
    audited_nodes: frozenset[str] = frozenset()

    @property
    def documented(self) -> Documentation:
        return Documentation(self.namespaces, self.pods, self.policies, NODES, self.audited_nodes)

    @property
    def objects(self) -> list[Object]:
        return [*NODES, *self.namespaces, *self.pods, *self.policies]

    def moved(self, packet: Packet) -> Packet:
        """A packet of an earlier state, of those who have the addresses now, by the same names in other namespaces."""
        now = {p["metadata"]["name"]: f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in self.pods}
        source, target = (now.get(name.partition("/")[2], name) for name in (packet.source, packet.target))
        return replace(packet, source=source, target=target)

    def packets(self, seed: int, count: int) -> list[Packet]:
        """Some of those that there can be, of which a pod sends or receives each: as many of each kind, where there
        are as many. (All pairs of pods that no policy isolates are alike.)"""
        found = [f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in self.pods]
        every = [
            Packet(source, target, *port, family)
            for family in (4, 6)
            for source, target in product([*found, "n1", "n2", *OUTSIDE[family]], repeat=2)
            if source in found or target in found
            for port in PORTS
        ]
        random.Random(seed).shuffle(every)  # noqa: S311  # not for secrets
        documented = self.documented
        kinds: dict[tuple[bool, ...], list[Packet]] = {}
        for packet in every:
            kinds.setdefault(documented.kind(packet), []).append(packet)
        in_turn = chain.from_iterable(zip_longest(*kinds.values()))
        return list(islice(filter(None, in_turn), count))


def _unique(items: Sequence[Object]) -> list[Object]:
    named = {(one["metadata"].get("namespace"), one["metadata"]["name"]): one for one in items}
    return list(named.values())


several = mostly(st.lists(policies, min_size=1, max_size=4), st.just([])).map(_unique)
audited_nodes: st.SearchStrategy[frozenset[str]] = mostly(st.just(frozenset()), st.just(frozenset({"n1"})))
cases = st.builds(Case, namespaces, st.tuples(*map(pods, PLACES)), several, audited_nodes)


@st.composite
def changes(draw: st.DrawFn) -> tuple[Case, Case]:
    """A cluster, and what it becomes: other policies, other labels, other pods with the addresses of these."""
    before = draw(cases)
    after = before
    if draw(st.booleans()):
        after = replace(after, policies=_unique([*draw(several), *before.policies[draw(st.integers(0, 1)) :]]))
    if draw(st.booleans()):
        after = replace(after, namespaces=draw(namespaces), audited_nodes=draw(audited_nodes))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(before.pods) - 1))
        listed = list(after.pods)
        listed[at] = draw(pods(listed[at]["metadata"]["name"]))
        after = replace(after, pods=listed)
    return before, after
