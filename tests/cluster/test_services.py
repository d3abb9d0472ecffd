"""Kinds of frontends and traffic policies, by real connections: from a pod's cgroup (its sockets are translated) and
from outside of any (its packets are)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from click.testing import CliRunner
from tests.cluster.conftest import Cluster, equal
from tests.cluster.frontends import MANIFEST, RANGES_STATUS, STATUS, spoken

from node_agent.loader import read_manifest
from node_agent.maps import Maps
from tidegate.cli import tidegate
from tidegate.records.addresses import unpack_address

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

# Connects COUNT times and prints, as JSON, which pods answered, or how it was refused.
CLIENT = """
import json, socket, sys
address, port, kind, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
answers = set()
for _ in range(count):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM)
    s.settimeout(1.5)
    try:
        s.connect((address, port))
        if kind == "UDP":
            s.send(b"x")
        answers.add(s.recv(200).decode().split()[0])
        assert s.getpeername()[:2] == (address, port), s.getpeername()
    except OSError as error:
        answers.add(type(error).__name__)
    s.close()
print(json.dumps(sorted(answers)))
"""

# Prints status and body of what HTTP answers.
ASK = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
connection.request("GET", "/")
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""

FAMILIES = pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])


CACHE = {"shop/cache-1", "shop/cache-2", "shop/cache-3"}
REFUSED, SILENCE = {"ConnectionRefusedError"}, {"TimeoutError"}


@dataclass(frozen=True)
class Row:
    client: str  # a pod
    address: str  # NODE stands for the client's own node
    port: int
    answers: set[str]
    kind: str = "TCP"


# web-1 is on node-1, with cart-1 and cache-3; web-3 is on node-3, where no cart is.
ROWS = {
    "node port": Row("web-1", "NODE", 30379, CACHE),
    "node port, UDP": Row("web-1", "NODE", 30379, CACHE, "UDP"),
    "another port of the node": Row("web-1", "NODE", 30999, REFUSED),
    "load balancer of the policy Local, from inside": Row("web-1", "203.0.113.1", 6379, CACHE),
    "another port of a load balancer": Row("web-1", "203.0.113.1", 80, REFUSED),
    "another port of a load balancer, UDP": Row("web-1", "203.0.113.1", 80, REFUSED, "UDP"),
    "load balancer, in its ranges": Row("web-1", "203.0.113.3", 6379, CACHE),
    "load balancer, not in its ranges": Row("web-3", "203.0.113.3", 6379, SILENCE),
    "external IP": Row("web-1", "198.51.100.77", 6379, CACHE),
    "external IP, UDP": Row("web-1", "198.51.100.77", 11211, CACHE, "UDP"),
    "internal policy Local": Row("web-1", "10.96.7.1", 6379, {"LOCAL"}),
    "internal policy Local, on another node": Row("web-3", "10.96.7.1", 11211, {"LOCAL"}, "UDP"),
    "internal policy Local, backends elsewhere": Row("web-3", "10.96.7.2", 7070, SILENCE),
    "internal policy Local, backend here": Row("web-1", "10.96.7.2", 7070, {"shop/cart-1"}),
    "internal policy Local, no backends at all": Row("web-3", "10.96.7.3", 7070, REFUSED),
    "another port of a ClusterIP": Row("web-1", "10.96.7.1", 81, REFUSED),
    "another port of a ClusterIP, UDP": Row("web-1", "10.96.7.1", 81, REFUSED, "UDP"),
}


@pytest.fixture(scope="module")
def services(cluster: Cluster) -> Iterator[Cluster]:
    cluster.kubectl("apply", "-f", "-", text=MANIFEST)
    cluster.kubectl("patch", "svc", "-n", "shop", "t-balancer", "--subresource=status", "--type=merge", "-p", STATUS)
    cluster.kubectl(
        "patch", "svc", "-n", "shop", "t-ranges", "--subresource=status", "--type=merge", "-p", RANGES_STATUS
    )
    cluster.kubectl("wait", "--for=condition=Ready", "-n", "shop", "pod/t-host", "--timeout=60s")
    cluster.settle()
    yield cluster
    cluster.kubectl("delete", "-f", "-", text=MANIFEST)
    cluster.settle()


def node_of(cluster: Cluster, pod: str) -> str:
    return cluster.kubectl("get", "pod", "-n", "shop", pod, "-o", "jsonpath={.spec.nodeName}")


def node_address(cluster: Cluster, node: str, ipv6: bool = False) -> str:
    path = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}"
    addresses = cluster.kubectl("get", "node", node, "-o", path).split()
    return next(address for address in addresses if (":" in address) == ipv6)


def local_cache(cluster: Cluster, node: str) -> set[str]:
    pods = cluster.objects("get", "pods", "-n", "shop", "-l", "app=cache")
    return {f"shop/{pod['metadata']['name']}" for pod in pods if pod["spec"]["nodeName"] == node}


@FAMILIES
@pytest.mark.parametrize("hooked", [True, False], ids=["sockets", "packets"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_frontends(services: Cluster, row: Row, hooked: bool, ipv6: bool) -> None:
    node = node_of(services, row.client)
    address = node_address(services, node, ipv6) if row.address == "NODE" else spoken(row.address, ipv6)
    answers = local_cache(services, node) if row.answers == {"LOCAL"} else row.answers
    count = "1" if answers == SILENCE else "40"
    program = [sys.executable, "-S", "-E", "-c", CLIENT, address, str(row.port), row.kind, count]
    if hooked:
        command = services.command_in(f"shop/{row.client}", *program)
    else:
        command = ["ip", "netns", "exec", services.layout.pod_namespace("shop", row.client), *program]

    def seen() -> set[str]:
        return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    equal("who answers", seen, answers)


def from_outside(cluster: Cluster, address: str, port: int, kind: str, count: int = 40) -> set[str]:
    """What clients outside the cluster get: pods, or refusals."""
    program = [sys.executable, "-S", "-E", "-c", CLIENT, address, str(port), kind, str(count)]
    command = ["ip", "netns", "exec", cluster.layout.external, *program]
    return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


@contextmanager
def routed(cluster: Cluster, address: str, node: str) -> Iterator[None]:
    """The outside world reaches the address through the node, as a router or a load balancer would lead it there."""
    via = node_address(cluster, node, ":" in address)
    external = ["ip", "-n", cluster.layout.external, "route"]
    subprocess.run([*external, "replace", address, "via", via], check=True)
    try:
        yield
    finally:
        subprocess.run([*external, "del", address], check=True)


@FAMILIES
@pytest.mark.parametrize("kind", ["TCP", "UDP"])
@pytest.mark.parametrize("node", ["node-1", "node-2", "node-3"])
def test_node_ports_from_outside(services: Cluster, node: str, kind: str, ipv6: bool) -> None:
    """Backends on every node, whichever is asked."""
    address = node_address(services, node, ipv6)
    equal("who answers", lambda: from_outside(services, address, 30379, kind), CACHE)


@dataclass(frozen=True)
class Outside:
    address: str
    port: int
    node: str  # the way in
    answers: set[str]
    kind: str = "TCP"


OUTSIDE = {
    "load balancer of the policy Local": Outside("203.0.113.1", 6379, "node-1", {"LOCAL"}),
    "load balancer of the policy Local, UDP": Outside("203.0.113.1", 11211, "node-2", {"LOCAL"}, "UDP"),
    "another port of a load balancer": Outside("203.0.113.1", 81, "node-1", REFUSED),
    "another port of a load balancer, UDP": Outside("203.0.113.1", 81, "node-1", REFUSED, "UDP"),
    "load balancer with ranges": Outside("203.0.113.3", 6379, "node-3", CACHE),
    "external IP": Outside("198.51.100.77", 6379, "node-2", CACHE),
    "external IP, UDP": Outside("198.51.100.77", 11211, "node-2", CACHE, "UDP"),
    "ClusterIP of the policy Local": Outside("10.96.7.1", 6379, "node-3", {"LOCAL"}),
    "ClusterIP of the policy Local, backends elsewhere": Outside("10.96.7.2", 7070, "node-3", SILENCE),
    "ClusterIP without backends": Outside("10.96.7.3", 7070, "node-3", REFUSED),
}


@FAMILIES
@pytest.mark.parametrize("row", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_from_outside(services: Cluster, row: Outside, ipv6: bool) -> None:
    answers = local_cache(services, row.node) if row.answers == {"LOCAL"} else row.answers
    count = 1 if answers == SILENCE else 40
    address = spoken(row.address, ipv6)
    with routed(services, address, row.node):
        equal("who answers", lambda: from_outside(services, address, row.port, row.kind, count), answers)


@FAMILIES
@pytest.mark.parametrize("hooked", [True, False], ids=["sockets", "packets"])
def test_clients_stay_with_their_backend(services: Cluster, hooked: bool, ipv6: bool) -> None:
    program = [sys.executable, "-S", "-E", "-c", CLIENT, spoken("10.96.7.5", ipv6), "6379", "TCP", "40"]
    outside = ["ip", "netns", "exec", services.layout.pod_namespace("shop", "web-1"), *program]
    command = services.command_in("shop/web-1", *program) if hooked else outside
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(seen) == 1
    assert set(seen) <= CACHE


@FAMILIES
def test_clients_outside_stay_with_their_backend(services: Cluster, ipv6: bool) -> None:
    seen = from_outside(services, node_address(services, "node-2", ipv6), 30380, "TCP")
    assert len(seen) == 1
    assert seen <= CACHE


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
@pytest.mark.parametrize("kind", ["TCP", "UDP"])
def test_host_ports(services: Cluster, kind: str, ipv6: bool) -> None:
    """From outside, from a pod elsewhere, and from a pod of the same node; on that node only."""
    here, elsewhere = node_address(services, "node-2", ipv6), node_address(services, "node-1", ipv6)
    assert from_outside(services, here, 18080, kind, 3) == {"shop/t-host"}
    assert from_outside(services, elsewhere, 18080, kind, 1) == REFUSED
    for client in ("web-1", "web-2"):
        program = [sys.executable, "-S", "-E", "-c", CLIENT, here, "18080", kind, "3"]
        for command in (
            services.command_in(f"shop/{client}", *program),
            ["ip", "netns", "exec", services.layout.pod_namespace("shop", client), *program],
        ):
            seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert json.loads(seen) == ["shop/t-host"]


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
    outside = spoken("172.30.0.250", ipv6)
    assert {tuple(line.split()) for line in lines} == {("node-1", outside), ("node-2", address), ("node-3", address)}


@FAMILIES
def test_a_pod_asks_the_port_of_another_node(services: Cluster, ipv6: bool) -> None:
    """Its own node does not choose for the other: the packet arrives there from a pod."""
    for node in ("node-2", "node-3"):
        program = [sys.executable, "-S", "-E", "-c", CLIENT, node_address(services, node, ipv6), "30379", "TCP", "40"]
        command = services.command_in("shop/web-1", *program)
        seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert set(json.loads(seen)) == CACHE


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


def programmed(cluster: Cluster, node: str) -> set[str]:
    """The addresses of all frontends in the node's kernel."""
    manifest = read_manifest(cluster.layout.run / node)
    assert manifest is not None
    maps = Maps({"frontends": manifest.maps["frontends"]})
    try:
        return {unpack_address(key[:16]) for key in maps["frontends"].items()}
    finally:
        maps.close()


def test_what_is_not_ours_is_left_alone(services: Cluster) -> None:
    """A Service of another proxy, and a load balancer's address that all clients must go through (ipMode Proxy)."""
    for node in services.nodes():
        found = programmed(services, node)
        for ipv6 in (False, True):
            ours = {spoken(address, ipv6) for address in ("10.96.7.1", "203.0.113.1", "198.51.100.77")}
            assert ours | {node_address(services, node, ipv6)} <= found
            assert spoken("203.0.113.2", ipv6) not in found
        assert not {"10.96.7.4", "127.0.0.1", "::1"} & found
