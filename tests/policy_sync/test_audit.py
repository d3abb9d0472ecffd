"""From the annotation of a Namespace to what nodes are told of audit."""

from collections.abc import AsyncIterator

import pytest
from tests.endpoint_sync.world import World, annotated, namespace, policy

from policy_sync.annotations import AUDIT, LOG_ALLOWED, LOG_DENIED
from tidegate.records import NamespaceAudit, NamespaceLogging


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.put(namespace("shop"), namespace("pay"), policy("shop/p"))
    async with made.running():
        yield made


def audited(world: World) -> set[str]:
    return {name for (name,), record in world.records(NamespaceAudit).items() if record.enabled}


async def test_a_namespace_goes_into_audit_and_out_of_it(world: World) -> None:
    assert audited(world) == set()
    assert await world.written(annotated(namespace("shop"), AUDIT)) == {"config/audit/shop"}
    assert await world.written(annotated(namespace("pay"), AUDIT, "false")) == set()
    assert audited(world) == {"shop"}
    assert await world.written(annotated(namespace("pay"), AUDIT)) == {"config/audit/pay"}
    world.delete("Namespace", "", "pay")
    await world.settle()
    assert audited(world) == {"shop"}
    assert await world.written(namespace("shop")) == {"config/audit/shop"}
    assert (audited(world), world.problems()) == (set(), {})


async def test_it_stays_over_a_restart_and_goes_with_it() -> None:
    made = World()
    made.put(annotated(namespace("shop"), AUDIT), annotated(namespace("pay"), AUDIT))
    async with made.running():
        assert audited(made) == {"shop", "pay"}
    made.put(namespace("shop"))
    before = made.values()
    async with made.running("two"):
        assert audited(made) == {"pay"}
        assert before.keys() - made.values().keys() == {"config/audit/shop"}


@pytest.mark.parametrize("value", ["True", "yes", ""])
async def test_what_is_neither_true_nor_false_is_told_and_enforced(world: World, value: str) -> None:
    await world.written(annotated(namespace("shop"), AUDIT))
    await world.written(annotated(namespace("shop"), AUDIT, value))
    assert audited(world) == set()
    assert world.problems() == {
        "Namespace -/shop": f'annotation {AUDIT}: "{value}" is neither "true" nor "false", and counts as "false"'
    }
    await world.written(annotated(namespace("shop"), AUDIT, "false"))
    assert world.problems() == {}


async def test_annotations_of_logging_are_told_alike(world: World) -> None:
    both = annotated(annotated(namespace("shop"), AUDIT, "1"), LOG_DENIED, "on")
    await world.written(both, annotated(policy("shop/p"), LOG_ALLOWED, "on"))
    found = world.problems()
    assert found.keys() == {"Namespace -/shop", "NetworkPolicy shop/p"}
    assert all(name in found["Namespace -/shop"] for name in (AUDIT, LOG_DENIED))
    assert LOG_ALLOWED in found["NetworkPolicy shop/p"]
    assert world.records(NamespaceLogging) == {}
    world.delete("NetworkPolicy", "shop", "p")
    await world.written(annotated(namespace("shop"), LOG_DENIED))
    assert (world.problems(), audited(world)) == ({}, set())
