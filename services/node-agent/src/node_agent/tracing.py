"""`/services/trace` on the agent's socket: a walk through this node's maps, and what the agent knows beside."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from node_agent.agent import Agent
from node_agent.explain import explain_selection
from node_agent.trace import Hook, Kernel, Outcome, Question, delivery, walk
from tidegate.records.addresses import pack_address, unpack_address

Answer = dict[str, Any]


def read_question(query: Mapping[str, str]) -> Question:
    """`hook`, `source`, `destination`, `port`, `protocol` (a number). Raises ValueError for what makes none."""
    try:
        return Question(
            hook=Hook(query["hook"]),
            source=pack_address(query["source"]),
            destination=pack_address(query["destination"]),
            port=int(query["port"]),
            protocol=int(query["protocol"]),
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error


def kernel(agent: Agent) -> Kernel:
    """The node's maps as they are pinned; to be asked in the worker thread."""
    forms = {name: (opened.key, opened.value) for name, opened in agent.maps.items()}
    # The programs' own clock runs a tick behind this one.
    return Kernel(forms, lambda name, key: agent.maps[name].lookup(key), time.monotonic())


async def ask(agent: Agent, question: Question, node: str) -> Answer:
    """Raises OSError where it cannot be said whose the source is."""
    maps = kernel(agent)
    asked = question
    if question.hook is Hook.SOCKET:
        # Not in the worker thread: it may take a while.
        asked = replace(question, cookie=await asyncio.to_thread(agent.visits.cookie_of, question.source))

    def look() -> Answer:
        found = walk(maps, asked)
        backends = [
            {
                "address": unpack_address(address),
                "port": port,
                "way": delivery(maps, question.hook, question.source, address),
            }
            for address, port in (found.backends if found.outcome is Outcome.CHOSEN else ())
        ]
        return {
            "node": node,
            "hook": question.hook.value,
            "outcome": found.outcome.value,
            "reason": found.reason,
            "steps": found.steps,
            "selection": found.selection,
            "backends": backends,
        }

    answer = await agent.in_worker(look)
    texts = dict(agent.manifest.reasons.values())
    answer["reason_text"] = texts.get(answer["reason"], "")
    row = explain_selection(agent.view.services, agent.view.host_ports, answer["selection"] or 0)
    known = {"namespace", "name", "port", "traffic_policy", "left_out"}
    answer["service"] = {name: value for name, value in row.items() if name in known} if row else None
    return answer
