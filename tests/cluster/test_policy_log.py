"""The policy log in the playground: kubectl applies the object, pods connect, and each node's file has the records."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.conftest import Cluster, until

from node_agent.policylog import bits
from tidegate.records import Logging

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

Row = dict[str, Any]

CLIENT, SERVER = "shop/web-1", "shop/cart-1"
NAMES = [*(("-n", "shop", "networkpolicy", name) for name in ("log-a", "log-b")), ("networklogging", "default")]
POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: log-a, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 7070}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: log-b, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  ingress:
  - from: [{ipBlock: {cidr: 0.0.0.0/0}}]
    ports: [{port: 7070}]
"""


def networklogging(allow: Row, deny: Row) -> str:
    head = {"apiVersion": "networking.gke.io/v1alpha1", "kind": "NetworkLogging", "metadata": {"name": "default"}}
    return json.dumps({**head, "spec": {"cluster": {"allow": allow, "deny": deny}}})


@pytest.fixture
def world(cluster: Cluster) -> Iterator[Cluster]:
    cluster.kubectl("apply", "-f", "-", text=POLICIES)
    cluster.settle()
    yield cluster
    for name in NAMES:
        cluster.kubectl("delete", "--ignore-not-found", *name)
    cluster.kubectl("annotate", "namespace", "shop", "policy.network.gke.io/enable-deny-logging-")
    cluster.settle()


def pod(cluster: Cluster, where: str) -> Row:
    namespace, name = where.split("/")
    found: Row = json.loads(cluster.kubectl("get", "-n", namespace, "pod", name, "-o", "json"))
    return found


def ask(cluster: Cluster, allow: Row, deny: Row) -> None:
    """Applies the object, and waits until the servers' node has it."""
    cluster.kubectl("apply", "-f", "-", text=networklogging(allow, deny))
    wanted = Logging(
        allowed=allow.get("log", False),
        allowed_delegated=allow.get("delegate", False),
        denied=deny.get("log", False),
        denied_delegated=deny.get("delegate", False),
    )
    node = pod(cluster, SERVER)["spec"]["nodeName"]
    until("the node knows what to log", lambda: cluster.status(node)["policy_log"] == bits(wanted))
    cluster.settle()


def records(cluster: Cluster, node: str) -> list[Row]:
    path = cluster.layout.node_state(node) / "policy_action.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def about(cluster: Cluster, disposition: str, port: int) -> list[Row]:
    """What the servers' node has logged of that port so far."""
    found = records(cluster, pod(cluster, SERVER)["spec"]["nodeName"])
    return [row for row in found if row.get("disposition") == disposition and row["connection"]["dest_port"] == port]


def connect(cluster: Cluster, port: int) -> int:
    """The source port of a connection."""
    script = (
        "import socket,sys; c=socket.create_connection((sys.argv[1], int(sys.argv[2])), 20); print(c.getsockname()[1])"
    )
    address = pod(cluster, SERVER)["status"]["podIP"]
    return int(cluster.run_in(CLIENT, sys.executable, "-S", "-E", "-c", script, address, str(port)))


def send(cluster: Cluster, port: int, count: int) -> None:
    """Datagrams, each from a port of its own."""
    script = (
        "import socket,sys\n"
        "for _ in range(int(sys.argv[3])):\n"
        "    s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))\n"
        "    s.close()"
    )
    address = pod(cluster, SERVER)["status"]["podIP"]
    cluster.run_in(CLIENT, sys.executable, "-S", "-E", "-c", script, address, str(port), str(count))


def test_what_is_allowed_and_denied(world: Cluster) -> None:
    connect(world, 7070)
    send(world, 4000, 3)
    ask(world, {"log": True}, {"log": True})
    source, server, client = connect(world, 7070), pod(world, SERVER), pod(world, CLIENT)
    (row,) = until("the connection is logged", lambda: about(world, "allow", 7070))
    assert row["connection"] == {
        "src_ip": client["status"]["podIP"],
        "src_port": source,
        "dest_ip": server["status"]["podIP"],
        "dest_port": 7070,
        "protocol": "tcp",
        "direction": "ingress",
    }
    assert row["policies"] == [
        {"kind": "NetworkPolicy", "name": "log-a", "namespace": "shop"},
        {"kind": "NetworkPolicy", "name": "log-b", "namespace": "shop"},
    ]
    for end, name in (("src", "web-1"), ("dest", "cart-1")):
        where = {"pod_name": name, "pod_namespace": "shop", "namespace": "shop"}
        assert row[end] == {**where, "workload_kind": "Pod", "workload_name": name}
    assert (row["count"], row["node_name"]) == (1, server["spec"]["nodeName"])
    assert row["timestamp"][:10] == time.strftime("%Y-%m-%d", time.gmtime())

    send(world, 4001, 200)
    until("the packets are logged", lambda: sum(row["count"] for row in about(world, "deny", 4001)) == 200)
    rows = about(world, "deny", 4001)
    assert len(rows) <= 2  # the end of a round may lie between
    assert rows[0]["connection"] == {
        "src_ip": client["status"]["podIP"],
        "dest_ip": server["status"]["podIP"],
        "dest_port": 4001,
        "protocol": "udp",
        "direction": "ingress",
    }
    assert "policies" not in rows[0]
    # From before it was asked for there is nothing.
    assert about(world, "deny", 4000) == []

    ask(world, {"log": False}, {"log": False})
    before = len(records(world, server["spec"]["nodeName"]))
    connect(world, 7070)
    ask(world, {"log": False}, {"log": True})
    send(world, 4002, 1)
    until("what came later is logged", lambda: about(world, "deny", 4002))
    assert len(records(world, server["spec"]["nodeName"])) == before + 1


def test_what_annotations_ask_for(world: Cluster) -> None:
    ask(world, {"log": True, "delegate": True}, {"log": True, "delegate": True})
    known = len(about(world, "allow", 7070))
    connect(world, 7070)
    send(world, 4010, 5)
    world.kubectl("annotate", "-n", "shop", "networkpolicy", "log-b", "policy.network.gke.io/enable-logging=true")
    world.kubectl("annotate", "namespace", "shop", "policy.network.gke.io/enable-deny-logging=true")

    def logged() -> bool:
        connect(world, 7070)
        return len(about(world, "allow", 7070)) > known

    until("connections are logged", logged)

    def counted() -> bool:
        send(world, 4011, 1)
        return bool(about(world, "deny", 4011))

    until("packets are logged", counted)
    # What came before the annotations is not there; and the record names all policies that allow.
    assert about(world, "deny", 4010) == []
    assert [one["name"] for one in about(world, "allow", 7070)[known]["policies"]] == ["log-a", "log-b"]
