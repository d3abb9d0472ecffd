"""Services, beside which backend is chosen (test_rows): health checks, addresses that backends see, the command."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from tests.cluster.conftest import Cluster

from playground.layout import EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6
from tidegate.cli.root import tidegate

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

# Prints status and body of what HTTP answers.
ASK = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
connection.request("GET", "/")
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {name: t-node, namespace: shop}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: cache}, ports: [{port: 6379, nodePort: 30379}]}
---
apiVersion: v1
kind: Service
metadata: {name: t-balancer, namespace: shop}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  externalTrafficPolicy: Local
  selector: {app: cache}
  ports: [{port: 6379}]
---
apiVersion: v1
kind: Service
metadata: {name: t-carts, namespace: shop}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  externalTrafficPolicy: Local
  selector: {app: cart}
  ports: [{port: 7070}]
---
apiVersion: v1
kind: Service
metadata: {name: t-elsewhere, namespace: shop}
spec: {clusterIP: 10.96.7.2, internalTrafficPolicy: Local, selector: {app: cart}, ports: [{port: 7070}]}
"""
STATUS = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8:113::1"}]}}})

FAMILIES = pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Iterator[Cluster]:
    cluster.kubectl("apply", "-f", "-", text=MANIFEST)
    cluster.kubectl("patch", "svc", "-n", "shop", "t-balancer", "--subresource=status", "--type=merge", "-p", STATUS)
    cluster.settle()
    yield cluster
    cluster.kubectl("delete", "-f", "-", text=MANIFEST)
    cluster.settle()


def node_address(cluster: Cluster, node: str, ipv6: bool = False) -> str:
    path = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}"
    addresses = cluster.kubectl("get", "node", node, "-o", path).split()
    return next(address for address in addresses if (":" in address) == ipv6)


@FAMILIES
def test_load_balancers_find_out_which_nodes_have_backends(services: Cluster, ipv6: bool) -> None:
    """t-balancer has one on every node; t-carts none on node-3."""
    for name, missing in (("t-balancer", set()), ("t-carts", {"node-3"})):
        port = services.kubectl("get", "svc", "-n", "shop", name, "-o", "jsonpath={.spec.healthCheckNodePort}")
        for node in services.nodes():
            program = [sys.executable, "-S", "-E", "-c", ASK, node_address(services, node, ipv6), port]
            command = ["ip", "netns", "exec", services.layout.external, *program]
            code, body = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1)
            assert json.loads(body) == {
                "service": {"namespace": "shop", "name": name},
                "localEndpoints": 0 if node in missing else 1,
                "serviceProxyHealthy": True,
            }
            assert code == ("503" if node in missing else "200")


@FAMILIES
def test_a_backend_on_the_way_in_sees_the_client_and_others_see_the_node(services: Cluster, ipv6: bool) -> None:
    address = node_address(services, "node-1", ipv6)
    code = (
        "import socket\n"
        f"for _ in range(60):\n s = socket.create_connection(('{address}', 30379), 5)\n"
        " print(*s.recv(200).decode().split()[1:3])\n s.close()"
    )
    command = ["ip", "netns", "exec", services.layout.external, sys.executable, "-S", "-E", "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    outside = EXTERNAL_ADDRESS6 if ipv6 else EXTERNAL_ADDRESS
    assert {tuple(line.split()) for line in lines} == {("node-1", outside), ("node-2", address), ("node-3", address)}


def test_the_command_says_who_is_chosen_and_why_the_others_are_not(
    services: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.cli.cluster.RUN", services.layout.run)
    asked = ["services", "--node", "node-3", "-n", "shop"]
    result = CliRunner().invoke(tidegate, [*asked, "-o", "json"])
    assert result.exit_code == 0, result.output
    listed = [row for row in json.loads(result.output) if row["family"] == "IPv4"]
    assert len(json.loads(result.output)) > len(listed)
    rows = {(row["name"], row["port"], row["traffic_policy"]): row for row in listed}
    elsewhere = rows["t-elsewhere", 7070, "Local"]
    assert (elsewhere["backends"], elsewhere["frontends"]) == ([], ["10.96.7.2:7070"])
    assert sorted(elsewhere["left_out"].values()) == [f"on node-{n}; the traffic policy is Local" for n in (1, 2)]
    assert "Local" in elsewhere["refusal"]
    balancer = rows["t-balancer", 6379, "Local"], rows["t-balancer", 6379, "Cluster"]
    assert [len(row["backends"]) for row in balancer] == [1, 3]
    assert "203.0.113.1:6379 (outside)" in balancer[0]["frontends"]
    assert "203.0.113.1:6379 (in the cluster)" in balancer[1]["frontends"]
    text = CliRunner().invoke(tidegate, asked).output
    assert "none: the traffic policy is Local" in text
    missing = CliRunner().invoke(tidegate, ["services", "--node", "nowhere"])
    assert missing.exit_code == 1
    assert "no agent of node nowhere" in missing.output
