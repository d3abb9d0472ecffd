"""From NetworkLogging and annotations to what nodes are told to log."""

from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from tests.endpoint_sync.world import Object, World, annotated, namespace, policy

from policy_sync.annotations import LOG_ALLOWED, LOG_DENIED
from tidegate.kube import watch
from tidegate.records import Logging, NamespaceLogging


def logging(name: str = "default", **cluster: Object) -> Object:
    return {"kind": "NetworkLogging", "metadata": {"name": name}, "spec": {"cluster": cluster}}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.put(namespace("shop"), namespace("pay"), policy("shop/p"))
    async with made.running():
        yield made


def said(world: World) -> Logging | None:
    return world.records(Logging).get(("logging",))


def delegated(world: World) -> dict[str, NamespaceLogging]:
    return {name: record for (name,), record in world.records(NamespaceLogging).items()}


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, Logging()),
        ({"allow": {"log": True}}, Logging(allowed=True)),
        ({"deny": {"log": True}, "allow": {"log": False}}, Logging(denied=True)),
        (
            {"allow": {"log": True, "delegate": True}, "deny": {"log": True, "delegate": True}},
            Logging(allowed=True, allowed_delegated=True, denied=True, denied_delegated=True),
        ),
    ],
)
async def test_the_object(world: World, cluster: Object, expected: Logging) -> None:
    assert said(world) is None
    assert await world.written(logging(**cluster)) == {"config/logging"}
    assert said(world) == expected
    world.delete("NetworkLogging", "", "default")
    await world.settle()
    assert said(world) is None


async def test_what_contradicts_itself_leaves_what_was_in_force(world: World) -> None:
    await world.written(logging(deny={"log": True}))
    await world.written(logging(allow={"delegate": True}))
    assert said(world) == Logging(denied=True)
    assert "delegate is true, and log is not" in world.problems()["NetworkLogging -/default"]
    await world.written(logging(allow={"log": "often"}))
    assert said(world) == Logging(denied=True)
    await world.written(logging(allow={"log": True}))
    assert said(world) == Logging(allowed=True)
    assert world.problems() == {}


async def test_one_of_another_name_has_no_effect(world: World) -> None:
    await world.written(logging("other", deny={"log": True}))
    assert said(world) is None
    assert "named default" in world.problems()["NetworkLogging -/other"]
    world.delete("NetworkLogging", "", "other")
    await world.settle()
    assert world.problems() == {}


async def test_annotations_by_namespace(world: World) -> None:
    assert await world.written(annotated(policy("shop/p"), LOG_ALLOWED)) == {"config/logging/shop"}
    await world.written(annotated(policy("shop/a"), LOG_ALLOWED), annotated(policy("shop/x"), LOG_ALLOWED, "false"))
    assert await world.written(annotated(namespace("pay"), LOG_DENIED)) == {"config/logging/pay"}
    assert delegated(world) == {
        "shop": NamespaceLogging(policies=("a", "p")),
        "pay": NamespaceLogging(denied=True),
    }
    await world.written(annotated(namespace("shop"), LOG_DENIED), namespace("pay"))
    world.delete("NetworkPolicy", "shop", "a")
    await world.settle()
    assert delegated(world) == {"shop": NamespaceLogging(denied=True, policies=("p",))}
    world.delete("NetworkPolicy", "shop", "p")
    world.put(namespace("shop"))
    await world.settle()
    assert delegated(world) == {}


async def test_a_server_that_does_not_know_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies are compiled as ever, and the kind is there as soon as the server has it."""
    monkeypatch.setattr(watch, "UNSERVED", 0.01)
    made = World()
    made.api.unserved.add(watch.NETWORK_LOGGING.path)
    made.put(namespace("shop"), annotated(policy("shop/p"), LOG_ALLOWED))
    async with made.running():
        assert delegated(made) == {"shop": NamespaceLogging(policies=("p",))}
        made.put(logging(deny={"log": True}))
        await made.settle()
        assert said(made) is None
        made.api.unserved.clear()
        await made.until(lambda: said(made) == Logging(denied=True))
        # With its definition the objects of a kind go.
        made.api.unserved.add(watch.NETWORK_LOGGING.path)
        made.api.cut()
        await made.until(lambda: said(made) is None)


async def test_what_cannot_be_read_stays_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    made = World()
    made.put(namespace("shop"), logging(deny={"log": True}))
    async with made.running():
        assert said(made) == Logging(denied=True)
    pages = made.api.pages

    async def forbidden(path: str, fields: str) -> AsyncGenerator[bytes, None]:
        if path == watch.NETWORK_LOGGING.path:
            raise watch.Unreachable("403: forbidden")
        async for page in pages(path, fields):
            yield page

    monkeypatch.setattr(made.api, "pages", forbidden)
    async with made.running("two"):
        assert await made.written(annotated(namespace("shop"), LOG_DENIED)) == {"config/logging/shop"}
        assert said(made) == Logging(denied=True)
