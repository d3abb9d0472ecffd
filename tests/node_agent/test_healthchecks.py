"""healthCheckNodePort: what is answered, as kube-proxy answers it, and when nobody listens."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from msgspec import structs
from tests.node_agent.test_frontends import LB, PORT, backends, service, stored
from tests.node_agent.world import KEYS, OWN, Agent

from node_agent.healthchecks import HealthCheck, HealthChecks
from tidegate.records import Backend, BackendShard, encode
from tidegate.records.addresses import pack_address

LIMITED = structs.replace(service(PORT, lb=LB, external_local=True), health_port=32000)


@pytest.fixture
def agent() -> Agent:
    fresh = Agent()
    fresh.snapshot({})
    return fresh


def checks(agent: Agent) -> dict[int, HealthCheck]:
    return agent.view.services.health


def test_backends_of_this_node_count(agent: Agent) -> None:
    agent.change({**stored(LIMITED), **backends(("10.0.0.1", OWN), ("10.0.0.2", "n9"), ("10.0.0.3", OWN))})
    assert checks(agent) == {32000: HealthCheck("default", "shop", 2)}
    agent.change(stored(structs.replace(LIMITED, health_port=32001)))
    assert checks(agent) == {32001: HealthCheck("default", "shop", 2)}
    agent.change(stored(structs.replace(LIMITED, external_local=False)))
    assert checks(agent) == {}
    agent.change(stored(LIMITED))
    agent.remove(KEYS.service("default", "shop"))
    assert checks(agent) == {}


def test_those_that_are_not_ready_do_not(agent: Agent) -> None:
    going = Backend(
        address=pack_address("10.0.0.1"), node=OWN, ports={"http": 1}, ready=False, serving=True, terminating=True
    )
    shard = encode(BackendShard(backends=(going,)))
    agent.change({**stored(LIMITED), KEYS.backends("default", "shop", 0): shard})
    assert checks(agent)[32000].local == 0


class State:
    healthy = True


@pytest.fixture
async def served() -> AsyncIterator[tuple[HealthChecks, State]]:
    state = State()
    made = HealthChecks(lambda: state.healthy)
    yield made, state
    await made.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(port: int) -> tuple[int, dict[str, Any], str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
        return answer.status, json.loads(await answer.text()), answer.headers["X-Load-Balancing-Endpoint-Weight"]


Served = tuple[HealthChecks, State]


async def test_answers(served: Served) -> None:
    made, state = served
    one, two = free_port(), free_port()
    await made.apply({one: HealthCheck("shop", "web", 2), two: HealthCheck("shop", "db", 0)})
    body = {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": True}
    assert await ask(one) == (200, body, "2")
    other = {"service": {"namespace": "shop", "name": "db"}, "localEndpoints": 0, "serviceProxyHealthy": True}
    assert await ask(two) == (503, other, "0")
    state.healthy = False
    assert await ask(one) == (503, {**body, "serviceProxyHealthy": False}, "2")
    state.healthy = True
    await made.apply({one: HealthCheck("shop", "web", 0)})
    assert (await ask(one))[0] == 503
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(two)


async def test_what_is_wanted_may_change_meanwhile(served: Served) -> None:
    made, _ = served
    want = {free_port(): HealthCheck("shop", "web", 1), free_port(): HealthCheck("shop", "db", 1)}
    task = asyncio.create_task(made.apply(want))
    await asyncio.sleep(0)
    want[free_port()] = HealthCheck("shop", "late", 1)
    await task
    await made.apply(want)
    assert [(await ask(port))[0] for port in want] == [200, 200, 200]


async def test_a_port_that_is_taken_is_a_problem_until_it_is_free(served: Served) -> None:
    made, _ = served
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port, other = taken.getsockname()[1], free_port()
        want = {port: HealthCheck("shop", "web", 1), other: HealthCheck("shop", "db", 1)}
        await made.apply(want)
        assert made.problems == {port: "EADDRINUSE"}
        assert (await ask(other))[0] == 200
    await made.apply(want)
    assert made.problems == {}
    assert (await ask(port))[0] == 200
