"""Policies change all the time, from the API to the maps, while packets are judged: none by half of a state.

All states allow the same connections and deny the same, each by other policies, rules and sets. TIDEGATE_POLICY_CHANGES
says how many changes; they come 100 a second, or as fast as the machine bears, and with every other one labels of a
pod or a namespace change. `pytest -s` shows how fast that was.
"""

import asyncio
import json
import os
import random
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.bpf.kernel import Loaded
from tests.endpoint_sync.world import Object, match, namespace, node, pod, policy
from tests.endpoint_sync.world import World as Cluster
from tests.node_agent.netns import Network, until
from tests.node_agent.test_agent import World
from tests.node_agent.world import OWN

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]  # many changes

CHANGES = int(os.environ.get("TIDEGATE_POLICY_CHANGES", "500"))
EVERY = 0.01  # seconds
PACKETS = 20_000  # of each kind, at least
ROOT = Path(__file__).parents[2]

DB, WEB, OTHER = Network.POD, "10.202.2.2", "10.202.2.3"
NAMESPACES = [namespace("shop", team="a"), namespace("pay", team="b")]


def web(**more: str) -> Object:
    return pod("pay/web", WEB, {"app": "web", **more}, node="n2")


PODS = [
    pod("shop/db", DB, {"app": "db"}, {"sql": ("TCP", 5432)}, OWN),
    web(),
    pod("pay/other", OTHER, {"app": "other"}, node="n2"),
]
KINDS = [f"allowed/{WEB}/{DB}/5432", f"port/{WEB}/{DB}/5433", f"peer/{OTHER}/{DB}/5432"]


def only(*peers: Object, port: Object | None = None) -> list[Object]:
    return [{"from": list(peers), "ports": [port or {"port": 5432}]}]


def block(cidr: str, *excepts: str) -> Object:
    return {"ipBlock": {"cidr": cidr, "except": list(excepts)}}


EVERYWHERE: Object = {"namespaceSelector": {}, "podSelector": match(app="web")}
TEAM: Object = {"namespaceSelector": match(team="b"), "podSelector": match(app="web")}
NOT_OTHER: Object = {
    "namespaceSelector": {},
    "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["other"]}]},
}
STATES: Sequence[list[Object]] = (
    only(EVERYWHERE),
    only(TEAM, NOT_OTHER),
    only(block(f"{WEB}/32")),
    only(block("10.202.2.0/24", f"{OTHER}/32")),
    only(block("0.0.0.0/0", f"{OTHER}/32", "192.0.2.0/24")),
    only(EVERYWHERE, port={"port": "sql"}),
    only(block(f"{WEB}/31", f"{OTHER}/32"), port={"port": 5430, "endPort": 5432}),
    [*only(TEAM), *only(block("192.0.2.0/24"))],
)


def some_policy(rng: random.Random) -> Object:
    """The policy in other words, or a block of somebody else."""
    if rng.randrange(4):
        return policy("shop/db", match(app="db"), ingress=rng.choice(STATES))
    others = only(block("10.0.0.0/8", rng.choice([f"{WEB}/32", "10.202.0.0/16", f"{OTHER}/31"])))
    return policy("pay/noise", match(app="other"), ingress=others)


def some_labels(rng: random.Random) -> Object:
    """Of a pod or of its namespace; policies do not ask for them."""
    if rng.randrange(2):
        return web(version=rng.choice("abc"))
    return namespace("pay", team="b", stage=rng.choice("xyz"))


def test_no_packet_meets_half_a_state(network: Network, loaded: Loaded, cgroup: Path) -> None:
    async def work() -> None:
        cluster, world = Cluster(), World(network, loaded, cgroup)
        cluster.store = world.store
        cluster.put(node(OWN, Network.NODE), node("n2", "172.31.2.12"), *NAMESPACES, *PODS)
        cluster.put(policy("shop/db", match(app="db"), ingress=STATES[0]))
        async with cluster.running(), world.agent() as (agent, health):
            await world.settled(agent, health)
            index = network.node.ifindex("eth0")
            (link,) = json.loads(network.node.ip("-j", "link", "show", "eth0"))
            program = loaded.manifest.programs["from_network"].path
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            script = str(Path(__file__).with_name("judged.py"))
            traffic = await asyncio.create_subprocess_exec(
                *(sys.executable, script, program, network.node.name, str(index), link["address"], *KINDS),
                stdin=PIPE,
                stdout=PIPE,
                env=environment,
            )
            assert traffic.stdin is not None
            assert traffic.stdout is not None
            assert await traffic.stdout.readline() == b"ready\n"
            rng, before = random.Random(0), world.generation()  # noqa: S311  # not for secrets
            begun = time.monotonic()
            for number in range(1, CHANGES + 1):
                cluster.put(some_policy(rng))
                if number % 2:
                    cluster.put(some_labels(rng))
                # What one change took longer is made up for by the next ones.
                await asyncio.sleep(max(0.0, begun + number * EVERY - time.monotonic()))
            rate = CHANGES / (time.monotonic() - begun)
            await until("the end of the changes", lambda: agent.tables.pending == 0)
            judged = world.generation() - before
            traffic.stdin.close()
            found = json.loads(await traffic.stdout.readline())
            assert await traffic.wait() == 0
            packets = sum(sum(counts.values()) for counts in found.values())
            print(f"{CHANGES} policy changes, {rate:.1f} a second; {judged} states in the maps, {packets} packets")  # noqa: T201
            assert judged > CHANGES / 10, "the changes reached the maps, some of them together"
            assert all(sum(counts.values()) >= PACKETS for counts in found.values()), found
            assert (found["allowed"]["denied"], found["port"]["allowed"], found["peer"]["allowed"]) == (0, 0, 0)

    network.node.runs(work)
