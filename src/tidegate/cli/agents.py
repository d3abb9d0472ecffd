"""The agents of this machine, asked on their unix sockets."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

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


async def services(agent: Found) -> list[dict[str, Any]]:
    """Which backends the node gives to whom, and why not the others. Raises OSError, aiohttp.ClientError."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(agent.socket)), timeout=timeout) as session,
        session.get("http://agent/services") as answer,
    ):
        found: list[dict[str, Any]] = await answer.json()
        return found


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
