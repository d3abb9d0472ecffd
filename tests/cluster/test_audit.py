"""Audit in the playground: what policies deny passes while it lasts, is told where it shows, and is cut at its end."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import Cluster, start, stop, until

from policy_sync.annotations import AUDIT

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

Row = dict[str, Any]

CLIENT, SERVER, PORT = "shop/web-1", "shop/cart-1", 7070
CLOSED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: audit-closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: cart}}}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}
spec: {{containers: [{{name: responder, image: tidegate/responder, ports: [{{containerPort: 7070}}]}}]}}
---
"""
# Connects, and reads the responder's line for each byte that it is given; tells of each whether it came.
TALK = """
import socket, sys
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
stream.settimeout(float(sys.argv[3]))
lines = stream.makefile("rb")
print(lines.readline().decode().split()[0], flush=True)
for _ in sys.stdin:
    stream.sendall(b"next\\n")
    try:
        print(lines.readline().decode().split()[0], flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
        break
"""
ASK = "import socket, sys; assert socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).recv(99)"
QUIET = "1.5"  # seconds after which what does not come has been cut


def address(cluster: Cluster, pod: str = SERVER) -> str:
    namespace, name = pod.split("/")
    return cluster.kubectl("get", "-n", namespace, "pod", name, "-o", "jsonpath={.status.podIP}")


def node(cluster: Cluster, pod: str = SERVER) -> str:
    namespace, name = pod.split("/")
    return cluster.kubectl("get", "-n", namespace, "pod", name, "-o", "jsonpath={.spec.nodeName}")


def reaches(cluster: Cluster) -> bool:
    """By a new connection."""
    command = cluster.command_in(CLIENT, sys.executable, "-S", "-E", "-c", ASK, address(cluster), str(PORT))
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def talking(cluster: Cluster) -> Iterator["subprocess.Popen[str]"]:
    arguments = [sys.executable, "-S", "-E", "-c", TALK, address(cluster), str(PORT), QUIET]
    command = cluster.command_in(CLIENT, *arguments)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: "subprocess.Popen[str]") -> str:
    assert process.stdin is not None
    process.stdin.write("next\n")
    process.stdin.flush()
    return said(process)


def records(cluster: Cluster) -> list[Row]:
    """Of the policy log, what is about the server's port."""
    path = cluster.layout.node_state(node(cluster)) / "policy_action.log"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row.get("connection", {}).get("dest_port") == PORT]


def tidegate(cluster: Cluster, *arguments: str) -> Row:
    command = [str(Path(sys.executable).with_name("tidegate")), *arguments, "-o", "json"]
    environment = {**os.environ, "TIDEGATE_PLAYGROUND": cluster.layout.name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found: Row = json.loads(done.stdout)
    return found


def explained(cluster: Cluster) -> tuple[bool, bool]:
    """Whether it is allowed, and whether it passes."""
    found = tidegate(cluster, "policy", "explain", f"--from={CLIENT}", f"--to={SERVER}", f"--port={PORT}")
    return found["allowed"], found["passes"]


def audits(cluster: Cluster, on: bool) -> None:
    cluster.kubectl("annotate", "namespace", "shop", f"{AUDIT}=true" if on else f"{AUDIT}-")
    wanted = ["shop"] if on else []
    until("the node knows", lambda: cluster.status(node(cluster))["audit"]["namespaces"] == wanted)
    cluster.settle()


@pytest.fixture
def closed(cluster: Cluster) -> Iterator[Cluster]:
    cluster.kubectl("apply", "-f", "-", text=CLOSED)
    cluster.settle()
    yield cluster
    cluster.kubectl("delete", "--ignore-not-found", "-n", "shop", "networkpolicy", "audit-closed")
    cluster.kubectl("annotate", "namespace", "shop", f"{AUDIT}-")
    cluster.settle()


def test_a_namespace_in_audit(closed: Cluster) -> None:
    until("the policy is there", lambda: not reaches(closed))
    known, passed = len(records(closed)), closed.status(node(closed))["audit"]["verdicts"].get("AUDITED_INGRESS", 0)
    assert explained(closed) == (False, False)
    audits(closed, True)
    assert explained(closed) == (False, True)
    with talking(closed) as process:
        assert said(process) == SERVER
        assert ask(process) == SERVER
        # Another policy's change: the connection is judged anew, and passes again.
        closed.kubectl("label", "namespace", "shop", "audit-test=1")
        closed.settle()
        assert ask(process) == SERVER
        closed.kubectl("label", "namespace", "shop", "audit-test-")
        assert tidegate(closed, "status")["audit"] == ["shop"]
        assert closed.status(node(closed))["audit"]["verdicts"]["AUDITED_INGRESS"] > passed
        rows = until("it is logged", lambda: records(closed)[known:])
        assert {row["disposition"] for row in rows} == {"audit"}
        assert rows[0]["connection"] == {
            "src_ip": address(closed, CLIENT),
            "dest_ip": address(closed),
            "dest_port": PORT,
            "protocol": "tcp",
            "direction": "ingress",
        }
        audits(closed, False)
        assert ask(process) == "TimeoutError"
    assert not reaches(closed)
    assert explained(closed) == (False, False)
    assert tidegate(closed, "status")["audit"] == []


def test_a_node_in_audit() -> None:
    """By the agent's environment."""
    cluster = start("u", "--nodes", "1", environment={"TIDEGATE_POLICY_AUDIT": "true"})
    try:
        cluster.kubectl("create", "namespace", "shop")
        pods = "".join(POD.format(name=f"{app}-1", app=app) for app in ("web", "cart"))
        cluster.kubectl("apply", "-f", "-", text=f"{pods}{CLOSED}")
        until("the pods are there", lambda: len(cluster.status("node-1")["endpoints"]) == 2)
        cluster.settle()
        rows = until("it passes, and is logged", lambda: reaches(cluster) and records(cluster))
        assert {row["disposition"] for row in rows} == {"audit"}
        assert cluster.status("node-1")["audit"]["node"]
        assert explained(cluster) == (False, True)
        assert cluster.status("node-1")["drops"] == {}
    finally:
        stop(cluster)
