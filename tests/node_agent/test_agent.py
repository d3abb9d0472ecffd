"""A whole agent in a network namespace, with a kernel's maps and a store in memory."""

import asyncio
import contextlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from tests.bpf.conftest import COMPILED
from tests.bpf.kernel import Loaded
from tests.node_agent.conftest import SIZES
from tests.node_agent.netns import Network, until
from tests.node_agent.test_attach import detach, link_of
from tests.node_agent.world import (
    KEYS,
    MARKS,
    OWN,
    Values,
    backend,
    backends,
    from_set,
    judged,
    masquerade,
    members,
    node,
    pod,
    pod_key,
    puts,
    rules,
    service,
    subject,
    undecodable,
)

from node_agent import filters, nft
from node_agent.agent import LOOK, SETTLE, Agent
from node_agent.attach import HANDLE, PRIORITY
from node_agent.loader.pins import possible_cpus
from node_agent.monitor import MONITOR_DROPS, MONITOR_VERDICTS, Monitor
from node_agent.nodesettings import NodeSettings
from node_agent.policylog import LOG_AUDITED
from node_agent.programsettings import SETTING_AUDIT, SETTING_LOG
from node_agent.reading import Reading
from node_agent.status import KernelCollector, repaired, routes, status
from node_agent.sysctl import SYSCTL, enable_forwarding
from node_agent.table import ORDER
from tidegate.records import NamespaceAudit, encode
from tidegate.runtime.http import Health, serve
from tidegate.store import Delete
from tidegate.store.memory import MemoryStore

pytestmark = pytest.mark.root

WEB, DB = 1001, 1002
RECORDS: Values = {
    **node(OWN, Network.NODE),
    **node("n2", "172.31.2.12"),
    **pod("web", WEB, Network.POD),
    **pod("db", DB, "10.202.2.2", node="n2"),
    **subject(WEB, 5),
    **rules(5, from_set(300)),
    **members(300, 0, DB),
    **judged(DB),
    **service("shop", "10.96.0.1", http=80),
    **backends("shop", 0, backend(Network.POD), backend("10.202.2.2")),
}


