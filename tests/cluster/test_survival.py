"""Every process killed in turn, under a running TCP stream and a request loop: nothing is lost."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import Cluster, equal, until

from node_agent.table import ORDER
from playground.demo.command import shop

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

NOTHING_LOST = "no packet is lost"
KILLED = {
    "an agent is killed": ("node-1", "node-2", "node-3"),
    "a sync service is killed": ("endpoint-sync-0", "endpoint-sync-1", "policy-sync-0", "policy-sync-1"),
    "etcd is killed": ("etcd",),
    "the API server is killed": ("apiserver",),
}
PROCESSES = [
    pytest.param(process, marks=pytest.mark.fault(fault, NOTHING_LOST), id=process)
    for fault, processes in KILLED.items()
    for process in processes
]
Saw = Callable[..., None]

# cache answers on TCP 6379 and UDP 11211, and has a pod on every node.
CLIENT, SERVICE, TCP, UDP = "shop/cart-1", "cache", "6379", "11211"


@pytest.fixture(scope="module")
def policed(cluster: Cluster) -> Iterator[Cluster]:
    cluster.kubectl("apply", "-f", str(shop() / "policies.yaml"))
    cluster.settle()
    end_what_is_left(cluster)
    yield cluster
    cluster.kubectl("delete", "-f", str(shop() / "policies.yaml"))
    cluster.settle()


UNANSWERED = [word for state in ("fin-wait-1", "last-ack", "closing", "syn-sent") for word in ("state", state)]


def end_what_is_left(cluster: Cluster) -> None:
    """Sockets of earlier tests that nobody answers: what they send again and again would count as drops here."""
    for space in filter(cluster.layout.owns, (path.name for path in Path("/run/netns").iterdir())):
        subprocess.run(["ip", "netns", "exec", space, "ss", "-K", "-t", *UNANSWERED], check=True, capture_output=True)


LATE = """
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, labels: {app: cart, tier: logic, since: backup}}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: responder, image: tidegate/responder}
"""


@contextmanager
def traffic(cluster: Cluster, script: Path, client: str = CLIENT) -> Iterator[dict[str, Any]]:
    """Traffic while the context is open; what it saw, and what the nodes dropped, is in the dictionary afterwards."""
    drops = {node: cluster.status(node)["drops"] for node in cluster.nodes()}
    vip = cluster.kubectl("get", "svc", "-n", "shop", SERVICE, "-o", "jsonpath={.spec.clusterIP}")
    command = cluster.command_in(client, sys.executable, "-S", "-E", str(script), vip, TCP, UDP)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "running"
    seen: dict[str, Any] = {}
    try:
        yield seen
    finally:
        process.stdin.close()
        seen.update(json.loads(process.stdout.readline() or '{"ended": "without a word"}'))
        process.wait(10)
        process.stdout.close()
        seen["drops"] = {
            f"{node} {reason}": count["packets"] - drops[node].get(reason, {"packets": 0})["packets"]
            for node in cluster.nodes()
            for reason, count in cluster.status(node)["drops"].items()
            if count != drops[node].get(reason)
        }


def entries(cluster: Cluster) -> dict[str, dict[str, int]]:
    """Node → map of the agent → entries. Without endpoints: the kernel gives new devices a link-local address when it
    likes."""
    nodes = {node: agents_maps(cluster.status(node)) for node in cluster.nodes()}
    return {node: {name: n for name, n in maps.items() if name != "endpoints"} for node, maps in nodes.items()}


def agents_maps(status: dict[str, Any]) -> dict[str, int]:
    return {name: status["maps"][name]["entries"] for name in ORDER}


def etcdctl(cluster: Cluster, *arguments: str) -> str:
    """Empty where etcd does not answer."""
    command = ["etcdctl", f"--endpoints={cluster.register['etcd']}", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0 or arguments[0] == "get", done.stderr
    return done.stdout


def nothing_lost(seen: dict[str, Any]) -> None:
    assert seen["lines"] > 0, seen
    assert {name: seen[name] for name in ("lost_connections", "lost_datagrams", "retransmits", "drops")} == {
        "lost_connections": 0,
        "lost_datagrams": 0,
        "retransmits": 0,
        "drops": {},
    }, seen


def counts(seen: dict[str, Any]) -> str:
    """What the traffic came to, in words."""
    answered = seen["lines"] + seen["connections"] + seen["datagrams"]
    lost = seen["lost_connections"] + seen["lost_datagrams"]
    return f"{answered} of {answered + lost} requests answered, {seen['retransmits']} segments lost"


@pytest.mark.parametrize("process", PROCESSES)
def test_killed_and_nothing_is_lost(policed: Cluster, traffic_script: Path, process: str, saw: Saw) -> None:
    before = policed.pid(process)
    with traffic(policed, traffic_script) as seen:
        subprocess.run(["kill", "-9", str(before)], check=True)
        until(f"{process} runs again", lambda: policed.running(process, before))
        until("the API server answers", lambda: "gitVersion" in policed.kubectl("get", "--raw=/version", check=False))
        until("all agents are ready", lambda: all(policed.status(node).get("ready") for node in policed.nodes()))
        policed.settle()
    saw(f"{process}: {counts(seen)}")
    nothing_lost(seen)


def revisions(cluster: Cluster) -> dict[str, int]:
    """Record → revision of its last change; without those that tell of writers."""
    found = json.loads(etcdctl(cluster, "get", "--prefix", "/tidegate/playground/v1/", "-w", "json"))
    keys = {base64.b64decode(item["key"]).decode(): item["mod_revision"] for item in found["kvs"]}
    return {key: revision for key, revision in keys.items() if "/meta/" not in key}


def test_an_agent_that_comes_back_writes_nothing(policed: Cluster) -> None:
    # Identities that earlier tests left unused go when their time has come, also while the agent is away: once more.
    for _ in range(5):
        policed.settle()
        records, before = revisions(policed), policed.status("node-2")
        pid = policed.pid("node-2")
        subprocess.run(["kill", "-9", str(pid)], check=True)
        until("node-2 runs again", partial(policed.running, "node-2", pid))
        until("node-2 is ready", lambda: policed.status("node-2").get("ready"))
        policed.settle()
        after = policed.status("node-2")
        # The kernel gives new devices a link-local address when it likes.
        if revisions(policed) == records and after["maps"]["endpoints"] == before["maps"]["endpoints"]:
            break
    else:
        pytest.fail("the records never stood still")
    assert after["map_writes"] == {}
    assert after["policy_generation"] == before["policy_generation"]
    assert after["repairs"] == 0
    assert agents_maps(after) == agents_maps(before)


@pytest.mark.fault("a policy changes while an agent is away", "the agent makes up for it with its start")
def test_what_changed_while_an_agent_was_away_is_made_up_for(policed: Cluster, saw: Saw) -> None:
    pid = policed.pid("node-1")
    subprocess.run(["kill", "-9", str(pid)], check=True)
    policed.kubectl("delete", "netpol", "-n", "shop", "web-for-everybody")
    until("node-1 runs again", lambda: policed.running("node-1", pid))
    until("node-1 is ready", lambda: policed.status("node-1").get("ready"))

    def reaching() -> set[str]:
        matrix, expected, wanted = policed.measure()
        (web,) = [target for target in wanted if target.service == "shop/web"]
        return {name for name in expected.clients if name != "web" and matrix[name, web.words] is not None}

    equal("who reaches the web", reaching, {"metrics"})
    saw("whom the policy let in is kept out")
    policed.kubectl("apply", "-f", str(shop() / "policies.yaml"))
    policed.settle()


@pytest.mark.fault("etcd is wiped", f"{NOTHING_LOST}; all of it is written again")
def test_a_wiped_etcd_is_written_anew_and_traffic_goes_on(policed: Cluster, traffic_script: Path, saw: Saw) -> None:
    policed.settle()
    before = entries(policed)
    with traffic(policed, traffic_script) as seen:
        etcdctl(policed, "del", "--prefix", "/tidegate/")
        marks = "/tidegate/playground/v1/meta/synced/"
        until(
            "both writers are done again",
            lambda: len(etcdctl(policed, "get", "--prefix", "--keys-only", marks).split()) == 2,
        )
        policed.settle()
    saw(counts(seen))
    nothing_lost(seen)
    assert entries(policed) == before


@pytest.mark.fault("etcd is restored from an older snapshot", f"{NOTHING_LOST}, also of pods that it does not know")
def test_an_etcd_restored_from_an_older_copy_costs_nothing(policed: Cluster, traffic_script: Path, saw: Saw) -> None:
    """The pod that sends was created after the copy was made: the copy knows nothing of it."""
    register = policed.register
    home = policed.layout.home / "etcd"
    copy, restored = home / "copy.db", home / "restored"
    policed.settle()
    etcdctl(policed, "snapshot", "save", str(copy))
    policed.kubectl("apply", "-f", "-", text=LATE)
    policed.kubectl("wait", "--for=condition=Ready", "-n", "shop", "pod/late", "--timeout=60s")
    policed.settle()
    before = entries(policed)
    with traffic(policed, traffic_script, "shop/late") as seen:
        supervisor, etcd = register["processes"]["supervisor"]["pid"], policed.pid("etcd")
        os.kill(supervisor, signal.SIGSTOP)  # so that it does not start etcd again before the copy is in its place
        try:
            os.kill(etcd, signal.SIGKILL)
            etcdctl(policed, "snapshot", "restore", str(copy), f"--data-dir={restored}")
            shutil.rmtree(home / "data")
            restored.rename(home / "data")
        finally:
            os.kill(supervisor, signal.SIGCONT)
        until("etcd runs again", lambda: policed.running("etcd", etcd))
        key = "/tidegate/playground/v1/endpoints/shop/late"
        until("the pod is in etcd again", lambda: etcdctl(policed, "get", "--keys-only", key).strip())
        until("all agents are ready", lambda: all(policed.status(node).get("ready") for node in policed.nodes()))
        policed.settle()
    saw(counts(seen))
    nothing_lost(seen)
    assert entries(policed) == before
    policed.kubectl("delete", "pod", "-n", "shop", "late")
