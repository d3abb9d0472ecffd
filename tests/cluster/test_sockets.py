"""What becomes of sockets when their backend goes; nodes that leave the sockets of pods alone. Real connections."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest
from tests.cluster.conftest import Cluster, start, stop, until

from node_agent.loader import read_manifest
from node_agent.maps import Maps
from tidegate.records.addresses import unpack_address

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

VIP = "10.96.8.1"
MANIFEST = f"""
apiVersion: v1
kind: Service
metadata: {{name: t-gone, namespace: shop}}
spec:
  clusterIP: {VIP}
  selector: {{app: t-gone}}
  ports:
  - {{name: tcp, port: 80, targetPort: 8080}}
  - {{name: udp, port: 53, targetPort: 5353, protocol: UDP}}
"""


def backend(name: str, node: str) -> str:
    return f"""
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: t-gone}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: responder
    image: tidegate/responder
    ports: [{{containerPort: 8080}}, {{containerPort: 5353, protocol: UDP}}]
"""


# A client of the Service: connected sockets, each with an answer already had. Then, for each line of standard input,
# it sends that on all of them, or nothing, and prints what comes.
CLIENT = """
import json, socket, sys
address, tcp, udp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def made(kind, port):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(20)
    s.connect((address, port))
    if kind == socket.SOCK_DGRAM:
        s.send(b"x")
    return s, s.recv(200).decode().split()[0]
sockets = {"TCP": made(socket.SOCK_STREAM, tcp), "UDP": made(socket.SOCK_DGRAM, udp)}
print(json.dumps({name: pod for name, (_, pod) in sockets.items()}), flush=True)
for line in sys.stdin:
    seen = {}
    for name, (s, _) in sockets.items():
        try:
            if line.strip():
                s.send(line.encode())
            seen[name] = s.recv(200).decode().split()[0]
        except OSError as error:
            seen[name] = type(error).__name__
    print(json.dumps(seen), flush=True)
