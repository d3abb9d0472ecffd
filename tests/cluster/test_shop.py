"""The shop: who reaches whom, as its documentation says, by every way that programs can be attached."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.cluster.conftest import Cluster, equal, start, stop, until

from playground.demo.command import shop
from playground.demo.reach import differences
from playground.layout import Layout
from playground.processes import etcdctl

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]


def judge(cluster: Cluster, ipv6: bool = False) -> None:
    """Everybody reaches everybody; then the policies; then everybody again."""
    as_documented(cluster, False, ipv6)
    cluster.kubectl("apply", "-f", str(shop() / "policies.yaml"))
    as_documented(cluster, True, ipv6)
    cluster.kubectl("delete", "-f", str(shop() / "policies.yaml"))
    as_documented(cluster, False, ipv6)


def as_documented(cluster: Cluster, policies: bool, ipv6: bool) -> None:
    """What was just asked for may still be on its way to the maps: measured until it is there."""

    def found() -> list[str]:
        cluster.settle()
        matrix, expected, wanted = cluster.measure(ipv6)
        return differences(matrix, expected, wanted, policies)

    equal("who reaches whom", found, [])


def test_the_shop_is_reached_as_documented(cluster: Cluster) -> None:
    assert {cluster.status(node)["attached_by"] for node in cluster.nodes()} <= {"tcx", "clsact"}
    judge(cluster)


def test_the_shop_over_ipv6(cluster: Cluster) -> None:
    cluster.set_families("PreferDualStack")
    try:
        judge(cluster, ipv6=True)
    finally:
        cluster.set_families("SingleStack")
    services = cluster.objects("get", "services", "-n", "shop")
    assert {len(service["spec"]["clusterIPs"]) for service in services} == {1}


def test_the_shop_with_the_older_hooks() -> None:
    cluster = start("c", "--nodes", "2", "--attach", "clsact")
    try:
        assert {cluster.status(node)["attached_by"] for node in cluster.nodes()} == {"clsact"}
        cluster.apply_shop()
        judge(cluster)
    finally:
        stop(cluster)


def test_the_shop_with_etcd_as_on_a_cluster() -> None:
    """Three members, TLS, a role for each service; one member after the other dies and comes back."""
    cluster = start("e", "--nodes", "2", "--secure")
    try:
        register = cluster.register
        asked = partial(
            subprocess.run, env=os.environ | {"ETCDCTL_API": "3"}, capture_output=True, text=True, check=False
        )
        put = ["put", "/tidegate/playground/v1/nodes/x", "1"]
        files = {name: path.replace("root", "node-agent") for name, path in register["etcd_files"].items()}
        assert "permission denied" in asked([*etcdctl({**register, "etcd_files": files}), *put]).stderr
        assert asked([*etcdctl({**register, "etcd_files": {}}), *put]).returncode != 0
        everything = asked([*etcdctl(register), "get", "--prefix", "--keys-only", "/tidegate/"]).stdout
        assert "/tidegate/playground/v1/nodes/node-1" in everything.split()
        cluster.apply_shop()
        judge(cluster)
        for member in ("etcd-0", "etcd-1", "etcd-2"):
            dead = cluster.pid(member)
            os.kill(dead, signal.SIGKILL)
            cluster.kubectl("apply", "-f", str(shop() / "policies.yaml"))
            as_documented(cluster, True, ipv6=False)
            cluster.kubectl("delete", "-f", str(shop() / "policies.yaml"))
            as_documented(cluster, False, ipv6=False)
            until(f"{member} is back", lambda m=member, d=dead: cluster.pid(m) != d)  # type: ignore[misc]
    finally:
        stop(cluster)


@pytest.mark.apiserver
def test_the_shop_with_a_real_api_server() -> None:
    environment = {"KUBEBUILDER_ASSETS": os.environ["KUBEBUILDER_ASSETS"]}
    cluster = start("k", "--nodes", "2", "--dual-stack", environment=environment)
    try:
        assert (cluster.layout.home / "kube-apiserver").is_dir()
        cluster.apply_shop()
        judge(cluster)
        cluster.set_families("RequireDualStack")
        judge(cluster, ipv6=True)
        cluster.set_families("SingleStack")
        as_documented(cluster, False, ipv6=False)
    finally:
        stop(cluster)


def test_a_ready_node_has_a_cni_configuration_for_its_pod_cidrs(cluster: Cluster) -> None:
    for node in cluster.objects("get", "nodes"):
        written = cluster.layout.node_state(node["metadata"]["name"]) / "net.d" / "05-tidegate.conflist"
        [plugin] = json.loads(written.read_text())["plugins"]
        assert (plugin["type"], plugin["mtu"]) == ("ptp", 1500)
        assert [block["subnet"] for [block] in plugin["ipam"]["ranges"]] == node["spec"]["podCIDRs"]


def test_a_responder_says_who_it_is(cluster: Cluster) -> None:
    (pod,) = [p for p in cluster.objects("get", "pods", "-n", "shop") if p["metadata"]["name"] == "cart-1"]
    address, node = pod["status"]["podIP"], pod["spec"]["nodeName"]
    namespace = cluster.layout.external
    code = f"import socket; print(socket.create_connection(('{address}', 7070), 5).recv(200).decode())"
    answer = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["shop/cart-1", node, "172.30.0.250", "TCP", "7070"]


def test_a_cluster_ip_is_served_on_the_veth_too(cluster: Cluster) -> None:
    """`ip netns exec` leaves the caller's cgroup: no socket program sees the connection."""
    vip = cluster.kubectl("get", "svc", "-n", "shop", "cart", "-o", "jsonpath={.spec.clusterIP}")
    namespace = cluster.layout.pod_namespace("shop", "web-1")
    code = (
        "import socket\n"
        f"for _ in range(40):\n c = socket.create_connection(('{vip}', 7070), 5)\n"
        " print(c.recv(200).decode().split()[0], c.getpeername()[0])\n c.close()"
    )
    answer = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    seen = {tuple(line.split()) for line in answer.stdout.splitlines()}
    assert seen == {("shop/cart-1", vip), ("shop/cart-2", vip)}


