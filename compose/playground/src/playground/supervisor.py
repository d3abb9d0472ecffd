"""The process behind `playground up`: everything that runs, and the order in which it comes up."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from playground.cleanup import clean
from playground.endpointslices import Controller
from playground.etcd import Etcd
from playground.kubelet import Kubelet
from playground.layout import CLUSTER, SERVICE_CIDR, SERVICE_CIDR6, Layout, NodeAddresses
from playground.network import create_segment
from playground.nodes import register as register_node
from playground.processes import Register, keep
from playground.realapi import RealApiServer, assets
from playground.scheduler import Scheduler
from playground.shell import inside, run
from tidegate.kube.client import KubeClient
from tidegate.kube.watch import Unreachable
from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import Backoff, backoff
from tidegate.store.local import free_port

log = get_logger()

Say = Callable[[str], None]

# All that they have, as in a cluster (compose/kubernetes/base/node-*.yaml).
CAPABILITIES = {
    "node-agent": ("bpf", "net_admin", "perfmon"),
    "visitor": ("net_admin", "sys_admin", "sys_ptrace"),
}


def confined(who: str, command: Sequence[str]) -> list[str]:
    """The command, with no other capabilities than `who` has."""
    return ["setpriv", f"--bounding-set=-all,+{',+'.join(CAPABILITIES[who])}", "--", *command]


@dataclass(frozen=True, slots=True)
class Options:
    nodes: int = 3
    kubeconfig: Path | None = None
    dual_stack: bool = False
    endpoint_slices: bool = True
    sync_replicas: int = 1
    attach: str = "auto"
    socket_lb: str = "all"
    secure: bool = False  # three members of etcd, TLS, and a role for each service
    etcd: str | None = None  # endpoints of one that somebody else runs


async def mount_bpffs() -> None:
    if not any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in Path("/proc/mounts").read_text().splitlines()):
        await run("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")


class Supervisor:
    def __init__(self, layout: Layout, options: Options, say: Say) -> None:
        self._layout = layout
        self._options = options
        self._say = say
        self._nodes = [NodeAddresses(index) for index in range(1, options.nodes + 1)]
        self._register: Register
        self._etcd: Etcd
        self.kubeconfig = layout.kubeconfig

    @property
    def _service_cidr(self) -> str:
        return f"{SERVICE_CIDR},{SERVICE_CIDR6}" if self._options.dual_stack else SERVICE_CIDR

    async def run(self, ready: Callable[[], None]) -> None:
        """Never returns; `ready` is called when all of it works. Whoever cancels it cleans up (cleanup.clean)."""
        layout = self._layout
        await clean(layout, spare=os.getpid())
        await mount_bpffs()
        layout.logs.mkdir(parents=True)
        layout.bpffs.mkdir()
        self._register = Register(layout.state)
        self._register.note(supervisor=os.getpid(), nodes=[node.name for node in self._nodes], cluster=CLUSTER)
        self._register.process("supervisor", os.getpid())
        async with AsyncExitStack() as stack:
            self._etcd = Etcd(layout.home / "etcd", self._options.secure, self._options.etcd)
            self._say("starting etcd and the API server, laying out the network")
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_etcd())
                group.create_task(create_segment(layout, self._nodes, self._options.dual_stack))
                real = group.create_task(self._start_real_api())
            stack.callback(self._etcd.stop)
            server = real.result()
            if server is not None:
                stack.callback(server.stop)
            async with asyncio.TaskGroup() as group:
                await self._run_all(group, ready, own_api=server is None and self._options.kubeconfig is None)

    async def _start_etcd(self) -> None:
        await self._etcd.start()
        for name, process in self._etcd.members.items():
            self._register.process(name, process.pid)

    async def _start_real_api(self) -> RealApiServer | None:
        """The API server that is not ours: the one of --kubeconfig, or one from KUBEBUILDER_ASSETS."""
        if self._options.kubeconfig is not None:
            shutil.copy(self._options.kubeconfig, self.kubeconfig)
            return None
        binaries = assets()
        if binaries is None:
            return None
        server = RealApiServer(self._layout.home / "kube-apiserver", binaries, self._service_cidr)
        await server.start()
        shutil.copy(server.kubeconfig, self.kubeconfig)
        for index, pid in enumerate(server.pids):
            self._register.process(f"kube-apiserver-{index}", pid)
        return server

    async def _run_all(self, group: asyncio.TaskGroup, ready: Callable[[], None], own_api: bool) -> None:
        for name, process in self._etcd.members.items():
            group.create_task(process.keep(lambda n=name, p=process: self._register.process(n, p.pid)))  # type: ignore[misc]
        # They need etcd only, and the longest time: each compiles its programs.
        self._start_agents(group)
        if own_api:
            # Always on the same port: a kubeconfig must outlive a restart of the server.
            group.create_task(self._keep("apiserver", self._api_command(free_port())))
        api = await self._connect()
        self._say("starting agents and services, registering nodes")
        self._start_services(group)
        for node in self._nodes:
            await register_node(api, node, self._options.dual_stack)
        kubelet = Kubelet(self._layout, api, self._nodes, self._options.dual_stack)
        group.create_task(kubelet.run())
        group.create_task(Scheduler(api, self._nodes).run())
        if self._options.endpoint_slices:
            group.create_task(Controller(api).run())
        await self._until_ready()
        self._register.note(
            ready=True,
            etcd=self._etcd.endpoint,
            etcd_unix=self._etcd.unix,
            etcd_files=self._etcd.files("root"),
            kubeconfig=str(self.kubeconfig),
        )
        ready()

    async def _connect(self) -> KubeClient:
        pause = Backoff(initial=0.02, cap=0.2)
        while not self.kubeconfig.exists():
            await pause.wait()
        api = await KubeClient.load(self.kubeconfig)
        async for attempt in backoff(Unreachable, attempts=50, cap=0.5):
            with attempt:
                await api.request("GET", "/version")
        return api

    async def _keep(self, name: str, command: list[str]) -> None:
        await keep(name, command, self._layout.logs / f"{name}.log", self._register)

    def _api_command(self, port: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "playground.apiserver",
            f"--port={port}",
            f"--service-cidr={self._service_cidr}",
            f"--kubeconfig={self.kubeconfig}",
            f"--journal={self._layout.home / 'apiserver.journal'}",
        ]

    def _start_services(self, group: asyncio.TaskGroup) -> None:
        programs = Path(sys.executable).parent
        common = [f"--cluster={CLUSTER}", "--listen="]
        for service in ("endpoint-sync", "policy-sync"):
            for index in range(self._options.sync_replicas):
                name = service if self._options.sync_replicas == 1 else f"{service}-{index}"
                command = [
                    str(programs / f"tidegate-{service}"),
                    *common,
                    *self._etcd.flags(service),
                    f"--kubeconfig={self.kubeconfig}",
                    f"--http-socket={self.service_socket(name)}",
                ]
                group.create_task(self._keep(name, command))

    def _start_agents(self, group: asyncio.TaskGroup) -> None:
        programs = Path(sys.executable).parent
        for node in self._nodes:
            cgroup = self._layout.node_cgroup(node.name)
            (cgroup / "agent").mkdir(parents=True, exist_ok=True)
            visitor = self._layout.node_state(node.name) / "visitor.sock"
            visit = [str(programs / "tidegate-node-visitor"), f"--visitor={visitor}", f"--cgroup={cgroup}"]
            command = [
                str(programs / "tidegate-node-agent"),
                f"--cluster={CLUSTER}",
                "--listen=",
                f"--node={node.name}",
                *self._etcd.flags("node-agent"),
                f"--bpffs={self._layout.bpffs / node.name}",
                f"--state={self._layout.node_state(node.name)}",
                f"--cgroup={cgroup}",
                f"--policy-log={self._layout.node_state(node.name) / 'policy_action.log'}",
                f"--cni-config={self._layout.node_state(node.name) / 'net.d' / '05-tidegate.conflist'}",
                "--uplink=eth0",
                f"--attach={self._options.attach}",
                f"--socket-lb={self._options.socket_lb}",
                f"--visitor={visitor}",
            ]
            namespace = self._layout.node_namespace(node.name)
            for name, rights, line in ((node.name, "node-agent", command), (f"{node.name}-visitor", "visitor", visit)):
                group.create_task(self._keep(name, inside(namespace, cgroup / "agent", confined(rights, line))))

    def service_socket(self, name: str) -> Path:
        return self._layout.home / f"{name}.sock"

    async def _until_ready(self) -> None:
        sockets = [self._layout.node_state(node.name) / "agent.sock" for node in self._nodes]
        async with asyncio.TaskGroup() as group:
            for path in sockets:
                group.create_task(until_ready(path))
        self._say("all nodes are ready")


async def until_ready(path: Path, patience: float = 120.0) -> None:
    """Waits until the service on the unix socket says that it is ready. Raises TimeoutError with what it lacks."""
    said = "it does not answer"
    pause = Backoff(initial=0.02, cap=0.2)
    try:
        async with asyncio.timeout(patience):
            while True:
                try:
                    async with (
                        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
                        session.get("http://agent/readyz") as answer,
                    ):
                        if answer.status == 200:
                            return
                        said = await answer.text()
                except (aiohttp.ClientError, OSError) as error:
                    said = str(error)
                await pause.wait()
    except TimeoutError as error:
        raise TimeoutError(f"{path}: not ready after {patience:g} s: {said}") from error
