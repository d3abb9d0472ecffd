"""What the policy log costs the agent: measured on a running playground with the shop.

    python tests/scale/policy_log.py [PLAYGROUND] [SECONDS]

Datagrams go from a web pod to a cart pod: 5,000 new connections a second that are allowed, then 100,000 packets a
second of one that is denied, each with logging off and on. Prints what the agent of the cart pod's node takes of a CPU,
the records in its log (which begins anew each time), and how fast the sender really was.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

from playground.layout import Layout
from playground.processes import read_register
from playground.shell import inside

SENDER = """
import socket, sys, time
address, first, ports, rate, seconds = sys.argv[1], *map(int, sys.argv[2:])
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(16)]
begun, sent = time.monotonic(), 0
while (past := time.monotonic() - begun) < seconds:
    for _ in range(min(int(past * rate) - sent, 200)):
        try:
            sockets[sent // ports % 16].sendto(b"x", (address, first + sent % ports))
        except OSError:
            pass  # an ICMP error of an earlier one
        sent += 1
    if sent >= past * rate:
        time.sleep(0.0005)
print(sent)
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: policy-log, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{protocol: UDP, port: 2000, endPort: 65535}]
"""


def kubectl(layout: Layout, *arguments: str, text: str | None = None) -> str:
    command = ["kubectl", f"--kubeconfig={layout.kubeconfig}", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def pod(layout: Layout, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl(layout, "get", "-n", "shop", "pod", name, "-o", "json"))
    return found


def set_logging(layout: Layout, on: bool) -> None:
    cluster = {"allow": {"log": on}, "deny": {"log": on}}
    head = {"apiVersion": "networking.gke.io/v1alpha1", "kind": "NetworkLogging", "metadata": {"name": "default"}}
    kubectl(layout, "apply", "-f", "-", text=json.dumps({**head, "spec": {"cluster": cluster}}))
    time.sleep(6)  # the last round of what was on before


def cpu(pid: int) -> float:
    """Seconds so far."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(layout: Layout, what: str, on: bool, load: tuple[int, int, int], seconds: int) -> None:
    """`load`: first destination port, how many, packets a second (0: none)."""
    set_logging(layout, on)
    server = pod(layout, "cart-1")
    node = server["spec"]["nodeName"]
    register: dict[str, Any] = dict(read_register(layout.state))
    pid = register["processes"][node]["pid"]
    log = layout.node_state(node) / "policy_action.log"
    log.unlink(missing_ok=True)
    before, begun = cpu(pid), time.monotonic()
    sent = "0"
    if load[2]:
        (cgroup,) = layout.cgroup.glob("*/shop_web-1")
        words = [sys.executable, "-S", "-E", "-c", SENDER, server["status"]["podIP"], *map(str, (*load, seconds))]
        command = inside(layout.pod_namespace("shop", "web-1"), cgroup, words)
        sent = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        time.sleep(seconds)
    took, past = cpu(pid) - before, time.monotonic() - begun
    time.sleep(6)
    fresh = [json.loads(line) for line in (log.read_text().splitlines() if log.exists() else [])]
    figures = {
        "what": what,
        "logging": on,
        "vcpu": round(took / past, 4),
        "sent a second": round(int(sent) / past),
        "records a second": round(len(fresh) / past, 1),
        "counted": sum(row["count"] for row in fresh if "count" in row),
        "lost": sum(sum(row["lost"].values()) for row in fresh if "lost" in row),
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def main() -> None:
    layout = Layout(sys.argv[1]) if len(sys.argv) > 1 else Layout()
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    kubectl(layout, "apply", "-f", "-", text=POLICY)
    try:
        for on in (False, True):
            measure(layout, "nothing", on, (2000, 1, 0), seconds)
            measure(layout, "new connections, allowed", on, (2000, 60000, 5000), seconds)
            measure(layout, "packets, denied", on, (1999, 1, 100_000), seconds)
    finally:
        kubectl(layout, "delete", "-n", "shop", "networkpolicy", "policy-log")
        kubectl(layout, "delete", "--ignore-not-found", "networklogging", "default")


if __name__ == "__main__":
    main()