def test_pods_reach_each_other_by_ping_with_the_ttl_that_the_kernel_would_leave(cluster: Cluster) -> None:
    pods = cluster.objects("get", "pods", "-n", "shop")
    web = next(p for p in pods if p["metadata"]["name"] == "web-1")
    for pod in pods:
        if pod["metadata"]["name"] == "web-1":
            continue
        ttl = 63 if pod["spec"]["nodeName"] == web["spec"]["nodeName"] else 62
        for address in pod["status"]["podIPs"]:
            answer = cluster.run_in("shop/web-1", "ping", "-c", "1", "-W", "5", address["ip"])
            assert f"ttl={ttl} " in answer, pod["metadata"]["name"]


ISOLATED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: t-pods-only, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {}}]}]
  egress: [{to: [{podSelector: {}}]}]
"""


def test_ipv6_neighbours_are_found_anew(cluster: Cluster) -> None:
    """By pods that may speak to pods alone, on all links at once: the pods', and those between the nodes."""
    pods = {pod["metadata"]["name"]: pod for pod in cluster.objects("get", "pods", "-n", "shop")}
    targets = [pods[name]["status"]["podIPs"][1]["ip"] for name in ("cart-1", "cart-2", "web-2", "web-3")]
    spaces = [cluster.layout.node_namespace(node) for node in cluster.nodes()]
    spaces += [cluster.layout.pod_namespace("shop", name) for name in pods]
    cluster.kubectl("apply", "-f", "-", text=ISOLATED)
    try:
        cluster.settle()
        for _ in range(3):
            for space in spaces:
                subprocess.run(["ip", "-n", space, "-6", "neigh", "flush", "all"], check=True, capture_output=True)
            for target in targets:
                cluster.run_in("shop/web-1", "ping", "-c", "1", "-W", "5", target)
    finally:
        cluster.kubectl("delete", "-f", "-", text=ISOLATED)
        cluster.settle()


def test_a_playground_leaves_nothing_behind() -> None:
    layout = Layout("z")
    stop(start("z", "--nodes", "1"))
    assert not layout.run.exists()
    assert not layout.cgroup.exists()
    assert not layout.bpffs.exists()
    assert [entry.name for entry in Path("/run/netns").iterdir() if layout.owns(entry.name)] == []


def test_a_killed_playground_is_cleaned_up() -> None:
    cluster = start("z", "--nodes", "1")
    layout = cluster.layout
    pids = [entry["pid"] for entry in cluster.register["processes"].values()]
    os.kill(cluster.pid("supervisor"), 9)
    stop(cluster)
    until("its processes are gone", lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids))
    assert not layout.run.exists()
    assert not layout.cgroup.exists()
