"""NetworkPolicy by real connections: at each step all 81 pairs of nine pods, on TCP and UDP ports, at once.

This kernel has no SCTP sockets, so SCTP goes as packets through the programs that the agents have attached.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

import pytest
from tests.bpf.kernel import entered, run_pinned
from tests.bpf.packets import SHOT
from tests.cluster.conftest import Cluster, equal, until
from tests.cluster.policy_steps import (
    NAMES,
    NAMESPACES,
    NUMBERS,
    PODS,
    Object,
    Probe,
    Step,
    block,
    match,
    policy,
    spaces,
    steps,
)
from tests.policy.model import Documentation, Packet
from tests.policy.programs import raw

from node_agent.loader import read_manifest
from playground.layout import EXTERNAL_ADDRESS, NodeAddresses
from tidegate.records.addresses import is_ipv4, pack_address

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(600)]

SOCKETS = [("TCP", 80), ("TCP", 81), ("UDP", 80), ("UDP", 81)]
REACHER = [sys.executable, "-S", "-E", str(Path(__file__).with_name("reacher.py"))]
NODES = ("node-1", "node-2", "node-3")
UPLINK = "eth0"  # of each node of a playground

Table = dict[tuple[Probe, int], bool]  # with the IP version


def pod(name: str) -> Object:
    home, short = name.split("/")
    at = NODES[(NAMESPACES.index(home) + NAMES.index(short)) % len(NODES)]
    ports = [
        {"name": f"serve-{port}-{protocol.lower()}", "containerPort": port, "protocol": protocol}
        for protocol, port in SOCKETS
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": short, "namespace": home, "labels": {"pod": short}},
        "spec": {
            "nodeName": at,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "responder", "image": "tidegate/responder", "ports": ports}],
        },
    }


def namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"ns": name}}}


class Reacher:
    """A process in a pod that asks, and is told what to ask."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._in: IO[str] = self._end(self.process.stdin)
        self._out: IO[str] = self._end(self.process.stdout)

    @staticmethod
    def _end(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream

    def ask(self, questions: Sequence[tuple[str, int, str]]) -> None:
        self._in.write(json.dumps(questions) + "\n")
        self._in.flush()

    def answers(self) -> list[str]:
        found: list[str] = json.loads(self._out.readline())
        return found

    def close(self) -> None:
        self._in.close()
        self.process.wait()
        self._out.close()


@dataclass
class Suite:
    cluster: Cluster
    objects: Mapping[str, Object]  # pod → as the API has it
    reachers: Mapping[str, Reacher]
    number: int = 2000  # source port of the last packet

    def address(self, pod: str, family: int) -> str:
        ips: list[str] = [each["ip"] for each in self.objects[pod]["status"]["podIPs"]]
        return next(ip for ip in ips if (":" in ip) == (family == 6))

    def measure(self) -> Table:
        """Who is reached by sockets: TCP and UDP on both ports, and one port by IPv6."""
        asked = [
            (Probe("", target, protocol, port), family)
            for target in PODS
            for protocol, port, family in [(*each, 4) for each in SOCKETS] + [("TCP", 80, 6)]
        ]
        for reacher in self.reachers.values():
            reacher.ask([(self.address(p.target, family), p.port, p.protocol) for p, family in asked])
        found: Table = {}
        for source, reacher in self.reachers.items():
            for (probe, family), answer in zip(asked, reacher.answers(), strict=True):
                assert answer in ("", probe.target), "somebody else answered"
                found[Probe(source, probe.target, probe.protocol, probe.port), family] = bool(answer)
        return found

    def by_packets(self) -> Table:
        """SCTP: INITs through the programs at the veth and, elsewhere, at the uplink."""
        found: Table = {}
        with ExitStack() as stack:
            hooks = {node: Hooks(self.cluster, node, stack) for node in NODES}
            for source, target, port in product(PODS, PODS, NUMBERS):
                self.number += 1
                ends = [pack_address(self.address(each, 4)) for each in (source, target)]
                assert all(map(is_ipv4, ends))
                packet = Packet(source, target, "SCTP", port)
                frame = raw(packet, ends[0][12:], ends[1][12:], self.number)
                leaves, enters = (self.objects[each]["spec"]["nodeName"] for each in (source, target))
                passes = hooks[leaves].from_pod(self.address(source, 4), frame)
                if leaves != enters:
                    passes = passes and hooks[enters].from_network(frame)
                found[Probe(source, target, "SCTP", port), 4] = passes
        return found


class Hooks:
    """The programs that a node's agent has attached, for packets out of nowhere."""

    def __init__(self, cluster: Cluster, node: str, stack: ExitStack) -> None:
        self._netns = Path("/run/netns") / cluster.layout.node_namespace(node)
        manifest = read_manifest(cluster.layout.run / node)
        assert manifest is not None
        self._stack = stack
        self._paths = {name: program.path for name, program in manifest.programs.items()}
        self._links = json.loads(self._ip("-j", "link"))
        self._routes = {each["dst"]: each["dev"] for each in json.loads(self._ip("-j", "route"))}
        self._file = stack.enter_context(self._netns.open())

    def _ip(self, *words: str) -> str:
        command = ["ip", "-n", self._netns.name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _passes(self, program: str, device: Mapping[str, Any], frame: bytes) -> bool:
        sent = bytes.fromhex(device["address"].replace(":", "")) + frame[6:]
        with entered(self._file.fileno()), run_pinned(self._paths[program], device["ifindex"]) as run:
            return run(sent) != SHOT

    def _device(self, name: str) -> Mapping[str, Any]:
        return next(each for each in self._links if each["ifname"] == name)

    def from_pod(self, address: str, frame: bytes) -> bool:
        return self._passes("from_pod", self._device(self._routes[address]), frame)

    def from_network(self, frame: bytes) -> bool:
        return self._passes("from_network", self._device(UPLINK), frame)


@pytest.fixture(scope="module")
def suite(cluster: Cluster) -> Iterator[Suite]:
    items = [*map(namespace, NAMESPACES), *map(pod, PODS)]
    try:
        cluster.kubectl("apply", "-f", "-", text="\n---\n".join(map(json.dumps, items)))

        def ready() -> dict[str, Object]:
            found = {
                f"{home}/{each['metadata']['name']}": each
                for home in NAMESPACES
                for each in cluster.objects("get", "pods", "-n", home)
                if len(each.get("status", {}).get("podIPs", [])) == 2
            }
            return found if found.keys() == set(PODS) else {}

        objects = until("all pods have addresses", ready)
        cluster.settle()
        reachers = {name: Reacher(cluster.command_in(name, *REACHER)) for name in PODS}
        try:
            yield Suite(cluster, objects, reachers)
        finally:
            for reacher in reachers.values():
                reacher.close()
    finally:
        cluster.kubectl("delete", "namespace", *NAMESPACES, "--ignore-not-found")
        cluster.settle()


def arrange(suite: Suite, before: Step | None, step: Step) -> None:
    """Policies and labels as the step has them."""
    cluster = suite.cluster
    standing = {_name(each) for each in before.policies} if before else set()
    for home, name in standing - {_name(each) for each in step.policies}:
        cluster.kubectl("delete", "networkpolicy", "-n", home, name)
    if step.policies:
        cluster.kubectl("apply", "-f", "-", text="\n---\n".join(map(json.dumps, step.policies)))
    for kind, labels, old in (
        ("namespace", step.namespace_labels, before.namespace_labels if before else {}),
        ("pod", step.pod_labels, before.pod_labels if before else {}),
    ):
        for where in {*labels, *old}:
            gone = [f"{key}-" for key in old.get(where, {}) if key not in labels.get(where, {})]
            now = [f"{key}={value}" for key, value in labels.get(where, {}).items()]
            home, _, name = where.rpartition("/")
            place = ["-n", home] if home else []
            cluster.kubectl("label", "--overwrite", kind, *place, name, *gone, *now)
    cluster.settle()


def _name(item: Object) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def expected(suite: Suite, step: Step) -> Table:
    """By hand; IPv6, of which no step says anything, by the model, which must agree with the hand."""
    labelled = [
        {**each, "metadata": {**each["metadata"], "labels": {"pod": name[-1], **step.pod_labels.get(name, {})}}}
        for name, each in suite.objects.items()
    ]
    homes = [
        {**namespace(home), "metadata": {"name": home, "labels": {"ns": home, **step.namespace_labels.get(home, {})}}}
        for home in NAMESPACES
    ]
    documented = Documentation(homes, labelled, step.policies)
    table: Table = {}
    for source, target in product(PODS, PODS):
        for protocol, port in [*SOCKETS, *(("SCTP", port) for port in NUMBERS)]:
            probe = Probe(source, target, protocol, port)
            table[probe, 4] = source == target or step.truth(probe)
            assert table[probe, 4] == documented.allows(Packet(source, target, protocol, port)), f"the table: {probe}"
        table[Probe(source, target, "TCP", 80), 6] = documented.allows(Packet(source, target, "TCP", 80, 6))
    return table


def differences(found: Table, wanted: Table) -> list[str]:
    return [
        f"{p.source} -> {p.target} {p.protocol} {p.port} (IPv{family}): {'reached' if reached else 'not reached'}"
        for (p, family), reached in found.items()
        if reached != wanted[p, family]
    ]


def test_who_reaches_whom_at_each_step(suite: Suite) -> None:
    before: Step | None = None
    try:
        for step in steps({name: suite.address(name, 4) for name in PODS}):
            arrange(suite, before, step)
            before = step
            wanted = expected(suite, step)
            # What is only slow is not what is expected either: asked again.
            equal(step.name, lambda wanted=wanted: differences(suite.measure(), wanted), [])  # type: ignore[misc]
            assert differences(suite.by_packets(), wanted) == [], step.name
    finally:
        arrange(suite, before, Step("nothing", [], lambda _: True))


# A client of x/a: for each line of standard input it sends one, and prints whether an answer comes.
TALKER = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80), 5)
s.recv(200)
s.settimeout(3)
for line in sys.stdin:
    try:
        s.send(b"x\\n")
        print("answered" if s.recv(200) else "ended", flush=True)
    except TimeoutError:
        print("silent", flush=True)
