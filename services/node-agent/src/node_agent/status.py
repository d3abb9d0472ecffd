"""What the agent says of itself on its socket, and the kernel's counters as metrics."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node_agent import nft, tracing
from node_agent.agent import Agent
from node_agent.explain import explain
from node_agent.monitor import MONITOR_DROPS, MONITOR_VERDICTS, Monitor
from node_agent.programsettings import SETTING_GENERATION
from node_agent.table import ORDER
from node_agent.tracing import read_question
from tidegate.runtime.http import Health

MIB = 1 << 20
AUDITED = ("AUDITED_INGRESS", "AUDITED_EGRESS")  # reasons of verdicts; what becomes of the packets is counted besides


def counters(agent: Agent) -> dict[str, dict[str, int]]:
    """Reason → packets and bytes, summed over the CPUs; reasons that never occurred are left out."""
    opened = agent.maps["counters"]
    found = {}
    for number, (name, _) in agent.manifest.reasons.items():
        sums = opened.sums(int(number))
        if sums["packets"]:
            found[name] = {"packets": sums["packets"], "bytes": sums["bytes"]}
    return found


def take_audited(found: dict[str, dict[str, int]]) -> dict[str, int]:
    """Takes out of counters what is no packet's end: verdicts that deny, and let pass in audit, by reason."""
    return {reason: found.pop(reason)["packets"] for reason in AUDITED if reason in found}


def in_audit(agent: Agent) -> list[str]:
    namespaces = [f"namespace {name}" for name in sorted(agent.view.policy.audited)]
    return ["node", *namespaces] if agent.audited_node else namespaces


def events_lost(agent: Agent) -> dict[str, int]:
    opened = agent.maps["events_lost"]
    names = ("drops", "verdicts", "logged_allowed", "logged_denied", "logged_audited")
    return {name: opened.sums(index)["packets"] for index, name in enumerate(names)}


def repaired(agent: Agent) -> int:
    return agent.attachments.repairs + agent.upkeep.repairs + agent.pins.repairs


def problems_of(agent: Agent) -> dict[str, str]:
    """What → why it is not as it should be."""
    return {**agent.view.problems, **agent.host_problems}


