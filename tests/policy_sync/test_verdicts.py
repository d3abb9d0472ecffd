"""The records allow what the API documentation says, and nothing else."""

import asyncio
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.endpoint_sync.world import Object, World, match, namespace, pod, policy
from tests.policy.cases import NODES, OUTSIDE, PORTS, Case, block, cases
from tests.policy.compiled import Compiled
from tests.policy.model import Documentation, Packet

HTTP, DNS, METRICS = {"http": ("TCP", 8080)}, {"dns": ("UDP", 53), "http": ("TCP", 8081)}, {"metrics": ("TCP", 9100)}
NAMESPACES = [namespace("shop", team="a"), namespace("pay", team="b"), namespace("ops", team="b", tier="infra")]
PODS = [
    pod("shop/web", "10.0.0.1 fd00::1", {"app": "web", "tier": "front"}, HTTP),
    pod("shop/db", "10.0.0.2 fd00::2", {"app": "db", "tier": "store"}, {"http": ("TCP", 80)}),
    pod("shop/bare", "10.0.0.3 fd00::3"),
    pod("pay/web", "10.0.0.4 fd00::4", {"app": "web"}, DNS, "n2"),
    pod("pay/db", "10.0.0.5 fd00::5", {"app": "db", "pod-template-hash": "h1"}, HTTP, "n2"),
    pod("ops/agent", "10.0.0.6 fd00::6", {"app": "agent", "tier": "front"}, METRICS, "n2"),
]
PLACES = ["/".join((p["metadata"]["namespace"], p["metadata"]["name"])) for p in PODS]
PACKETS = [
    Packet(a, b, *port, family)
    for family in (4, 6)
    for a, b in product([*PLACES, "n1", "n2", *OUTSIDE[family]], repeat=2)
    if a in PLACES or b in PLACES
    for port in PORTS
]


async def differences(policies: list[Object]) -> list[tuple[Packet, str]]:
    world = World()
    world.put(*NODES, *NAMESPACES, *PODS, *policies)
    async with world.running():
        assert world.problems() == {}
        compiled = Compiled(world)
    documented = Documentation(NAMESPACES, PODS, policies, NODES)
    found = [(packet, compiled.allows(packet)) for packet in PACKETS]
    return [
        (packet, "allowed" if allowed else "denied")
        for packet, allowed in found
        if allowed != documented.allows(packet)
    ]


def expression(key: str, operator: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


def tcp(port: int | str, **more: Any) -> Object:
    return {"protocol": "TCP", "port": port, **more}


WEB, DB = match(app="web"), match(app="db")
BOTH = ["Ingress", "Egress"]
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
    "more peers than a map entry holds, by several policies": [
        policy(
            f"shop/{n}", ingress=[{"from": [{"podSelector": match(app=name)} for name in ("web", *"abcdefghijk"[n:])]}]
        )
        for n in range(10)
    ],
    "everybody and somebody": [
        policy("shop/p", ingress=[{"ports": [tcp(80)]}]),
        policy("shop/q", ingress=[{"from": [{"podSelector": WEB}, block("10.0.0.4/32")], "ports": [tcp(80)]}]),
    ],
    "a block of all IPv4 is pods, nodes and the outside": [
        policy(
            "shop/p", policyTypes=BOTH, ingress=[{"from": [block("0.0.0.0/0")]}], egress=[{"to": [block("0.0.0.0/0")]}]
        )
    ],
    "a block of all IPv6 is no IPv4": [
        policy("shop/p", policyTypes=BOTH, ingress=[{"from": [block("::/0")]}], egress=[{"to": [block("::/0")]}])
    ],
    "a block around the place of IPv4 in IPv6": [policy("shop/p", ingress=[{"from": [block("::/64")]}])],
    "an exception around it": [policy("shop/p", ingress=[{"from": [block("::/0", "::/64"), block("10.0.0.0/8")]}])],
    "one address": [policy("shop/p", ingress=[{"from": [block("10.0.0.4/32")]}])],
    "an exception": [policy("shop/p", ingress=[{"from": [block("10.0.0.0/8", "10.0.0.4/30")]}])],
    "exceptions within exceptions": [
        policy("shop/p", ingress=[{"from": [block("0.0.0.0/0", "10.0.0.0/8", "10.0.0.4/32", "203.0.113.0/25")]}])
    ],
    "a block within another's exception": [
        policy("shop/p", ingress=[{"from": [block("10.0.0.0/8", "10.0.0.0/24"), block("10.0.0.4/31")]}])
    ],
    "blocks and exceptions in several policies": [
        policy("shop/p", ingress=[{"from": [block("0.0.0.0/0", "10.0.0.0/24")]}]),
        policy("shop/q", ingress=[{"from": [block("10.0.0.0/16", "10.0.0.4/30")]}]),
        policy("shop/r", DB, ingress=[{"from": [block("10.0.0.5/32")], "ports": [tcp(80)]}]),
        policy("pay/p", ingress=[{"from": [block("10.0.0.0/29", "10.0.0.1/32")]}]),
    ],
    "host bits mean nothing": [policy("shop/p", ingress=[{"from": [block("10.0.0.77/8", "10.0.0.7/30")]}])],
    "blocks beside pods": [policy("shop/p", ingress=[{"from": [block("203.0.113.0/25"), {"podSelector": WEB}]}])],
    "blocks on ports": [
        policy("shop/p", ingress=[{"from": [block("10.0.0.4/30")], "ports": [tcp(80, endPort=8080)]}]),
        policy("shop/q", ingress=[{"from": [block("10.0.0.4/32")], "ports": [tcp("http")]}]),
    ],
    "names in egress to blocks are each receiver's": [
        policy(
            "shop/p", egress=[{"to": [block("10.0.0.0/8", "10.0.0.5/32"), block("fd00::/16")], "ports": [tcp("http")]}]
        )
    ],
    "names in egress to blocks, beside blocks and numbers": [
        policy("shop/p", egress=[{"to": [block("10.0.0.0/8", "10.0.0.4/30")], "ports": [tcp("http"), tcp("metrics")]}]),
        policy(
            "shop/q", egress=[{"to": [block("10.0.0.4/30"), {"podSelector": WEB}], "ports": [tcp(8081), tcp("http")]}]
        ),
        policy("shop/r", egress=[{"to": [block("0.0.0.0/0", "10.0.0.6/32")], "ports": [tcp(9100)]}]),
    ],
}


@pytest.mark.parametrize("policies", CASES.values(), ids=CASES.keys())
async def test_documented_cases(policies: list[Object]) -> None:
    assert await differences(policies) == []


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases)
def test_any_cluster_and_policies(case: Case) -> None:
    async def compiled() -> Compiled:
        world = World()
        world.put(*case.objects)
        async with world.running():
            assert world.problems() == {}
            return Compiled(world)

    records = asyncio.run(compiled())
    documented = Documentation(case.namespaces, case.pods, case.policies, NODES)
    wrong = [p for p in case.packets(0, 400) if records.allows(p) != documented.allows(p)]
    assert wrong == []
