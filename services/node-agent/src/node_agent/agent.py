"""The agent: what is read from etcd and from the host goes into the maps of this node's kernel."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext, suppress
from typing import TypeVar

from node_agent.attach import Attachments, Devices, Ours
from node_agent.cni import CniConfiguration
from node_agent.entries import NO_DEVICE, Entries
from node_agent.grace import wait_for_programs
from node_agent.healthchecks import HealthChecks
from node_agent.keptpins import KeptPins
from node_agent.loader import Manifest
from node_agent.maps import Maps
from node_agent.masquerade import free_blocks, read_local_ports, settings_of
from node_agent.namespaces import namespace_cookie
from node_agent.netlink import HostWatch
from node_agent.nodesettings import NodeSettings
from node_agent.policylog import PolicyLog
from node_agent.programsettings import (
    SETTING_MONITOR,
    SETTING_NODE_NAMESPACE,
    SETTING_PORTS,
    SETTING_SOCKET_NAMESPACE,
    ProgramSettings,
)
from node_agent.reading import Reading
from node_agent.release import Releaser
from node_agent.routes import Routes, wanted
from node_agent.succession import Succession
from node_agent.table import ORDER, POLICY, Tables
from node_agent.takeover import Decision, Takeover, place_of
from node_agent.tampering import Tampering
from node_agent.upkeep import Upkeep
from node_agent.view import View
from node_agent.visits import OwnVisits, SentVisits, Visits
from node_agent.writing import Writer
from tidegate.records import Keyspace
from tidegate.runtime import metrics
from tidegate.runtime.collector import building
from tidegate.runtime.http import Health
from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import Backoff
from tidegate.store import Incomplete, Snapshot

T = TypeVar("T")

PORT_BLOCKS = 3
# Seconds: between looks at all that may be undone, where the kernel tells nothing; between those at our links, whose
# end it never tells; and until the look where it does, for changes that come together.
CHECK, LOOK, SETTLE = 5.0, 0.7, 0.3

APPLY = metrics.histogram("apply", "From a change, as received, to the last of its entries in the maps.")

log = get_logger()


class Agent:
    """Everything between start and stop. `open` first (blocking parts in the worker thread), then `run`."""

    def __init__(
        self, settings: NodeSettings, reading: Reading, keys: Keyspace, manifest: Manifest, health: Health
    ) -> None:
        self._settings = settings
        self._reading = reading
        self._keys = keys
        self.manifest = manifest
        self._health = health
        self._worker = ThreadPoolExecutor(1, "bpf")
        self._waiter = ThreadPoolExecutor(1, "grace")
        self._retiring = asyncio.Queue[int]()
        self._changed = asyncio.Event()
        self._since: float | None = None
        self._host_ready, self._attached = asyncio.Event(), asyncio.Event()
        self._watch = HostWatch(self.changed)
        self._routes = Routes()
        self._routed: tuple[int, Mapping[str, str]] | None = None  # EndpointView.node_changes, and what follows
        self.upkeep = Upkeep(settings.pod_interfaces, settings.uplinks, settings.sysctl)
        self.takeover = Takeover()
        self.visits: Visits = SentVisits(settings.visitor) if settings.visitor else OwnVisits(settings.cgroup)
        self._checks = HealthChecks(lambda: health.is_ready)
        self.cni = CniConfiguration(settings.cni, settings.state, settings.uplinks)
        self._ports: dict[str, str] = {}
        self._devices = Devices(settings.pod_interfaces, settings.uplinks)
        self._refused: dict[int, str] = {}
        self._looked = -1  # HostWatch.told, when devices were looked at last
        self._ours = -1, Ours()  # HostWatch.told, and what follows
        self._complete = False
        self.maps: Maps
        self._entries: Entries
        self.tables: Tables
        self._writer: Writer
        self.view: View
        self.attachments: Attachments
        self.pins: KeptPins
        self._tampering: Tampering
        self._succession: Succession
        self.releaser: Releaser
        self.policy_log: PolicyLog
        self.program_settings: ProgramSettings

    async def open(self) -> None:
        """Opens maps and programs, and reads what the maps hold. Raises OSError."""
        self.cni.begin()
        await self.in_worker(self._open)
        self._tampering = Tampering((self._settings.bpffs / "links", *self.pins.directories))
        self._tampering.open()
        self._entries = Entries(self.manifest.maps)
        self._writer = Writer(self.tables, self.maps, self.in_worker)
        sizes = {name: entry.max_entries for name, entry in self.manifest.maps.items()}
        self.view = View(self._settings.node, self._keys, self.tables, self._entries, sizes)
        log_path = self._settings.policy_log
        self.policy_log = PolicyLog(self.manifest, self.maps, self._worker, self._settings.node, self.view, log_path)
        self.releaser = Releaser(self.maps["socket_peers"], self.view.departures, self.visits)

    def _open(self) -> None:
        self.maps = Maps(self.manifest.maps)
        self.pins = KeptPins(self.manifest)
        self.program_settings = ProgramSettings(self.maps["settings"])
        self.tables = Tables({name: self.maps[name].items() for name in ORDER})
        settings = self._settings
        # Before the programs that ask for it.
        self.program_settings.set(SETTING_NODE_NAMESPACE, namespace_cookie())
        self.program_settings.set(SETTING_SOCKET_NAMESPACE, namespace_cookie() if settings.socket_lb == "node" else 0)
        self._set_ports()
        self.program_settings.audit(self.audited_node)
        self.attachments = Attachments(self.manifest, settings.bpffs, settings.cgroup, settings.attach)
        self._succession = Succession(settings.bpffs, settings.state, self.manifest)
        if not self._succession.waits_for:
            self._move_links()

    def _move_links(self) -> None:
        self._succession.move_links()
        self.attachments.attach_cgroup()

    async def close(self) -> None:
        """Leaves everything in the kernel as it is: traffic goes on without the agent."""
        self._tampering.close()
        await self._checks.close()
        await self.in_worker(self.releaser.close)
        await self.in_worker(self.maps.close)
        self.pins.close()
        self.attachments.close()
        self._worker.shutdown()
        self._waiter.shutdown()

    async def in_worker(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    def changed(self) -> None:
        if self._since is None:
            self._since = time.monotonic()
        self._changed.set()

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch.run(self._host_ready.set))
            group.create_task(self._apply())
            group.create_task(self._follow())
            group.create_task(self._check())
            group.create_task(self._expire())
            group.create_task(self.releaser.run())
            group.create_task(self.policy_log.run())

    async def _follow(self) -> None:
        await self._attached.wait()  # a large snapshot holds up everything else
        self._want_host()  # whether a pod has the device that its map entry says is asked with the first snapshot
        async with aclosing(self._reading.changes()) as changes:
            async for change in changes:
                if isinstance(change, Incomplete):
                    self._complete = False
                    missing = self._reading.missing(change.marks)
                    self._health.not_ready("snapshot", f"not complete in etcd yet: {missing}")
                    continue
                self._complete = True
                if isinstance(change, Snapshot):
                    with building():
                        self.view.snapshot(change.values)
                else:
                    self.view.batch(change.operations)
                del change  # what was read is not held until there is something new
                self.changed()

    async def _check(self) -> None:
        """Somebody may have taken our programs away, or the guard: look when something changes, and now and then."""
        while True:
            await self._until_due()
            await asyncio.sleep(SETTLE)
            await self.upkeep.look()
            await self.in_worker(self.pins.look)
            await self.takeover.look()
            self.cni.look_again()
            if not self._succession.waits_for:
                self.attachments.devices.clear()
                self._looked = -1
                await self.in_worker(self.attachments.attach_cgroup)
            await self.in_worker(self._set_ports)
            self.changed()

    async def _until_due(self) -> None:
        """Until the kernel tells of a change, a link is found detached, or it is time for a look at everything."""
        for _ in range(round(CHECK / LOOK)):
            if await self._tampering.wait(LOOK) or not await self.in_worker(self.attachments.are_whole):
                return

    async def _apply(self) -> None:
        await self._host_ready.wait()
        first = True
        untouched = not self.tables.have("frontends")  # no program of ours has translated anything here
        loading = True
        backoff = Backoff()
        while True:
            self._changed.clear()
            since, self._since = self._since, None
            if self._succession.waits_for:
                names = ", ".join(self._succession.waits_for)
                reason = f"earlier ones stay until maps of another layout are filled: {names}"
                self._health.not_ready("programs", reason)
            elif first:
                await self._attach_first()
                first = False
            else:
                await self._attach_devices()
            self._attached.set()  # or what is to be attached waits for the snapshot
            if self.view.loaded:
                if untouched:
                    await self._take_over()
                    untouched = False
                with building() if loading else nullcontext():
                    await self._write()
                if loading:
                    log.info("snapshot in the maps", entries=self.written.total())
                    loading = False
                if self._succession.waits_for:
                    await self.in_worker(self._move_links)
                    await self.in_worker(self._succession.filled)
                    self._changed.set()
                if since is not None:
                    APPLY.observe(time.monotonic() - since)
                if self._complete:
                    self._health.ready("snapshot")
                if self._health.is_ready:
                    self.cni.write(self.view.endpoints.nodes.get(self._settings.node))
            if self._writer.full:
                # There may be room again after a while, or with a change; what is not there yet stays wanted.
                with suppress(TimeoutError):
                    async with asyncio.timeout(backoff.next()):
                        await self._changed.wait()
            else:
                backoff.reset()
                await self._changed.wait()

    async def _attach_first(self) -> None:
        await self.in_worker(self._succession.catch_up)
        await self._attach_devices()
        # No program of ours uses earlier maps any more, where all could be attached.
        await self.in_worker(lambda: self._succession.catch_up(last=not self._refused))
        pruned = await self.in_worker(lambda: self.attachments.finish(self._watch.host.devices))
        log.info("programs attached", tcx=self.attachments.tcx, removed_versions=pruned)

    async def _attach_devices(self) -> None:
        """Programs on every pod device and uplink, also on those of pods that nobody has told us about yet."""
        if self._looked == self._watch.told and not self._refused:
            return
        self._looked = self._watch.told  # before the look: what comes meanwhile is a matter of the next one
        devices = dict(self._watch.host.devices)
        self.attachments.forget_absent(devices)
        for index, name in devices.items():
            programs = self._devices.programs(name)
            if programs is not None and self.attachments.devices.get(index) != name:
                await self._attach_device(index, name, programs)
        self._refused = {index: reason for index, reason in self._refused.items() if index in devices}
        missing = set(self._settings.uplinks) - set(devices.values())
        reasons = [*(f"no device {name}" for name in sorted(missing)), *self._refused.values()]
        if reasons:
            self._health.not_ready("programs", "; ".join(reasons))
        else:
            self._health.ready("programs")

    async def _attach_device(self, index: int, name: str, programs: Mapping[str, str]) -> None:
        try:
            await self.in_worker(lambda: self.attachments.attach_device(index, name, programs))
        except OSError as error:
            if index in self._watch.host.devices:
                self._refused[index] = f"device {name}: {error}"
                log.warning("cannot attach; trying again", device=name, reason=str(error))
            return
        self._refused.pop(index, None)

    def _want_host(self) -> None:
        if self._ours[0] != self._watch.told:
            self._ours = self._watch.told, self._devices.ours(self._watch.host)
        uplinks, pods, addresses = self._ours[1]
        self.view.set_host(pods, addresses)
        entries = self._entries
        own, masquerading = self.view.endpoints.own_addresses, self.view.masquerade.enabled
        present = dict(entries.device(index, *own, masquerading) for index in (NO_DEVICE, *uplinks))
        for key in self.tables.wanted("devices").keys() - present.keys():
            self.tables.want("devices", key, None)
        for key, value in present.items():
            self.tables.want("devices", key, value)

    async def _take_over(self) -> None:
        """What kube-proxy's rules have begun, before any frontend is ours."""
        self._want_host()
        host = self._watch.host
        place = place_of(self.tables, self._entries, host.addresses, host.pods.keys())

        def write(decision: Decision) -> None:
            for name, items in decision.entries.items():
                self.maps[name].update_all(dict(items))

        await self.takeover.begin(place, self.manifest.maps, write)

    async def _write(self) -> None:
        self._want_host()
        removals = self.tables.removals
        steps, outdated = await self._writer.write()
        if self.view.room.refused and self.tables.removals != removals:
            self.changed()  # there is room for some of them
        if any(step.map in POLICY and not step.retired for step in steps):
            self.program_settings.raise_generation()
        self.policy_log.apply(self.view.logging, self.audited_node or bool(self.view.policy.audited))
        retiring = self.tables.retiring()
        if retiring is not None and not outdated:
            self._retiring.put_nowait(retiring)
        self.releaser.look()
        lost, fallen = self._watch.take_losses()
        self._routes.lost(lost)
        if not fallen.isdisjoint(self._settings.uplinks):
            self._routes.forget()
        await self._routes.apply(self._wanted_routes())
        await self._checks.apply(self.view.services.health)

    def _wanted_routes(self) -> Mapping[str, str]:
        """The same mapping, until a node is another."""
        endpoints = self.view.endpoints
        if self._routed is None or self._routed[0] != endpoints.node_changes:
            self._routed = endpoints.node_changes, wanted(endpoints.nodes, self._settings.node)
        return self._routed[1]

    async def _expire(self) -> None:
        """Entries that nothing leads to go when no program can be on its way to them. Never returns."""
        while True:
            number = await self._retiring.get()
            while not self._retiring.empty():
                number = self._retiring.get_nowait()
            await asyncio.get_running_loop().run_in_executor(self._waiter, wait_for_programs)
            self.tables.expire(number)
            self._changed.set()  # what remains to be done is no change of what is told

    def _set_ports(self) -> None:
        """Which source ports connections may have that leave under the node's address."""
        local, taken = read_local_ports(), self._settings.node_ports
        blocks = free_blocks(local, taken)
        for index, value in enumerate(settings_of(blocks, PORT_BLOCKS), SETTING_PORTS):
            self.program_settings.set(index, value)
        self._ports = {}
        if not blocks:
            self._ports["source ports"] = (
                "none is left for what leaves under the node's address: narrow net.ipv4.ip_local_port_range, which is "
                f"{local[0]}-{local[-1]}; the NodePorts are {taken[0]}-{taken[-1]}"
            )

    def monitor(self, bits: int) -> None:
        """Which events the programs shall send (monitor.MONITOR_*)."""
        self.program_settings.set(SETTING_MONITOR, bits)

    @property
    def audited_node(self) -> bool:
        """Whether the whole node is in audit."""
        return self._settings.policy_audit

    @property
    def full(self) -> dict[str, str]:
        """Map → why what is wanted there is not there."""
        return self._writer.full

    @property
    def written(self) -> Counter[str]:
        """Map → entries written or removed."""
        return self._writer.written

    @property
    def refused(self) -> dict[str, str]:
        """Service, pod with host ports, or policies of pods → why what is wanted of it now finds no room; what it had,
        it has."""
        owners = {"/".join(owner): reason for owner, reason in sorted(self.view.room.refused.items())}
        return owners | self.view.refused_policies

    @property
    def host_problems(self) -> dict[str, str]:
        """Guard, route, or port for health checks → why it is not there; etcd → why it cannot be followed."""
        ports = {f"health checks on port {port}": reason for port, reason in self._checks.problems.items()}
        etcd = {"etcd": self._reading.trouble} if self._reading.trouble else {}
        hosts = {**self.releaser.problems, **self.upkeep.problems, **self.takeover.problems, **self._routes.problems}
        return {**etcd, **self._ports, **hosts, **ports, **self.policy_log.problems, **self.cni.problems}
