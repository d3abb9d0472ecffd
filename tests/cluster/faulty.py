"""A playground on an etcd of three members, each in a network namespace of its own, and faults that can be done to it.

`change` is what clients see of them: how long they wait for the next change.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.conftest import Cluster, start, stop, until

from playground.layout import Layout

NAME = "f"
MEMBERS = range(3)
CLIENTS, PEERS = 2379, 2380
HOOKS = ("input", "output")
HERE = "172.30.0.240"  # of the machine itself on the segment
ROOT_LINK = "tgf-root"
# Until the machine's own link to the segment is there, its services must not go looking for etcd outside of it: whoever
# answers there, such as a proxy, is not etcd.
NO_WAY_OUT = ["unreachable", "172.30.0.0/24", "metric", "9999"]
QUOTA = 24 << 20  # bytes of etcd's database
CLOCK, WAITER = (Path(__file__).with_name(name) for name in ("clock.c", "waiter.py"))
PODS = """
apiVersion: v1
kind: Namespace
metadata: {name: faults}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: faults}
spec: {clusterIP: 10.96.77.1, selector: {app: server}, ports: [{port: 8080}]}
"""
POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: faults, labels: {app: %s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: responder, image: tidegate/responder, ports: [{containerPort: 8080}]}]
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: server-%d, namespace: faults}
spec: {clusterIP: 10.96.77.%d, selector: {app: server}, ports: [{port: 8080}]}
"""
CLOSED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: faults}
spec: {podSelector: {matchLabels: {app: server}}, ingress: []}
"""


def address(member: int) -> str:
    return f"172.30.0.{101 + member}"


@contextmanager
def cut(namespace: str | None, port: int) -> Iterator[None]:
    """Of a namespace (None: the machine's own), what TCP sends or gets by that port is dropped without a word."""
    nft = ["ip", "netns", "exec", namespace, "nft"] if namespace else ["nft"]
    drop = f"tcp dport {port} drop; tcp sport {port} drop"
    chains = "\n".join(f"chain {hook} {{ type filter hook {hook} priority -300; {drop}; }}" for hook in HOOKS)
    subprocess.run([*nft, "-f", "-"], input=f"table inet tg-cut {{\n{chains}\n}}", text=True, check=True)
    try:
        yield
    finally:
        subprocess.run([*nft, "delete", "table", "inet", "tg-cut"], check=True)


class Faulty(Cluster):
    """`home`: a directory for etcd's data."""

    def __init__(self, home: Path) -> None:
        super().__init__(Layout(NAME))
        self.home = home
        self.clock = home / "clock"
        self._members: dict[int, subprocess.Popen[bytes]] = {}
        self._services = 1

    # ---- up and down --------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Agents wait for etcd; so etcd may come when the segment that it is on is there."""
        # What an interrupted run has left is taken for the new one otherwise, until that removes it.
        stop(self)
        self.set_clocks(0)
        subprocess.run(["ip", "route", "replace", *NO_WAY_OUT], check=True)
        library = self.home / "clock.so"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, CLOCK], check=True)
        environment = {"LD_PRELOAD": str(library), "TGT_CLOCK": str(self.clock)}
        endpoints = ",".join(f"{address(member)}:{CLIENTS}" for member in MEMBERS)
        with ThreadPoolExecutor(1) as beside:
            attached = beside.submit(self._attach)
            start(NAME, "--nodes=3", "--sync-replicas=2", f"--etcd={endpoints}", environment=environment)
            attached.result()
        self.apply_shop()
        nodes = self.nodes()
        pods = [("server", "server", nodes[0]), *((f"client-{node}", "client", node) for node in nodes)]
        self.kubectl("apply", "-f", "-", text=PODS + "".join(POD % pod for pod in pods))
        self.kubectl("wait", "--for=condition=Ready", "-n", "faults", "pod", "--all", "--timeout=60s")
        self.change("service")

    def down(self) -> None:
        for process in self._members.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        stop(self)
        subprocess.run(["ip", "route", "del", *NO_WAY_OUT], check=False)

    def _attach(self) -> None:
        """The members' namespaces, and the machine's own link, to the segment. All go with the playground."""
        until("the segment is there", lambda: self._ready_segment())
        segment = self.layout.segment
        subprocess.run(["ip", "link", "del", ROOT_LINK], check=False, capture_output=True)  # it goes late, by itself
        for port, where, own in [
            *((f"etcd-{member}", self.member_namespace(member), address(member)) for member in MEMBERS),
            ("root", None, HERE),
        ]:
            device = "eth0" if where else ROOT_LINK
            if where:
                subprocess.run(["ip", "netns", "add", where], check=True)
            there = ["netns", where] if where else []
            link = ["ip", "link", "add", f"p-{port}", "netns", segment, "type", "veth", "peer", "name", device, *there]
            subprocess.run(link, check=True)
            subprocess.run(["ip", "-n", segment, "link", "set", f"p-{port}", "master", "br0", "up"], check=True)
            ip = ["ip", "-n", where] if where else ["ip"]
            subprocess.run([*ip, "address", "add", f"{own}/24", "dev", device], check=True)
            subprocess.run([*ip, "link", "set", device, "up"], check=True)
            if where:
                subprocess.run([*ip, "link", "set", "lo", "up"], check=True)
        for member in MEMBERS:
            self._start_member(member)

    def _ready_segment(self) -> bool:
        """Whether this playground's segment stands; the register is written anew after an earlier one was removed."""
        if self.register.get("cluster") is None or not Path("/run/netns", self.layout.segment).exists():
            return False
        show = ["ip", "-n", self.layout.segment, "link", "show", "br0"]
        return subprocess.run(show, check=False, capture_output=True).returncode == 0

    def member_namespace(self, member: int) -> str:
        return self.layout.pod_namespace("etcd", str(member))

    def _start_member(self, member: int) -> None:
        client, peer = (f"http://{address(member)}:{port}" for port in (CLIENTS, PEERS))
        members = ",".join(f"etcd-{each}=http://{address(each)}:{PEERS}" for each in MEMBERS)
        command = [
            *("ip", "netns", "exec", self.member_namespace(member), "etcd"),
            *(f"--name=etcd-{member}", f"--data-dir={self.home / str(member)}", f"--initial-cluster={members}"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            *("--log-level=error", f"--quota-backend-bytes={QUOTA}"),
        ]
        with (self.home / f"{member}.log").open("ab") as output:
            self._members[member] = subprocess.Popen(command, stdout=output, stderr=output)

    # ---- what there is ------------------------------------------------------------------------------------------

    def etcdctl(self, *arguments: str, at: Sequence[int] = MEMBERS) -> str:
        endpoints = ",".join(f"{address(member)}:{CLIENTS}" for member in at)
        done = subprocess.run(
            ["etcdctl", f"--endpoints={endpoints}", "--command-timeout=20s", *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _statuses(self) -> dict[int, dict[str, Any]]:
        """Member → what it says; empty until all say the same of who leads."""
        found = json.loads(self.etcdctl("endpoint", "status", "-w", "json"))
        by_endpoint = {each["Endpoint"]: each["Status"] for each in found}
        leaders = {status.get("leader", 0) for status in by_endpoint.values()}
        agreed = len(leaders) == 1 and leaders != {0}
        return {member: by_endpoint[f"{address(member)}:{CLIENTS}"] for member in MEMBERS} if agreed else {}

    def _ids_and_leader(self) -> tuple[dict[int, int], int]:
        """Member → its id, and the member that leads."""
        statuses: dict[int, dict[str, Any]] = until("etcd has a leader", self._statuses)
        ids = {member: said["header"]["member_id"] for member, said in statuses.items()}
        return ids, next(member for member, said in statuses.items() if ids[member] == said["leader"])

    def etcd_leader(self) -> int:
        return self._ids_and_leader()[1]

    def let_lead(self, member: int) -> None:
        ids, leader = self._ids_and_leader()
        if leader != member:
            # etcdctl takes the id in hexadecimal, and JSON has it in decimal.
            self.etcdctl("move-leader", f"{ids[member]:x}", at=[leader])
        until("it leads", lambda: self.etcd_leader() == member)

    def member_of_a_node(self) -> int:
        """One that an agent is connected to."""
        for member in MEMBERS:
            show = ["ip", "netns", "exec", self.member_namespace(member), "ss", "-Htn", "sport", "=", f":{CLIENTS}"]
            peers = subprocess.run(show, check=True, capture_output=True, text=True).stdout
            if any(f"172.30.0.{10 + index}:" in peers for index in range(1, len(self.nodes()) + 1)):
                return member
        raise AssertionError("no agent is connected to any member")

    def holder(self, service: str) -> str:
        """Who leads, as it writes itself into etcd; empty: nobody."""
        return self.etcdctl("get", "--print-value-only", f"/tidegate/playground/leader/{service}").strip()

    def process_that_leads(self, service: str) -> str:
        holder = until("somebody leads", lambda: self.holder(service))
        names = [f"{service}-{index}" for index in range(2)]
        return next(name for name in names if str(self.pid(name)) in holder)

    def api_port(self) -> int:
        (line,) = [line for line in self.layout.kubeconfig.read_text().splitlines() if "server:" in line]
        return int(line.rsplit(":", 1)[1])

    def is_whole(self) -> bool:
        """Whether each member of etcd answers."""
        health = [
            "etcdctl",
            f"--endpoints={','.join(f'{address(each)}:{CLIENTS}' for each in MEMBERS)}",
            "endpoint",
            "health",
        ]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(health, env=environment, capture_output=True, check=False).returncode == 0

    # ---- faults -------------------------------------------------------------------------------------------------

    @contextmanager
    def api_cut(self) -> Iterator[None]:
        """The sync services, and whoever else speaks to the API server on this machine."""
        with cut(None, self.api_port()):
            yield

    @contextmanager
    def etcd_cut(self) -> Iterator[None]:
        """All clients of etcd from all of its members."""
        with ExitStack() as stack:
            for member in MEMBERS:
                stack.enter_context(cut(self.member_namespace(member), CLIENTS))
            yield

    @contextmanager
    def member_cut(self, member: int) -> Iterator[None]:
        """From the other members; its clients still reach it."""
        with cut(self.member_namespace(member), PEERS):
            yield

    @contextmanager
    def stopped(self, *members: int) -> Iterator[None]:
        try:
            for member in members:
                self._members[member].send_signal(signal.SIGSTOP)
            yield
        finally:
            for member in members:
                self._members[member].send_signal(signal.SIGCONT)

    @contextmanager
    def disks(self, what: str, *members: int) -> Iterator[None]:
        """What becomes of the members' calls to their disks, in the words of strace's --inject."""
        calls = what.partition(":")[0]
        strace = ["strace", "--follow-forks", "--quiet=all", "--output=/dev/null", f"--trace={calls}"]
        tracing: list[subprocess.Popen[bytes]] = []
        try:
            for member in members:
                attach = f"--attach={self._members[member].pid}"
                tracing.append(subprocess.Popen([*strace, f"--inject={what}", attach]))
            until("strace has them", lambda: all(self.has_ended(each) or self._is_traced(each) for each in members))
            yield
        finally:
            for process in tracing:
                process.terminate()
                process.wait()

    def has_ended(self, member: int) -> bool:
        return self._members[member].poll() is not None

    def _is_traced(self, member: int) -> bool:
        """Whether all of its threads are."""
        try:
            tasks = Path(f"/proc/{self._members[member].pid}/task").glob("*/status")
            return not any("TracerPid:\t0\n" in task.read_text() for task in tasks)
        except OSError:  # a thread that has just ended
            return False

    def start_again(self, *members: int) -> None:
        """Members that have ended, as whoever runs them on a machine does."""
        for member in members:
            assert self.has_ended(member)
            self._start_member(member)

    @contextmanager
    def slow(self, stands: float, runs: float) -> Iterator[None]:
        """All members together stand still and run in turn, for so many seconds each."""
        over = threading.Event()

        def pace() -> None:
            while not over.is_set():
                with self.stopped(*MEMBERS):
                    over.wait(stands)
                over.wait(runs)

        thread = threading.Thread(target=pace)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def set_clocks(self, ahead: int) -> None:
        """Those of agents and services, from now on: ahead of the machine's by so many seconds."""
        with self.clock.open("r+b" if self.clock.exists() else "wb") as file:  # in place: they look into this file
            file.write(struct.pack("=q", ahead))

    # ---- what clients see ---------------------------------------------------------------------------------------

    def change(self, what: str) -> float:
        """Makes a change that clients on all nodes wait for; the monotonic time at which the last of them saw it.

        `service`: a new Service, which they reach. `policy`: a policy by which they are denied, and which goes again.
        """
        if what == "policy":
            try:
                return self._waited("10.96.77.1", "denied", CLOSED)
            finally:
                self.kubectl("delete", "netpol", "-n", "faults", "closed")
                self._waited("10.96.77.1", "reached", None)
        self._services += 1
        number = self._services
        return self._waited(f"10.96.77.{number}", "reached", SERVICE % (number, number))

    def _waited(self, where: str, state: str, change: str | None) -> float:
        clients = [f"faults/client-{node}" for node in self.nodes()]
        line = [sys.executable, "-S", "-E", str(WAITER), where, "8080", state]
        waiting = [subprocess.Popen(self.command_in(pod, *line), stdout=subprocess.PIPE, text=True) for pod in clients]
        outputs = [process.stdout for process in waiting if process.stdout is not None]
        try:
            assert [output.readline() for output in outputs] == ["asking\n"] * len(waiting)
            if change is not None:
                self.kubectl("apply", "-f", "-", text=change)
            return max(float(output.readline()) for output in outputs)
        finally:
            for process in waiting:
                process.kill()
                process.communicate()

    def denied(self) -> bool:
        """Whether clients on all nodes are kept out by the policy `closed`."""
        line = [sys.executable, "-S", "-E", str(WAITER), "10.96.77.1", "8080", "reached"]
        for node in self.nodes():
            with subprocess.Popen(self.command_in(f"faults/client-{node}", *line), stdout=subprocess.PIPE) as process:
                try:
                    process.wait(1.5)
                    return False
                except subprocess.TimeoutExpired:
                    process.kill()
        return True


def log_on_a_full_disk(cluster: Cluster, node: str) -> None:
    """The node's agent starts anew, with a policy log that takes nothing."""
    path = cluster.layout.node_state(node) / "policy_action.log"
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")
    pid = cluster.pid(node)
    os.kill(pid, signal.SIGKILL)
    until(f"{node} runs again", lambda: cluster.running(node, pid))
    until(f"{node} is ready", lambda: cluster.status(node).get("ready"))
