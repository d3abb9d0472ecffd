"""The ConfigMap of ip-masq-agent, changed by kubectl under running connections to the outside world."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cluster.conftest import Cluster, equal, until

from playground import responder
from playground.layout import EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

CLIENT, PORT = "shop/cart-1", 7999
NAME = ("-n", "kube-system", "configmap", "ip-masq-agent")
EXTERNAL = {"ipv4": EXTERNAL_ADDRESS, "ipv6": EXTERNAL_ADDRESS6}


def config(text: str) -> str:
    indented = "\n".join(f"    {line}" for line in text.splitlines())
    head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ip-masq-agent, namespace: kube-system}\n"
    return f"{head}data:\n  config: |\n{indented}\n"


@pytest.fixture
def world(cluster: Cluster) -> Iterator[Cluster]:
    """Somebody answers outside, and there is no ConfigMap at the beginning and the end."""
    script = str(Path(str(responder.__file__)))
    command = [sys.executable, "-S", "-E", script, "world/outside", "nowhere", f"TCP:{PORT}", f"UDP:{PORT}"]
    process = subprocess.Popen(["ip", "netns", "exec", cluster.layout.external, *command])
    until("the outside world answers", lambda: f":{PORT}" in listening(cluster))
    try:
        yield cluster
    finally:
        process.kill()
        process.wait()
        cluster.kubectl("delete", "--ignore-not-found", *NAME)
        cluster.settle()


def listening(cluster: Cluster) -> str:
    command = ["ip", "netns", "exec", cluster.layout.external, "ss", "-Hltun"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass
class Caller:
    process: subprocess.Popen[str]

    def round(self) -> tuple[str, str, str]:
        """Whom the outside world sees: over the long connection, over a fresh one, and by a datagram."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        first, second, third = json.loads(self.process.stdout.readline())
        return first, second, third


@contextmanager
def caller(cluster: Cluster, address: str) -> Iterator[Caller]:
    script = str(Path(__file__).with_name("caller.py"))
    command = cluster.command_in(CLIENT, sys.executable, "-S", "-E", script, address, str(PORT))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Caller(process)
    finally:
        process.communicate(timeout=30)


def addresses(cluster: Cluster, family: str) -> tuple[str, str]:
    """The client pod's and its node's."""
    ipv6 = family == "ipv6"
    pod = json.loads(cluster.kubectl("get", "pod", "-n", "shop", "cart-1", "-o", "json"))
    node = json.loads(cluster.kubectl("get", "node", pod["spec"]["nodeName"], "-o", "json"))
    of_pod = [item["ip"] for item in pod["status"]["podIPs"]]
    of_node = [item["address"] for item in node["status"]["addresses"] if item["type"] == "InternalIP"]
    found = [next(text for text in texts if (":" in text) == ipv6) for texts in (of_pod, of_node)]
    return found[0], found[1]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_changes_under_a_running_connection(world: Cluster, family: str) -> None:
    """By the defaults the outside world is near, and sees pods. What is running stays as it began."""
    pod, node = addresses(world, family)
    with caller(world, EXTERNAL[family]) as before:
        assert before.round() == (pod, pod, pod)
        world.kubectl("apply", "-f", "-", text=config("nonMasqueradeCIDRs: []"))
        equal("new connections come from the node", before.round, (pod, node, node))
        with caller(world, EXTERNAL[family]) as after:
            assert after.round() == (node, node, node)
            ranges = json.dumps({"nonMasqueradeCIDRs": [f"{EXTERNAL['ipv4']}/32", f"{EXTERNAL['ipv6']}/128"]})
            patch = json.dumps({"data": {"config": ranges}})
            world.kubectl("patch", *NAME, "--type=merge", "-p", patch)
            equal("new connections come from the pod", after.round, (node, pod, pod))
            assert before.round() == (pod, pod, pod)
            world.kubectl("apply", "-f", "-", text=config("nonMasqueradeCIDRs: [10.0.0.0/8]"))
            equal("new connections come from the node", after.round, (node, node, node))
            world.kubectl("delete", *NAME)
            equal("the defaults hold", after.round, (node, pod, pod))


def test_what_is_not_understood_is_named_and_changes_nothing(world: Cluster) -> None:
    pod, node = addresses(world, "ipv4")
    with caller(world, EXTERNAL["ipv4"]) as calls:
        world.kubectl("apply", "-f", "-", text=config("nonMasqueradeCIDRs: []"))
        equal("new connections come from the node", lambda: calls.round()[1], node)
        world.kubectl("apply", "-f", "-", text=config("nonMasqueradeCIDRs: [172.30.0.1/16]"))
        refused = until("it is refused", lambda: [p for p in problems(world) if p["kind"] == "ConfigMap"])
        assert [(p["namespace"], p["name"]) for p in refused] == [("kube-system", "ip-masq-agent")]
        assert "172.30.0.1/16 has host bits set" in refused[0]["reason"]
        assert calls.round() == (pod, node, node)
        world.kubectl("apply", "-f", "-", text=config("nonMasqueradeCIDRs: [172.30.0.0/16]"))
        equal("new connections come from the pod", calls.round, (pod, pod, pod))
        equal("nobody complains", lambda: [p for p in problems(world) if p["kind"] == "ConfigMap"], [])


def problems(cluster: Cluster) -> list[dict[str, str]]:
    command = [str(Path(sys.executable).with_name("tidegate")), "status", "-o", "json"]
    environment = {**os.environ, "TIDEGATE_PLAYGROUND": cluster.layout.name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found: list[dict[str, str]] = json.loads(done.stdout)["problems"]
    return found