class World:
    """Where agents are started."""

    def __init__(self, network: Network, loaded: Loaded, cgroup: Path) -> None:
        self.network, self.loaded = network, loaded
        self.store = MemoryStore()
        self.settings = NodeSettings(
            OWN, loaded.bpffs, loaded.state, COMPILED, cgroup, ("eth0",), "veth*", "auto", (), range(30000, 32768)
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[tuple[Agent, Health]]:
        health = Health("programs", "snapshot")
        reading = Reading(self.store, KEYS)
        agent = Agent(self.settings, reading, KEYS, self.loaded.manifest, health)
        await agent.open()
        task = asyncio.create_task(agent.run())
        try:
            yield agent, health
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await agent.close()
            await reading.close()

    async def settled(self, agent: Agent, health: Health) -> None:
        await until("readiness", lambda: health.is_ready and agent.tables.pending == 0)

    def kernel(self) -> dict[str, object]:
        """All that the agent's maps hold."""
        return {name: sorted(map(str, self.loaded.maps[name].items())) for name in ORDER}

    def generation(self) -> int:
        value = self.loaded.maps["settings"].get({"value": 0})
        assert value is not None
        return int(value["value"])

    def identity(self, address: str) -> int | None:
        entry = self.loaded.maps["endpoints"].get({"addr": address})
        return entry["identity"] if entry else None


Run = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture
def run(network: Network, loaded: Loaded, cgroup: Path) -> Run:
    """Runs a test's coroutine in the node's network namespace."""

    def start(work: Callable[[World], Awaitable[None]]) -> None:
        async def inside() -> None:
            await work(World(network, loaded, cgroup))

        network.node.runs(inside)

    return start


def frontend(world: World, address: str) -> bool:
    return world.loaded.maps["frontends"].get({"addr": address, "port": 80, "protocol": 6}) is not None


def pods(first: int, count: int) -> Values:
    return {k: v for n in range(first, first + count) for k, v in pod(f"p{n}", DB, f"10.202.3.{n}", node="n2").items()}


def test_from_a_snapshot_to_maps(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            maps, index = world.loaded.maps, world.network.node.ifindex("vethpod")
            web = maps["endpoints"].get({"addr": Network.POD})
            assert web == {"identity": WEB, "ifindex": index, "flags": 1}
            assert maps["endpoints"].get({"addr": "10.202.2.2"}) == {"identity": DB, "ifindex": 0, "flags": 1}
            assert maps["endpoints"].get({"addr": Network.NODE}) == {"identity": 1, "ifindex": 0, "flags": 2}
            assert maps["endpoints"].get({"addr": "172.31.2.12"}) == {"identity": 2, "ifindex": 0, "flags": 4}
            addresses = {"addr": Network.NODE, "addr6": "::"}
            uplink = {"value": world.network.node.ifindex("eth0")}
            assert maps["devices"].get({"value": 0}) == {"flags": 0, **addresses}
            assert maps["devices"].get(uplink) == {"flags": 1, **addresses}
            assert maps["members"].get({"set": 300, "member": DB}) is not None
            assert maps["services"].get({"value": 5080}) is not None
            assert set(agent.attachments.devices.values()) == {"eth0", "vethpod"}
            assert world.generation() > 0

    run(work)


def test_masquerade_in_the_maps(run: Run) -> None:
    """Nothing without the record; the ports are there in any case, for clients outside."""

    def masquerading(world: World) -> bool:
        node = world.loaded.maps["devices"].get({"value": 0})
        return node is not None and node["flags"] == 2

    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            maps = world.loaded.maps
            assert not masquerading(world)
            world.store.put_now(puts(masquerade("192.0.2.0/24")))
            await until("it masquerades", lambda: masquerading(world))
            assert maps["non_masquerade"].get({"prefix": 120, "addr": "192.0.2.0"}) is not None
            world.network.node.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 50000")
            agent._set_ports()
            blocks = [maps["settings"].get({"value": index}) for index in (4, 5, 6)]
            assert blocks == [{"value": f << 16 | n} for f, n in ((1024, 28976), (32768, 7232), (50001, 15535))]
            assert "source ports" not in agent.host_problems
            world.network.node.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
            agent._set_ports()
            assert "narrow net.ipv4.ip_local_port_range" in agent.host_problems["source ports"]
            world.network.node.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 60999")
            agent._set_ports()
            world.store.put_now([Delete(key) for key in masquerade()])
            await until("it does not", lambda: not masquerading(world))

    run(work)


def test_a_change_reaches_the_maps(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            before = world.generation()
            world.store.put_now(puts(pod("db", DB, "10.202.2.3", node="n2")))
            await until("the new address", lambda: world.identity("10.202.2.3") == DB)
            await until("the end of the old one", lambda: world.identity("10.202.2.2") is None)
            await until("a new generation", lambda: world.generation() > before)

    run(work)


def test_a_change_of_backends_alone_raises_no_generation(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS, **service("more", "10.96.0.2", http=90)}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            before = world.generation()

            def count() -> int:
                return int((world.loaded.maps["services"].get({"value": 5090}) or {})["count"])

            world.store.put_now(puts(backends("more", 0, backend("10.202.2.9"))))
            await until("the backend", lambda: count() == 1)
            world.store.put_now([Delete(KEYS.backends("default", "more", 0))])
            await until("its end", lambda: count() == 0)
            assert world.generation() == before

    run(work)


def test_another_agent_that_finds_all_as_it_should_be_writes_nothing(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
        before, generation = world.kernel(), world.generation()
        links = sorted(path.name for path in (world.loaded.bpffs / "links").iterdir())
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            assert agent.written.total() == 0
            assert agent.attachments.repairs == 0
        assert world.kernel() == before
        assert world.generation() == generation
        assert sorted(path.name for path in (world.loaded.bpffs / "links").iterdir()) == links

    run(work)


def test_what_changed_while_no_agent_ran_is_made_up_for(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS, **pod("gone", DB, "10.202.2.9", node="n2")}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
        world.store.put_now([Delete(pod_key("gone")), *puts(pod("new", DB, "10.202.2.8", node="n2"))])
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            assert agent.written.total() == 2
        assert world.identity("10.202.2.9") is None
        assert world.identity("10.202.2.8") == DB

    run(work)


@pytest.mark.parametrize("missing", sorted(MARKS))
def test_nothing_is_written_until_both_writers_are_done(run: Run, missing: str) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**RECORDS, **{key: value for key, value in MARKS.items() if key != missing}}))
        async with world.agent() as (agent, health):
            await until("the reason", lambda: missing.rpartition("/")[2] in health.report()["snapshot"])
            assert agent.written.total() == 0
            assert not any(world.kernel().values())
            world.store.put_now(puts({missing: MARKS[missing]}))
            await world.settled(agent, health)
            assert world.identity(Network.POD) == WEB

    run(work)


def test_a_store_that_is_emptied_is_not_followed(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            before, written = world.kernel(), agent.written.total()
            world.store.put_now([Delete(key) for key in MARKS])
            await until("notice of it", lambda: not health.is_ready)
            for key in RECORDS:
                world.store.put_now([Delete(key)])
            # Until the writers are done again, new records count for nothing either.
            world.store.put_now(puts(pod("early", DB, "10.202.2.7", node="n2")))
            for _ in range(100):
                await asyncio.sleep(0)
            assert (world.kernel(), agent.written.total()) == (before, written)
            world.store.put_now(puts({**MARKS, **RECORDS}))
            await until("the new pod", lambda: world.identity("10.202.2.7") == DB)
            await world.settled(agent, health)
            assert agent.written.total() == written + 1

    run(work)


def test_a_wiped_store_leaves_the_maps_alone(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            before = world.kernel()
            world.store.wipe()
            await until("notice of it", lambda: not health.is_ready)
            assert world.kernel() == before

    run(work)


def test_a_full_map_is_reported_and_recovers(run: Run) -> None:
    async def work(world: World) -> None:
        size = SIZES["endpoints"]
        world.store.put_now(puts({**MARKS, **RECORDS, **pods(0, size)}))
        async with world.agent() as (agent, health):
            await until("the report", lambda: "endpoints" in agent.full)
            assert f"endpoints: full, it holds {size}" in agent.full["endpoints"]
            assert (await status(agent, health, OWN))["full"] == agent.full
            assert len(agent.tables.have("endpoints")) == size == len(world.loaded.maps["endpoints"].items())
            # Whoever goes makes room, also while others still wait for it.
            there = [n for n in range(size) if world.identity(f"10.202.3.{n}") is not None]
            world.store.put_now([Delete(pod_key(f"p{n}")) for n in there[:1]])
            await until("one of them", lambda: world.identity(f"10.202.3.{there[0]}") is None)
            world.store.put_now([Delete(pod_key(f"p{n}")) for n in range(size // 2)])
            await until("room", lambda: not agent.full and agent.tables.pending == 0)
            assert [world.identity(f"10.202.3.{n}") for n in range(size // 2, size)] == [DB] * (size - size // 2)

    run(work)


def test_while_a_map_is_full_changes_go_on_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in that map, where they need no room."""
    # Nothing is tried again by itself, and nobody looks after anything.
    monkeypatch.setattr("node_agent.agent.Backoff.next", lambda _: 3600.0)
    monkeypatch.setattr("node_agent.agent.CHECK", 3600.0)

    async def work(world: World) -> None:
        size = SIZES["endpoints"]
        last = "10.202.3.250"
        world.store.put_now(puts({**MARKS, **RECORDS, **pod("last", DB, last, node="n2")}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            world.store.put_now(puts(pods(0, size)))
            await until("the report", lambda: "endpoints" in agent.full)
            world.store.put_now(puts({**pod("last", WEB, last, node="n2"), **service("new", "10.96.0.9", http=80)}))
            await until("the service", lambda: frontend(world, "10.96.0.9"))
            await until("the other identity", lambda: world.identity(last) == WEB)
            assert "endpoints" in agent.full

    run(work)


def test_nothing_leads_to_what_found_no_room_and_others_go_on(run: Run) -> None:
    async def work(world: World) -> None:
        count = SIZES["subjects"] + 1
        crowd: Values = {}
        for number in range(count):
            crowd |= {**judged(2000 + number), **pod(f"c{number}", 2000 + number, f"10.202.1.{100 + number}")}
        world.store.put_now(puts({**MARKS, **crowd, **service("shop", "10.96.0.1", http=80)}))
        async with world.agent() as (agent, _):
            await until("the report", lambda: agent.full.keys() == {"subjects"})
            await until("the service", lambda: world.loaded.maps["services"].get({"value": 5080}))
            assert world.loaded.maps["endpoints"].items() == []
            world.store.put_now([Delete(pod_key("c0"))])
            await until("room", lambda: not agent.full and agent.tables.pending == 0)
            assert len(world.loaded.maps["subjects"].items()) == count - 1

    run(work)


def large(name: str, ip: str, count: int, first: int = 0) -> Values:
    """A Service whose backends lie in one shard."""
    ends = (backend(f"10.{200 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}") for n in range(first, first + count))
    return {**service(name, ip, http=80 + len(name)), **backends(name, 0, *ends)}


def test_a_service_that_does_not_fit_keeps_its_state_and_the_others_go_on(run: Run) -> None:
    async def work(world: World) -> None:
        room = SIZES["backends"]
        world.store.put_now(puts({**MARKS, **RECORDS, **large("big", "10.96.0.3", room - 100)}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            before = world.kernel()
            world.store.put_now(puts(large("big", "10.96.0.3", room)))
            await until("the refusal", lambda: "default/big" in agent.refused)
            assert world.kernel() == before
            world.store.put_now(puts(service("more", "10.96.0.9", http=99)))
            await until("another Service", lambda: world.loaded.maps["services"].get({"value": 5099}))
            shown = await status(agent, health, OWN)
            assert f"{room} entries where it has {room - 100}" in shown["refused"]["default/big"]
            assert (shown["full"], shown["ready"], shown["pending"]) == ({}, True, 0)
            (gauge,) = [metric for metric in KernelCollector(agent).collect() if metric.name == "tidegate_refused"]
            assert [(s.labels, s.value) for s in gauge.samples] == [({"owner": "default/big"}, 1)]
            generation = world.generation()
            world.store.put_now([Delete(KEYS.backends("default", "shop", 0))])
            await until("room", lambda: not agent.refused and agent.tables.pending == 0)
            assert len(world.loaded.maps["backends"].items()) == room
            assert world.generation() == generation

    run(work)


async def audit(world: World, agent: Agent, health: Health) -> tuple[int, int, dict[str, object]]:
    """What the programs have of it: SETTING_AUDIT, SETTING_LOG; and what is shown."""
    await world.settled(agent, health)
    settings = [world.loaded.maps["settings"].get({"value": index}) for index in (SETTING_AUDIT, SETTING_LOG)]
    whole, log = (setting["value"] for setting in settings if setting is not None)
    (gauge,) = [metric for metric in KernelCollector(agent).collect() if metric.name == "tidegate_audit"]
    shown = (await status(agent, health, OWN))["audit"]
    scopes = [*(["node"] if shown["node"] else []), *(f"namespace {name}" for name in shown["namespaces"])]
    assert [sample.labels["scope"] for sample in gauge.samples] == scopes
    return whole, log, shown


def test_a_namespace_in_audit(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            nothing: dict[str, object] = {"node": False, "namespaces": [], "verdicts": {}}
            assert await audit(world, agent, health) == (0, 0, nothing)
            generation = world.generation()
            record = {KEYS.namespace_audit("default"): encode(NamespaceAudit(enabled=True))}
            world.store.put_now(puts(record))
            await until("audit", lambda: agent.policy_log.bits == LOG_AUDITED)
            assert await audit(world, agent, health) == (0, LOG_AUDITED, {**nothing, "namespaces": ["default"]})
            reason, packets = world.loaded.reasons["AUDITED_EGRESS"], struct.pack("=QQ", 2, 100) * possible_cpus()
            agent.maps["counters"].update(struct.pack("=I", reason), packets)
            shown = await status(agent, health, OWN)
            assert shown["audit"]["verdicts"] == {"AUDITED_EGRESS": 2 * possible_cpus()}
            assert "AUDITED_EGRESS" not in shown["drops"]
            found = {metric.name: metric.samples for metric in KernelCollector(agent).collect()}
            (sample,) = found["tidegate_audited"]
            assert (sample.labels, sample.value) == ({"reason": "AUDITED_EGRESS"}, 2 * possible_cpus())
            assert all(each.labels["reason"] != "AUDITED_EGRESS" for each in found["tidegate_packets"])
            raised = world.generation()
            assert raised > generation
            world.store.put_now([Delete(key) for key in record])
            await until("no audit", lambda: agent.policy_log.bits == 0)
            assert world.generation() > raised  # what had passed is judged anew

    run(work)


def test_a_node_in_audit(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
        generation = world.generation()
        nothing: dict[str, object] = {"namespaces": [], "verdicts": {}}
        world.settings = replace(world.settings, policy_audit=True)
        for _ in range(2):  # the second one changes nothing
            async with world.agent() as (agent, health):
                assert await audit(world, agent, health) == (1, LOG_AUDITED, {"node": True, **nothing})
                assert world.generation() == generation + 1
        world.settings = replace(world.settings, policy_audit=False)
        async with world.agent() as (agent, health):
            assert await audit(world, agent, health) == (0, 0, {"node": False, **nothing})
            assert world.generation() == generation + 2

    run(work)


def test_devices_come_and_go(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts(MARKS))
        host = world.network.node
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            host.ip("link", "add", "vethnew", "type", "veth", "peer", "name", "other")
            index = host.ifindex("vethnew")
            await until("programs on it", lambda: agent.attachments.devices.get(index) == "vethnew")
            links = set((world.loaded.bpffs / "links").glob(f"tcx_{index}_*"))
            assert len(links) == (4 if agent.attachments.tcx else 0)
            host.ip("link", "del", "vethnew")
            await until("its end", lambda: index not in agent.attachments.devices)
            assert not set((world.loaded.bpffs / "links").glob(f"tcx_{index}_*"))

    run(work)


def test_a_node_without_its_uplink_is_not_ready(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        world.network.node.ip("link", "set", "eth0", "down")
        world.network.node.ip("link", "set", "eth0", "name", "elsewhere")
        async with world.agent() as (_, health):
            await until("the reason", lambda: health.report()["programs"] == "no device eth0")
            world.network.node.ip("link", "set", "elsewhere", "name", "eth0")
            await until("readiness", lambda: health.is_ready)

    run(work)


def test_routes_that_others_took_away_come_back(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS, **node("n2", "172.31.2.12", cidrs=("10.202.2.0/24",))}))
        host = world.network.node

        def routed() -> bool:
            return "via 172.31.2.12 dev eth0" in host.ip("route", "show", "10.202.2.0/24")

        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            await until("the route", routed)
            host.ip("route", "del", "10.202.2.0/24")
            await until("the route again", routed)
            host.ip("link", "set", "eth0", "down")
            assert not routed(), "the kernel took it without telling"
            await until("what is wrong", lambda: agent.host_problems.keys() == {"10.202.2.0/24"})
            host.ip("link", "set", "eth0", "up")
            await until("the route once more", routed)
            await until("no trouble", lambda: not agent.host_problems)

    run(work)


def test_status_says_what_is_wrong(run: Run) -> None:
    async def work(world: World) -> None:
        bad = undecodable(pod("bad", WEB, "10.202.1.99"))
        world.store.put_now(puts({**MARKS, **RECORDS, **bad}))
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            shown = await status(agent, health, OWN)
            assert shown["problems"].keys() == bad.keys()
            assert "msgpack" in shown["problems"][pod_key("bad")]
            assert shown["guard"].startswith("nft: ")
            await nft.install("veth*")
            world.store.put_now(puts(pod("bad", WEB, "10.202.1.99")))
            await until("the good one", lambda: world.identity("10.202.1.99") == WEB)
            shown = await status(agent, health, OWN)
            assert shown["problems"] == {}
            assert shown["guard"] == "standing"
            world.store.set_available(False)
            assert "switched off" in (await status(agent, health, OWN))["problems"]["etcd"]
            assert health.is_ready, "traffic goes on"

    run(work)


def test_status_and_events_over_http(run: Run) -> None:
    async def work(world: World) -> None:
        world.store.put_now(puts({**MARKS, **RECORDS}))
        path = world.loaded.state / f"agent-{os.getpid()}.sock"
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            monitor = Monitor(agent.manifest, OWN, agent.monitor)
            async with (
                serve(health, unix_socket=path, routes=routes(agent, monitor, health, OWN)),
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
            ):
                async with http.get("http://agent/status") as answer:
                    shown = await answer.json()
                assert (shown["node"], shown["ready"], shown["pending"]) == (OWN, True, 0)
                assert shown["endpoints"] == ["default/web"]
                assert shown["digest"] == world.loaded.manifest.digest
                assert shown["policy_generation"] == world.generation()
                assert shown["maps"]["connections"] == {"entries": 0, "capacity": SIZES["connections"], "evicts": True}
                assert shown["maps"]["subjects"] == {"entries": 1, "capacity": SIZES["subjects"]}
                assert shown["map_writes_total"] == sum(shown["map_writes"].values()) > 0
                setting = world.loaded.maps["settings"]
                async with http.get("http://agent/monitor?drops=1&verdicts=1") as stream:
                    await until("what is monitored", lambda: setting.get({"value": 1}) == {"value": 3})
                    monitor._event(bytes(monitor._form.size), MONITOR_VERDICTS)
                    assert json.loads(await stream.content.readline())["reason"] == "FORWARDED"

                def unheard() -> bool:
                    # The next event tells that nobody listens any more.
                    monitor._event(bytes(monitor._form.size), MONITOR_DROPS)
                    return setting.get({"value": 1}) == {"value": 0}

                await until("that nothing is", unheard)

    run(work)


def test_a_bad_size_of_a_map_is_refused_before_anything_changes(
    network: Network, bpffs: Path, tmp_path: Path, cgroup: Path
) -> None:
    where = [f"--bpffs={bpffs / 'refused'}", f"--state={tmp_path}", f"--cache={COMPILED}", f"--cgroup={cgroup}"]
    command = [sys.executable, "-m", "node_agent", f"--node={OWN}", "--uplink=eth0", *where, "--map-size=nonsense=1"]
    with network.node.entered():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no such map" in done.stderr
    assert network.node.run("nft", "list", "tables") == ""
    assert not (bpffs / "refused" / "maps").exists()


# ---- what others undo ----------------------------------------------------------------------------------------------


def target_of(pin: Path) -> int:
    """What the link is attached to; 0 also where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return link_of(pin.parents[1], pin.name)[2]
    return 0


@pytest.mark.parametrize("attach", ["tcx", "clsact"])
def test_what_is_undone_is_put_back_when_the_kernel_tells(
    run: Run, monkeypatch: pytest.MonkeyPatch, attach: str
) -> None:
    """Nobody looks at everything by the clock here."""
    monkeypatch.setattr("node_agent.agent.CHECK", 3600.0)

    async def work(world: World) -> None:
        world.settings = replace(world.settings, attach=attach)
        world.store.put_now(puts({**MARKS, **RECORDS}))
        await nft.install("veth*")
        enable_forwarding(["eth0"])
        async with world.agent() as (agent, health):
            await world.settled(agent, health)
            index = world.network.node.ifindex("vethpod")
            whole = world.network.node.run("nft", "list", "ruleset")
            world.network.node.run("nft", "flush", "ruleset")
            await until("the guard", lambda: world.network.node.run("nft", "list", "ruleset") == whole)
            forwarding = SYSCTL / "ipv4/ip_forward"
            forwarding.write_text("0\n")
            await until("forwarding", lambda: forwarding.read_text() == "1\n")
            programs = world.loaded.manifest.programs
            connect = world.loaded.bpffs / "links" / "cgroup_connect4"
            detach(connect)
            await until("the program on the cgroup", lambda: target_of(connect))
            for path in map(Path, (world.loaded.manifest.maps["connections"].path, programs["from_pod"].path)):
                path.unlink()
                await until("the pin", path.exists)
            before = repaired(agent)
            if attach == "clsact":
                place = ["dev", "vethpod", "ingress", "prio", str(PRIORITY), "handle", hex(HANDLE), "bpf"]
                world.network.node.run("tc", "filter", "del", *place)
                await until("the filter", lambda: len(filters.programs(index, "ingress")) == 2)
                world.network.node.run("tc", "qdisc", "del", "dev", "vethpod", "clsact")
                await until("the filters", lambda: len(filters.programs(index, "ingress")) == 2)
            else:
                pin = world.loaded.bpffs / "links" / f"tcx_{index}_from_pod"
                pin.unlink()
                await until("the link", pin.exists)
                detach(pin)
                await until("the link on its device", lambda: target_of(pin) == index)
            await until("the report", lambda: repaired(agent) > before + 1)
            assert (await status(agent, health, OWN))["repairs"] == repaired(agent)

    run(work)


def test_what_is_undone_is_noticed_within_a_second() -> None:
    """At the latest: between two looks at the links, and then at everything."""
    assert LOOK + SETTLE <= 1.0