"""


class Talker:
    """A connection that lives."""

    def __init__(self, suite: Suite, source: str) -> None:
        command = suite.cluster.command_in(source, sys.executable, "-S", "-E", "-c", TALKER, suite.address("x/a", 4))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()


ALWAYS = spaces(match(ns="z"))
RED, ROLE = spaces(match(team="red")), spaces({}, role="client")


def revoking(host: str) -> dict[str, tuple[Step, Step]]:
    """What revoked it → the states before and after, for y/b, whose address is `host`. z/b is allowed all the time."""

    def of(peer: Object, **labels: Any) -> Step:
        return Step("", [policy("x/p", match(pod="a"), ingress=[{"from": [peer, ALWAYS]}])], lambda _: True, **labels)

    red, blue = {"y": {"team": "red"}}, {"y": {"team": "blue"}}
    return {
        "the policy": (of(spaces(match(ns="y"))), of(spaces(match(ns="x")))),
        "the labels of the namespace": (of(RED, namespace_labels=red), of(RED, namespace_labels=blue)),
        "the labels of the pod": (of(ROLE, pod_labels={"y/b": {"role": "client"}}), of(ROLE)),
        "an exception": (of(block("0.0.0.0/0")), of(block("0.0.0.0/0", f"{host}/32"))),
    }


@pytest.mark.parametrize("what", revoking(""))
def test_a_connection_that_lives_is_cut_and_another_goes_on(suite: Suite, what: str) -> None:
    allowing, revoked = revoking(suite.address("y/b", 4))[what]
    arrange(suite, None, allowing)
    talkers = {source: Talker(suite, source) for source in ("y/b", "z/b")}
    try:
        assert {source: talker.ask() for source, talker in talkers.items()} == dict.fromkeys(talkers, "answered")
        arrange(suite, allowing, revoked)
        assert {source: talker.ask() for source, talker in talkers.items()} == {"y/b": "silent", "z/b": "answered"}
        arrange(suite, revoked, allowing)
        until("it goes on", lambda: talkers["y/b"].ask() == "answered")
    finally:
        for talker in talkers.values():
            talker.close()
        arrange(suite, allowing, Step("nothing", [], lambda _: True))


SERVER = """
import socket, sys
s = socket.create_server(("", 8099))
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b"outside/server\\n")
    c.close()
