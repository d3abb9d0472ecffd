"""The records allow what the API documentation says, and nothing else."""

import asyncio
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.endpoint_sync.world import Object, World, match, namespace, pod, policy
from tests.policy_sync.reference import Compiled, Documentation, Packet

HTTP, DNS, METRICS = {"http": ("TCP", 8080)}, {"dns": ("UDP", 53), "http": ("TCP", 8081)}, {"metrics": ("TCP", 9100)}
NAMESPACES = [namespace("shop", team="a"), namespace("pay", team="b"), namespace("ops", team="b", tier="infra")]
PODS = [
    pod("shop/web", "10.0.0.1", {"app": "web", "tier": "front"}, HTTP),
    pod("shop/db", "10.0.0.2", {"app": "db", "tier": "store"}, {"http": ("TCP", 80)}),
    pod("shop/bare", "10.0.0.3"),
    pod("pay/web", "10.0.0.4", {"app": "web"}, DNS),
    pod("pay/db", "10.0.0.5", {"app": "db", "pod-template-hash": "h1"}, HTTP),
    pod("ops/agent", "10.0.0.6", {"app": "agent", "tier": "front"}, METRICS),
]
PLACES = ["/".join((p["metadata"]["namespace"], p["metadata"]["name"])) for p in PODS]
PORTS = [("TCP", 80), ("TCP", 8080), ("TCP", 8081), ("TCP", 9100), ("UDP", 53), ("SCTP", 80), ("ICMP", 0)]
PACKETS = [Packet(a, b, *port) for a, b, port in product(PLACES, PLACES, PORTS)]


async def differences(policies: list[Object]) -> list[tuple[Packet, str]]:
    world = World()
    world.put(*NAMESPACES, *PODS, *policies)
    async with world.running():
        assert world.problems() == {}
        compiled = Compiled(world)
    documented = Documentation(NAMESPACES, PODS, policies)
    return [
        (packet, "allowed" if compiled.allows(packet) else "denied")
        for packet in PACKETS
        if compiled.allows(packet) != documented.allows(packet)
    ]