class KernelCollector(Collector):
    """Reads the kernel's counters when Prometheus asks, and not before."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterable[Metric]:
        packets = CounterMetricFamily("tidegate_packets", "Packets by what became of them.", labels=["reason"])
        size = CounterMetricFamily("tidegate_packet_bytes", "The same in bytes.", labels=["reason"])
        found = counters(self._agent)
        verdicts = CounterMetricFamily(
            "tidegate_audited", "Denied by policies, but passed in audit.", labels=["reason"]
        )
        for reason, count in take_audited(found).items():
            verdicts.add_metric([reason], count)
        for reason, values in found.items():
            packets.add_metric([reason], values["packets"])
            size.add_metric([reason], values["bytes"])
        entries = GaugeMetricFamily("tidegate_map_entries", "Entries that the agent has written.", labels=["map"])
        capacity = GaugeMetricFamily("tidegate_map_capacity", "Entries that fit.", labels=["map"])
        for name in ORDER:
            entries.add_metric([name], len(self._agent.tables.have(name)))
            capacity.add_metric([name], self._agent.maps[name].max_entries)
        lost = CounterMetricFamily("tidegate_events_lost", "Events that found no room, by where.", labels=["ring"])
        for ring, count in events_lost(self._agent).items():
            lost.add_metric([ring], count)
        refused = GaugeMetricFamily(
            "tidegate_refused", "1 for what found no room and keeps its last state.", labels=["owner"]
        )
        for owner in self._agent.refused:
            refused.add_metric([owner], 1)
        audit = GaugeMetricFamily("tidegate_audit", "1 for what is in audit on this node.", labels=["scope"])
        for scope in in_audit(self._agent):
            audit.add_metric([scope], 1)
        repairs = CounterMetricFamily("tidegate_repairs", "Programs, pins, guard, forwarding: taken away, put back.")
        repairs.add_metric([], repaired(self._agent))
        problems = GaugeMetricFamily("tidegate_node_problems", "How many things `tidegate status` names on this node.")
        problems.add_metric([], len(problems_of(self._agent)))
        return [packets, size, verdicts, audit, entries, capacity, lost, refused, repairs, problems]


async def fullness(agent: Agent) -> dict[str, dict[str, Any]]:
    """Map → entries and how many fit. Where the oldest `evicts` for a new one, being full is no trouble."""
    ours = {name: {"entries": len(agent.tables.have(name)), "capacity": agent.maps[name].max_entries} for name in ORDER}
    evicting = {name: agent.maps[name] for name, entry in agent.manifest.maps.items() if entry.type == "lru_hash"}

    def count_all() -> dict[str, dict[str, Any]]:
        return {
            name: {"entries": opened.count(), "capacity": opened.max_entries, "evicts": True}
            for name, opened in evicting.items()
        }

    # Beside the worker: what is to be written does not wait for it.
    return {**ours, **await asyncio.to_thread(count_all)}


def resident_memory() -> int:
    """Bytes."""
    with open("/proc/self/statm") as file:  # noqa: PTH123  # read at each scrape
        return int(file.read().split()[1]) * 4096


async def status(agent: Agent, health: Health, node: str) -> dict[str, Any]:
    drops = counters(agent)
    audited = take_audited(drops)
    try:
        packets, size = await nft.dropped()
        if packets:
            drops[nft.REASON[0]] = {"packets": packets, "bytes": size}
        guard = "standing"
    except nft.GuardError as error:
        guard = str(error)
    forwarded = drops.pop("FORWARDED", {"packets": 0, "bytes": 0})
    return {
        "node": node,
        "ready": health.is_ready,
        "components": health.report(),
        "digest": agent.manifest.digest,
        "attached_by": "tcx" if agent.attachments.tcx else "clsact",
        "devices": {str(index): name for index, name in sorted(agent.attachments.devices.items())},
        "repairs": repaired(agent),
        "guard": guard,
        "sockets_freed": agent.releaser.freed,
        "map_writes_total": agent.written.total(),
        "map_writes": dict(+agent.written),
        "maps": await fullness(agent),
        "full": agent.full,
        "refused": agent.refused,
        "pending": agent.tables.pending,
        "endpoints": sorted(key for key, _ in agent.view.endpoints.local),
        "policy_generation": agent.program_settings.get(SETTING_GENERATION),
        "forwarded": forwarded,
        "drops": drops,
        "audit": {
            "node": agent.audited_node,
            "namespaces": sorted(agent.view.policy.audited),
            "verdicts": audited,
        },
        "policy_log": agent.policy_log.bits,
        "events_lost": events_lost(agent),
        "problems": problems_of(agent),
        "memory_mib": round(resident_memory() / MIB, 1),
    }


def routes(agent: Agent, monitor: Monitor, health: Health, node: str) -> list[web.RouteDef]:
    async def show_status(_: web.Request) -> web.Response:
        return web.json_response(await status(agent, health, node))

    async def show_services(_: web.Request) -> web.Response:
        return web.json_response(list(explain(agent.view.services, agent.view.host_ports)))

    async def show_trace(request: web.Request) -> web.Response:
        try:
            question = read_question(request.query)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        try:
            return web.json_response(await tracing.ask(agent, question, node))
        except OSError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error

    async def stream(request: web.Request) -> web.StreamResponse:
        bits = MONITOR_DROPS * (request.query.get("drops", "1") == "1")
        bits |= MONITOR_VERDICTS * (request.query.get("verdicts", "0") == "1")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        async with monitor.listen(bits) as listener:
            await response.prepare(request)
            while True:
                event = await listener.queue.get()
                await response.write(json.dumps(event).encode() + b"\n")
                if listener.lost:
                    await response.write(json.dumps({"node": node, "lost": listener.lost}).encode() + b"\n")
                    listener.lost = 0

    return [
        web.get("/status", show_status),
        web.get("/services", show_services),
        web.get("/services/trace", show_trace),
        web.get("/monitor", stream),
    ]
