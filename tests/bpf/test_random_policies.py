"""Random clusters and policies, three ways: the API documentation, the records, and the loaded programs.

TIDEGATE_POLICY_CASES sets how many; each has two states, the second one reached while connections of the first live.
"""

import asyncio
import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.bpf.kernel import Loaded
from tests.endpoint_sync.world import KEYS, World
from tests.policy.cases import Case, changes
from tests.policy.compiled import Compiled
from tests.policy.programs import Node, Sent, differences

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]  # many cases

CASES = int(os.environ.get("TIDEGATE_POLICY_CASES", "1000"))
PACKETS = 60  # of each state, and those of the first one once more in the second
FIRST_PORT = 20000


@pytest.fixture(scope="module")
def nodes(both_loaded: list[Loaded]) -> Iterator[dict[str, Node]]:
    made = {name: Node(name, loaded) for name, loaded in zip(("n1", "n2"), both_loaded, strict=True)}
    yield made
    for node in made.values():
        node.close()


async def states(before: Case, after: Case) -> Iterator[tuple[Case, dict[str, bytes], Compiled]]:
    """Both states of the records, the second one reached from the first."""
    world = World()
    world.put(*before.objects)
    found = []
    async with world.running():
        for case in (before, after):
            kept = {_name(item) for item in case.objects}
            for item in before.objects:
                if _name(item) not in kept:
                    world.delete(*_name(item))
            world.put(*case.objects)
            await world.settle()
            assert world.problems() == {}
            found.append((case, world.store.values(KEYS.prefix), Compiled(world)))
    return iter(found)


def _name(item: dict[str, dict[str, str]]) -> tuple[str, str, str]:
    return str(item["kind"]), item["metadata"].get("namespace", ""), item["metadata"]["name"]


_CASE = itertools.count(1)


@settings(
    max_examples=CASES,
    # tests/policy/faults.py asks how many cases it takes, not for the smallest one.
    phases=(Phase.generate,) if "TIDEGATE_POLICY_COUNT" in os.environ else tuple(Phase),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(changes(), st.integers(0, 2**32))
def test_model_records_and_programs_agree(nodes: dict[str, Node], change: tuple[Case, Case], seed: int) -> None:
    count = next(_CASE)
    for node in nodes.values():
        node.forget()
    sent: Sent = []
    for case, values, compiled in asyncio.run(states(*change)):
        documented = case.documented
        homes = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p["spec"]["nodeName"] for p in case.pods}
        for name, node in nodes.items():
            node.audit(name in case.audited_nodes)
            node.apply(values, case.pods)
        fresh = list(enumerate(case.packets(seed, PACKETS), FIRST_PORT + len(sent)))
        # Those that were sent before, by whoever has the address now.
        again = [(number, case.moved(packet)) for number, packet in sent]
        sent = [*again, *fresh]
        wrong = [
            f"{packet} by the records: {compiled.allows(packet)}"
            for _, packet in sent
            if compiled.allows(packet) != documented.allows(packet)
        ]
        if compiled.audited != documented.audited:
            wrong.append(f"in audit by the records: {compiled.audited}")
        wrong += differences(nodes, documented, homes, sent)
        assert not wrong, f"after {count} cases: {wrong}"
        for node in nodes.values():
            node.answer()