def expression(key: str, operator: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


def tcp(port: int | str, **more: Any) -> Object:
    return {"protocol": "TCP", "port": port, **more}


WEB, DB = match(app="web"), match(app="db")
CASES: dict[str, list[Object]] = {
    "nothing": [],
    "default deny": [policy("shop/p")],
    "default deny, both": [policy("shop/p", policyTypes=["Ingress", "Egress"])],
    "egress alone isolates no ingress": [policy("shop/p", policyTypes=["Egress"])],
    "egress rules are ignored without their type": [policy("shop/p", policyTypes=["Ingress"], egress=[{}])],
    "egress rules bring their type": [policy("shop/p", egress=[{"to": [{"podSelector": DB}]}])],
    "no egress rules bring none": [policy("shop/p", egress=[])],
    "an empty rule allows everybody": [policy("shop/p", ingress=[{}])],
    "an empty from is everybody": [policy("shop/p", ingress=[{"from": [], "ports": [tcp(80)]}])],
    "an empty ports is every port": [policy("shop/p", ingress=[{"from": [{"podSelector": WEB}], "ports": []}])],
    "an empty podSelector is the own namespace": [policy("shop/p", ingress=[{"from": [{"podSelector": {}}]}])],
    "an empty namespaceSelector is all": [policy("shop/p", ingress=[{"from": [{"namespaceSelector": {}}]}])],
    "both in one peer": [
        policy("shop/p", ingress=[{"from": [{"namespaceSelector": match(team="b"), "podSelector": WEB}]}])
    ],
    "both as two peers": [
        policy("shop/p", ingress=[{"from": [{"namespaceSelector": match(team="b")}, {"podSelector": WEB}]}])
    ],
    "a namespace by its own name": [
        policy("shop/p", ingress=[{"from": [{"namespaceSelector": match(**{"kubernetes.io/metadata.name": "pay"})}]}])
    ],
    "In": [policy("shop/p", expression("app", "In", "web", "x"))],
    "NotIn counts the absent": [policy("shop/p", expression("app", "NotIn", "web"))],
    "Exists": [policy("shop/p", expression("tier", "Exists"))],
    "DoesNotExist": [policy("shop/p", expression("tier", "DoesNotExist"))],
    "labels and expressions together": [policy("shop/p", {**WEB, **expression("tier", "NotIn", "store")})],
    "namespaces by expression": [
        policy("shop/p", ingress=[{"from": [{"namespaceSelector": expression("tier", "Exists")}]}])
    ],
    "one port": [policy("shop/p", ingress=[{"ports": [tcp(8080)]}])],
    "the protocol defaults to TCP": [policy("shop/p", ingress=[{"ports": [{"port": 80}]}])],
    "a protocol without port": [policy("shop/p", ingress=[{"ports": [{"protocol": "UDP"}]}])],
    "SCTP": [policy("shop/p", ingress=[{"ports": [{"protocol": "SCTP", "port": 80}]}])],
    "a range": [policy("shop/p", ingress=[{"ports": [tcp(8000, endPort=8080)]}])],
    "a range of everything": [policy("shop/p", ingress=[{"ports": [tcp(1, endPort=65535)]}])],
    "a name is the receiver's port": [policy("shop/p", ingress=[{"ports": [tcp("http")]}])],
    "a name nobody has": [policy("shop/p", ingress=[{"ports": [tcp("nothing")]}])],
    "a name of another protocol": [policy("pay/p", ingress=[{"ports": [tcp("dns")]}])],
    "names in egress are each receiver's": [
        policy("shop/p", egress=[{"to": [{"namespaceSelector": {}}], "ports": [tcp("http")]}])
    ],
    "names in egress to everybody": [policy("shop/p", egress=[{"ports": [tcp("http")]}])],
    "a label of high cardinality": [
        policy("pay/p", match(**{"pod-template-hash": "h1"})),
        policy(
            "shop/p",
            ingress=[{"from": [{"namespaceSelector": {}, "podSelector": expression("pod-template-hash", "Exists")}]}],
        ),
    ],
    "policies add up": [
        policy("shop/p"),
        policy("shop/q", DB, ingress=[{"from": [{"podSelector": WEB}], "ports": [tcp(80)]}]),
        policy("shop/r", DB, ingress=[{"from": [{"namespaceSelector": match(team="b")}], "ports": [tcp(8080)]}]),
    ],
    "more peers than a map entry holds": [
        policy("shop/p", ingress=[{"from": [{"podSelector": match(app=name)} for name in ("web", *"abcdefghijk")]}])
    ],
}


@pytest.mark.parametrize("policies", CASES.values(), ids=CASES.keys())
async def test_documented_cases(policies: list[Object]) -> None:
    assert await differences(policies) == []


BLOCK: Object = {"ipBlock": {"cidr": "0.0.0.0/0"}}


@pytest.mark.parametrize("ports", [{}, {"ports": [tcp(80)]}, {"ports": [tcp("http")]}])
@pytest.mark.parametrize(("side", "direction"), [("from", "ingress"), ("to", "egress")])
@pytest.mark.parametrize("others", [[], [{"podSelector": WEB}]], ids=["alone", "beside another peer"])
async def test_a_block_of_addresses_selects_nothing_and_is_reported(
    side: str, direction: str, others: list[Object], ports: Object
) -> None:
    """Least of all does a rule whose only peers are blocks become one without peers, which is for everybody."""
    world = World()
    spec: Object = {"policyTypes": [direction.capitalize()], direction: [{side: [BLOCK, *others], **ports}]}
    world.put(*NAMESPACES, *PODS, policy("shop/p", **spec))
    async with world.running():
        assert "ipBlock is not supported" in world.problems()["NetworkPolicy shop/p"]
        compiled = Compiled(world)
    stated: Object = {**spec, direction: [{side: others, **ports}] if others else []}
    documented = Documentation(NAMESPACES, PODS, [policy("shop/p", **stated)])
    assert [p for p in PACKETS if compiled.allows(p) != documented.allows(p)] == []


labels = st.sampled_from(["app", "tier", "pod-template-hash"])
values = st.sampled_from(["web", "db", "front", "store", "h1", "agent"])
expressions = st.one_of(
    st.fixed_dictionaries(
        {
            "key": labels,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(values, min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": labels, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
pod_selectors = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(labels, values, max_size=1),
        "matchExpressions": st.lists(expressions, max_size=2),
    },
)
namespace_selectors = st.sampled_from(
    [{}, match(team="a"), match(team="b"), expression("tier", "Exists"), expression("team", "NotIn", "b")]
)
peers = st.one_of(
    st.fixed_dictionaries({"podSelector": pod_selectors}),
    st.fixed_dictionaries({"namespaceSelector": namespace_selectors}),
    st.fixed_dictionaries({"podSelector": pod_selectors, "namespaceSelector": namespace_selectors}),
)
numbers = st.sampled_from([53, 80, 8080, 8081, 9100])
protocols = st.sampled_from(["TCP", "UDP", "SCTP"])
ports = st.one_of(
    st.fixed_dictionaries({"protocol": protocols, "port": numbers}),
    st.fixed_dictionaries({"port": st.just(80), "endPort": st.integers(80, 9000)}),
    st.fixed_dictionaries({"protocol": protocols}),
    st.fixed_dictionaries({"protocol": protocols, "port": st.sampled_from(["http", "dns", "metrics"])}),
)


def rules(side: str) -> st.SearchStrategy[list[Object]]:
    optional = {side: st.lists(peers, max_size=2), "ports": st.lists(ports, max_size=2)}
    rule: st.SearchStrategy[Object] = st.fixed_dictionaries({}, optional=optional)
    return st.lists(rule, max_size=2)


specs: st.SearchStrategy[Object] = st.fixed_dictionaries(
    {"pods": pod_selectors},
    optional={
        "ingress": rules("from"),
        "egress": rules("to"),
        "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
    },
)
several = st.lists(st.tuples(st.sampled_from(["shop", "pay", "ops"]), specs), min_size=1, max_size=4).map(
    lambda found: [policy(f"{where}/p{index}", **spec) for index, (where, spec) in enumerate(found)]
)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(several)
def test_any_policies(policies: list[Object]) -> None:
    assert asyncio.run(differences(policies)) == []
