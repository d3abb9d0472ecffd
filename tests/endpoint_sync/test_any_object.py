"""Whatever an object holds, it costs itself alone: both services go on, and when it is mended nothing is left of it."""

import asyncio
import copy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.endpoint_sync.world import (
    Object,
    World,
    annotated,
    config_map,
    endpoint_slice,
    match,
    namespace,
    node,
    pod,
    policy,
    service,
)
from tests.fuzz.limits import fuzzing
from tests.mutations import Mutator

GOOD: list[Object] = [
    annotated(namespace("shop", team="a"), "policy.tidegate.dev/audit"),
    config_map("kube-system/ip-masq-agent", config="nonMasqueradeCIDRs: [10.0.0.0/8]"),
    {"kind": "NetworkLogging", "metadata": {"name": "default"}, "spec": {"cluster": {"allow": {"log": True}}}},
    node("n1", "172.30.0.11", cidr="10.1.0.0/24"),
    pod("shop/a", "10.1.0.2", {"app": "web"}, {"http": ("TCP", 80)}, uid="u", ownerReferences=[{"kind": "Job"}]),
    pod("shop/b", "10.1.0.3", {"app": "db"}, {"http": ("TCP", 81)}),
    service(
        "shop/s",
        "10.96.0.1",
        {"port": 80, "name": "a", "nodePort": 30080},
        externalIPs=["192.0.2.1"],
        loadBalancerSourceRanges=["10.0.0.0/8"],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 5}},
    ),
    endpoint_slice("shop/s-1", "s", "10.1.0.2", {"addresses": ["10.1.0.3"], "hints": {"forZones": [{"name": "z"}]}}),
    endpoint_slice("shop/s-2", "s", "10.1.0.2"),
    policy(
        "shop/p",
        match(app="db"),
        ingress=[
            {"from": [{"podSelector": match(app="web")}], "ports": [{"port": 80, "endPort": 90}, {"port": "http"}]}
        ],
        egress=[{"to": [{"namespaceSelector": match(team="a")}], "ports": [{"port": "http"}]}],
        policyTypes=["Ingress", "Egress"],
    ),
]

SAME_TWICE = [{"ip": "10.1.0.2"}, {"ip": "10.1.0.2"}]
ODD: list[Any] = [
    *(0, -1, 1, 80, 65535, 65536, 2**31, 2**63, True, None, 1.5),
    *("x", "", "10.1.0.2", "10.1.0.3", "::1", "fe80::1%eth0", "::ffff:10.1.0.2", "10.1.0.0/24", "10.1.0.0/33"),
    *("http", "TCP", "s", "n1", "None", "é" * 10),
    *([], {}, [1], ["a"], {"a": 1}, {"": ""}, SAME_TWICE, [[[[{"a": [[{}]]}]]]]),
    *("\0", "‮", "\U0001f600", "١", "-" * 64, "x" * 5000, 2**64 - 1, -(2**63), 1e300),
]


@pytest.mark.fuzz
@fuzzing(30)
@given(st.integers(0, 2**64))
def test_whatever_it_holds_it_costs_itself_alone(seed: int) -> None:
    asyncio.run(change_at_random(seed))


async def change_at_random(seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311  # to be repeated, not to be secret
    mutate = Mutator(choice, ODD, keep=("kind", "metadata", "name", "namespace"))
    world = World()
    world.grace = 0.0
    world.put(*copy.deepcopy(GOOD))
    async with world.running():
        # The first identities were made before the policy asked for what it needs of them.
        world.endpoint_sync.collect()
        await world.settle()
        before = world.values()
        for _ in range(25):
            item = copy.deepcopy(choice.choice(GOOD))
            if choice.random() < 0.2:
                world.delete(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
                world.put(item)
            bad = mutate(item)
            if item["kind"] == "ConfigMap" and choice.random() < 0.7:
                bad = config_map("kube-system/ip-masq-agent", config=str(mutate("nonMasqueradeCIDRs: [10.0.0.0/8]")))
            part = choice.choice(("labels", "annotations"))
            if choice.random() < 0.5 and part in item["metadata"] and isinstance(bad, dict) and "kind" in bad:
                bad["metadata"] = {**item["metadata"], part: mutate(item["metadata"][part])}
            if isinstance(bad, dict) and "kind" in bad:
                world.put(bad)
            if choice.random() < 0.5:
                await world.settle()
                world.endpoint_sync.collect()
        await world.settle()
        world.put(*copy.deepcopy(GOOD))
        await world.settle()
        world.endpoint_sync.collect()
        await world.settle()
        assert world.problems() == {}
        assert world.values() == before