"""


def test_blocks_hold_for_nodes_and_the_outside(suite: Suite) -> None:
    """Both ways; the pod's own node reaches it whatever its policies say."""
    layout = suite.cluster.layout
    own = suite.objects["x/a"]["spec"]["nodeName"]
    other = next(node for node in NODES if node != own)
    places = {"outside": layout.external, own: layout.node_namespace(own), other: layout.node_namespace(other)}
    clients = {name: Reacher(["ip", "netns", "exec", space, *REACHER]) for name, space in places.items()}
    addresses = {name: NodeAddresses(1 + NODES.index(name)).address for name in (own, other)}
    addresses["outside"] = EXTERNAL_ADDRESS
    command = ["ip", "netns", "exec", layout.external, sys.executable, "-c", SERVER]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    before = Step("nothing", [], lambda _: True)

    def reaching() -> set[str]:
        for client in clients.values():
            client.ask([(suite.address("x/a", 4), 80, "TCP")])
        return {name for name, client in clients.items() if client.answers() == ["x/a"]}

    def reached() -> bool:
        suite.reachers["x/a"].ask([(EXTERNAL_ADDRESS, 8099, "TCP")])
        return suite.reachers["x/a"].answers() == ["outside/server"]

    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        for allowed in ({"outside"}, {other}, {"outside", other}, set[str]()):
            peers = [block(f"{addresses[name]}/32") for name in sorted(allowed)] or [block("203.0.113.0/24")]
            rules: Object = {
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": peers}],
                "egress": [{"to": peers}],
            }
            step = Step("blocks", [policy("x/p", match(pod="a"), **rules)], lambda _: True)
            arrange(suite, before, step)
            before = step
            equal(f"who reaches the pod, {allowed}", reaching, {own, *allowed})
            equal(f"whether it reaches the outside, {allowed}", reached, "outside" in allowed)
    finally:
        for client in clients.values():
            client.close()
        server.terminate()
        server.communicate()
        arrange(suite, before, Step("nothing", [], lambda _: True))
