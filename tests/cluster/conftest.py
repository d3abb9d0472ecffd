"""A playground of the suite's own, beside whatever else is up on the machine."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from playground.demo.command import kubectl, shop
from playground.demo.reach import Expected, Matrix, Target, measure, read_expected, targets
from playground.layout import Layout
from playground.processes import ours, read_register
from playground.shell import inside
from tidegate.cli import agents

PATIENCE = 60.0  # seconds that a condition may take to come true on a busy machine


def until(what: str, check: Callable[[], Any]) -> Any:
    """Waits for a condition; fails naming it, with its last value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := check()):
        assert time.monotonic() < deadline, f"{what}: never came true (last: {value!r})"
        time.sleep(0.02)
    return value


def equal(what: str, measure: Callable[[], Any], wanted: Any) -> None:
    """Waits until a measurement gives what is wanted; fails with the difference."""
    deadline = time.monotonic() + PATIENCE
    while (value := measure()) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert value == wanted, what


@dataclass
class Cluster:
    """A running playground."""

    layout: Layout

    @property
    def register(self) -> dict[str, Any]:
        return read_register(self.layout.state)

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        command = [kubectl(), f"--kubeconfig={self.layout.kubeconfig}", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout if done.returncode == 0 else done.stderr

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.kubectl(*arguments, "-o", "json"))["items"]
        return items

    def status(self, node: str) -> dict[str, Any]:
        (found,) = agents.find(self.layout.run, node)
        return asyncio.run(agents.status(found))

    def nodes(self) -> list[str]:
        nodes: list[str] = self.register["nodes"]
        return nodes

    def pid(self, process: str) -> int:
        return int(self.register["processes"][process]["pid"])

    def running(self, process: str, but: int) -> bool:
        """Whether the process runs with another pid than `but`."""
        entry = self.register["processes"][process]
        return entry["pid"] != but and ours(entry)

    def command_in(self, pod: str, *command: str) -> list[str]:
        """The command line that runs in the pod NAMESPACE/NAME: its network, its cgroup."""
        namespace, name = pod.split("/")
        (cgroup,) = self.layout.cgroup.glob(f"*/{namespace}_{name}")
        return inside(self.layout.pod_namespace(namespace, name), cgroup, command)

    def run_in(self, pod: str, *command: str) -> str:
        return subprocess.run(self.command_in(pod, *command), capture_output=True, text=True, check=True).stdout

    def apply_shop(self) -> None:
        for name in ("namespaces", "services", "pods"):
            self.kubectl("apply", "-f", str(shop() / f"{name}.yaml"))
        until("all pods are ready", self._shop_ready)
        self.settle()

    def _shop_ready(self) -> bool:
        pods = self.objects("get", "pods", "-A")
        slots = sum(len(pod["spec"]["containers"][0]["ports"]) for pod in pods if "labels" in pod["metadata"])
        ready = all(pod.get("status", {}).get("phase") == "Running" for pod in pods)
        entries = {self.status(node)["maps"]["backends"]["entries"] for node in self.nodes()}
        return ready and entries == {slots}

    def _answers(self) -> list[dict[str, Any]]:
        """Nothing where one of them has none; why is shown where the test fails."""
        statuses = [self.status(node) for node in self.nodes()]
        silent = [status["error"] for status in statuses if "error" in status]
        sys.stderr.writelines(f"{error}\n" for error in silent)
        return [] if silent else statuses

    def settle(self) -> None:
        """Waits until the agents have applied all that there was: nothing is due, and nothing more comes."""

        def seen() -> list[tuple[int, int]]:
            statuses = until("all agents answer", self._answers)
            return [(status["map_writes_total"], status["pending"]) for status in statuses]

        before: list[tuple[int, int]] = []
        while (now := seen()) != before or any(pending for _, pending in now):
            before = now
            time.sleep(0.3)

    def set_families(self, policy: str) -> None:
        """`ipFamilyPolicy` of all Services of the shop."""
        change = json.dumps({"spec": {"ipFamilyPolicy": policy}})
        for service in self.objects("get", "services", "-A"):
            where = ["-n", service["metadata"]["namespace"], service["metadata"]["name"]]
            if service["metadata"]["namespace"] != "default":
                self.kubectl("patch", "service", *where, "--type=merge", "-p", change)
        self.settle()

    def measure(self, ipv6: bool = False) -> tuple[Matrix, Expected, list[Target]]:
        expected = read_expected(shop() / "expected.yaml")
        addresses = {
            f"{service['metadata']['namespace']}/{service['metadata']['name']}": address
            for service in self.objects("get", "services", "-A")
            for address in service["spec"]["clusterIPs"]
            if (":" in address) == ipv6
        }
        pods = self.objects("get", "pods", "-A")
        nodes = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p["spec"]["nodeName"] for p in pods}
        wanted = targets(expected, addresses)
        return asyncio.run(measure(self.layout, expected, wanted, nodes)), expected, wanted


def start(name: str, *options: str, environment: dict[str, str] | None = None) -> Cluster:
    plain = {key: value for key, value in os.environ.items() if key not in ("KUBECONFIG", "KUBEBUILDER_ASSETS")}
    command = [sys.executable, "-m", "playground", "--name", name, "up", "--detach", *options]
    done = subprocess.run(command, env={**plain, **(environment or {})}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Cluster(Layout(name))


def stop(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "playground", "--name", cluster.layout.name, "down"]
    subprocess.run(command, check=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes with the shop, without its policies. Services have IPv6 addresses where they ask for them."""
    found = start("s", "--nodes", "3", "--sync-replicas", "2", "--dual-stack")
    try:
        found.apply_shop()
        yield found
    finally:
        stop(found)


@pytest.fixture(scope="session")
def traffic_script() -> Path:
    return Path(__file__).with_name("traffic.py")