"""


class Talk:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout
        self.backends: dict[str, str] = json.loads(self._stdout.readline())

    def say(self, line: str) -> None:
        self._stdin.write(f"{line}\n")
        self._stdin.flush()

    def hear(self) -> dict[str, str]:
        return dict(json.loads(self._stdout.readline()))

    def ask(self) -> dict[str, str]:
        self.say("next")
        return self.hear()


@contextmanager
def client(cluster: Cluster, pod: str, at_node: str = "") -> Iterator[Talk]:
    """`at_node`: the node of a pod of the host network."""
    command = cluster.command_in(pod, sys.executable, "-S", "-E", "-c", CLIENT, VIP, "80", "53")
    if at_node:
        command[1] = f"--net=/run/netns/{cluster.layout.node_namespace(at_node)}"
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Talk(process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def node_only() -> Iterator[Cluster]:
    """Two nodes that translate no sockets of pods."""
    cluster = start("o", "--nodes", "2", "--socket-lb", "node")
    try:
        cluster.kubectl("apply", "-f", "-", text="{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
        pods = backend("t-gone-1", "node-2") + backend("t-host", "node-1").replace(
            "spec:", "spec:\n  hostNetwork: true"
        )
        pods = pods.replace("name: t-host, namespace: shop, labels: {app: t-gone}", "name: t-host, namespace: shop")
        pods += backend("t-client", "node-1").replace("labels: {app: t-gone}", "labels: {app: t-client}")
        cluster.kubectl("apply", "-f", "-", text=MANIFEST + pods)
        for pod in ("t-gone-1", "t-host", "t-client"):
            cluster.kubectl("wait", "--for=condition=Ready", "-n", "shop", f"pod/{pod}", "--timeout=60s")
        cluster.settle()
        yield cluster
    finally:
        stop(cluster)


def test_a_backend_that_dies_keeps_nobody_waiting(cluster: Cluster) -> None:
    """Its node goes silent with it: no RST, no ICMP error tells the clients, but the agent ends their sockets."""
    cluster.kubectl("apply", "-f", "-", text=MANIFEST + backend("t-gone-1", "node-2"))
    try:
        cluster.kubectl("wait", "--for=condition=Ready", "-n", "shop", "pod/t-gone-1", "--timeout=60s")
        cluster.settle()
        with client(cluster, "shop/web-1") as talk:
            assert talk.backends == {"TCP": "shop/t-gone-1", "UDP": "shop/t-gone-1"}
            cluster.kubectl("apply", "-f", "-", text=backend("t-gone-2", "node-3"))
            cluster.kubectl("wait", "--for=condition=Ready", "-n", "shop", "pod/t-gone-2", "--timeout=60s")
            cluster.settle()
            assert talk.ask() == talk.backends
            talk.say("")  # it waits, and nobody will answer
            before = cluster.status("node-1")["sockets_freed"]
            namespace = cluster.layout.pod_namespace("shop", "t-gone-1")
            subprocess.run(["ip", "-n", namespace, "link", "set", "eth0", "down"], check=True)
            cluster.kubectl("delete", "pod", "-n", "shop", "t-gone-1", "--wait=false")
            assert talk.hear() == {"TCP": "ConnectionAbortedError", "UDP": "ConnectionAbortedError"}
            until("two freed sockets", lambda: cluster.status("node-1")["sockets_freed"] - before == 2)
        with client(cluster, "shop/web-1") as talk:
            assert talk.backends == {"TCP": "shop/t-gone-2", "UDP": "shop/t-gone-2"}
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "pod", "-n", "shop", "t-gone-1", "t-gone-2")
        cluster.kubectl("delete", "--ignore-not-found", "service", "-n", "shop", "t-gone")
        cluster.settle()


def seen(cluster: Cluster, node: str) -> tuple[list[str], list[str]]:
    """What the node remembers of clients of the Service: protocols of translated sockets, addresses of clients whose
    packets are translated."""
    manifest = read_manifest(cluster.layout.node_state(node))
    assert manifest is not None
    maps = Maps(manifest.maps)
    try:
        sockets, packets = maps["socket_peers"], maps["translations"]
        given = [
            (sockets.key.unpack(key), unpack_address(sockets.value.unpack(value)["addr"]))
            for key, value in sockets.items().items()
        ]
        clients = [packets.key.unpack(key) for key in packets.items()]
    finally:
        maps.close()
    return (
        sorted({6: "TCP", 17: "UDP"}[key["protocol"]] for key, vip in given if key["reverse"] and vip == VIP),
        sorted(unpack_address(key["client"]) for key in clients if unpack_address(key["vip"]) == VIP),
    )


def test_sockets_of_pods_can_be_left_alone(node_only: Cluster) -> None:
    """Their packets are translated, also those of the pod's cgroup; the node's own sockets are."""
    answers = {"TCP": "shop/t-gone-1", "UDP": "shop/t-gone-1"}
    with client(node_only, "shop/t-client") as talk:
        assert talk.backends == answers
        assert talk.ask() == answers
        address = node_only.kubectl("get", "pod", "-n", "shop", "t-client", "-o", "jsonpath={.status.podIP}")
        assert seen(node_only, "node-1") == ([], [address, address])
        with client(node_only, "shop/t-host", "node-1") as host:
            assert host.backends == answers
            assert host.ask() == answers
            assert seen(node_only, "node-1") == (["TCP", "UDP"], [address, address])


def test_affinity_holds_for_pods_whose_sockets_are_left_alone(node_only: Cluster) -> None:
    node_only.kubectl("apply", "-f", "-", text=backend("t-gone-2", "node-1") + backend("t-gone-3", "node-2"))
    for pod in ("t-gone-2", "t-gone-3"):
        node_only.kubectl("wait", "--for=condition=Ready", "-n", "shop", f"pod/{pod}", "--timeout=60s")
    affine = {"spec": {"sessionAffinity": "ClientIP"}}
    node_only.kubectl("patch", "svc", "-n", "shop", "t-gone", "--type=merge", "-p", json.dumps(affine))
    node_only.settle()
    chosen = []
    for _ in range(8):
        with client(node_only, "shop/t-client") as talk:
            chosen.append(talk.backends["TCP"])
    assert chosen == [chosen[0]] * 8
