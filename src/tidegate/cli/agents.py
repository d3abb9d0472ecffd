"""The agents of this machine, asked on their unix sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import click

T = TypeVar("T")

PATIENCE = 3.0  # seconds for an answer


@dataclass(frozen=True, slots=True)
class Found:
    """A node's state directory."""

    node: str
    socket: Path


def find(run: Path, node: str | None = None) -> list[Found]:
    """All nodes that have had an agent on this machine."""
    found = []
    for path in sorted(run.glob("*/agent.json")):
        name = json.loads(path.read_text()).get("node", path.parent.name)
        if node in (None, name):
            found.append(Found(name, path.parent / "agent.sock"))
    return found


def need(run: Path, node: str) -> Found:
    """The node's agent, or the end of the command with a sentence."""
    found = find(run, node)
    if not found:
        raise click.ClickException(f"no agent of node {node} on this machine (none under {run})")
    return found[0]


def answered(agent: Found, ask: Callable[[Found], Awaitable[T]]) -> T:
    """What the agent answers, or the end of the command with a sentence."""

    async def wait() -> T:
        return await ask(agent)

    try:
        return asyncio.run(wait())
    except aiohttp.ClientResponseError as error:
        text = f"the agent on {agent.socket} does not know this question ({error.status}): it may be of another version"
        raise click.ClickException(text) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise click.ClickException(f"the agent does not answer on {agent.socket}: {error}") from error


async def status(agent: Found) -> dict[str, Any]:
    """What the agent says of itself; an agent that does not answer is a row with `error`."""
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(agent.socket)), timeout=aiohttp.ClientTimeout(total=PATIENCE)
            ) as session,
            session.get("http://agent/status") as answer,
        ):
            found: dict[str, Any] = await answer.json()
            return found
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        text = str(error) or "no answer"
        return {"node": agent.node, "ready": False, "error": f"the agent does not answer on {agent.socket}: {text}"}


def audited_nodes(run: Path) -> frozenset[str]:
    """Nodes of which the agents here say that they are in audit as a whole; who does not answer says nothing."""

    async def ask() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(status, find(run))))

    return frozenset(found["node"] for found in asyncio.run(ask()) if found.get("audit", {}).get("node"))


async def services(agent: Found) -> list[dict[str, Any]]:
    """Which backends the node gives to whom, and why not the others. Raises OSError, aiohttp.ClientError."""
    found: list[dict[str, Any]] = await _ask(agent, "services", {})
    return found


async def trace(agent: Found, question: Mapping[str, str]) -> dict[str, Any]:
    """What the node's programs would do with a new connection. Raises OSError, aiohttp.ClientError."""
    found: dict[str, Any] = await _ask(agent, "services/trace", question)
    return found


async def _ask(agent: Found, what: str, query: Mapping[str, str]) -> Any:
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(agent.socket)), timeout=timeout) as session,
        session.get(f"http://agent/{what}", params=query, raise_for_status=True) as answer,
    ):
        return await answer.json()


async def events(agent: Found, drops: bool, verdicts: bool) -> AsyncIterator[dict[str, Any]]:
    """Drops and verdicts as they happen, until the agent ends. Raises OSError, aiohttp.ClientError."""
    query = {"drops": str(int(drops)), "verdicts": str(int(verdicts))}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(agent.socket)), timeout=timeout) as session,
        session.get("http://agent/monitor", params=query) as answer,
    ):
        async for line in answer.content:
            yield json.loads(line)
