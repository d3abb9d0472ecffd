"""The table of Services (tests/choice), by real connections: all rows stand at once, in a namespace of their own."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from tests.choice.rows import NUMBERS, ROWS
from tests.choice.table import (
    BOTH,
    DROPPED,
    IPV4,
    IPV6,
    NAMESPACE,
    NODES,
    PASSED,
    PODS,
    REFUSED,
    ROUTED,
    ZONES,
    Addresses,
    Object,
    Probe,
    probes,
    service,
    service_name,
    service_status,
    slices,
)
from tests.cluster.conftest import Cluster, until

from playground.layout import EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6, NodeAddresses
from playground.shell import inside
from tidegate.cli.cluster import Cluster as Records
from tidegate.cli.cluster import load, playground_settings
from tidegate.cli.ends import find_client, read_target
from tidegate.cli.trace import Tracer, ask_agent
from tidegate.records.addresses import pack_address, write_end

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

# Seconds to wait for what is to come, on a machine that may stand still for a while, and for what is not to come.
PATIENCE, SILENT_FOR = 20.0, 2.0
FEWEST = 12  # connections to each frontend, to see who else is chosen
SILENCE, NO = "TimeoutError", "ConnectionRefusedError"
ZONE = "topology.kubernetes.io/zone"


def pod(name: str) -> Object:
    one = PODS[name]
    ports = [{"protocol": "TCP", **port} for port in one.ports]
    annotations = {} if one.ready else {"playground.tidegate.dev/ready": "false"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(one.labels), "annotations": annotations},
        "spec": {
            "nodeName": one.node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "responder", "image": "tidegate/responder", "ports": ports}],
        },
    }


def apply(cluster: Cluster, items: list[Object]) -> None:
    cluster.kubectl("apply", "-f", "-", text="\n---\n".join(map(json.dumps, items)))


def addresses_of(cluster: Cluster) -> Addresses:
    """Once all pods have theirs."""

    def known() -> dict[str, dict[str, str]]:
        found = {}
        for item in cluster.objects("get", "pods", "-n", NAMESPACE):
            ips = [one["ip"] for one in item.get("status", {}).get("podIPs", [])]
            found[item["metadata"]["name"]] = {
                family: ip for ip in ips for family in BOTH if (":" in ip) == (family == IPV6)
            }
        return found if all(len(found.get(name, {})) == len(BOTH) for name in PODS) else {}

    places = [NodeAddresses(index) for index, _ in enumerate(NODES, 1)]
    nodes = {place.name: dict(zip(BOTH, (place.address, place.address6), strict=True)) for place in places}
    return Addresses(until("all pods have addresses", known), nodes)


@dataclass(frozen=True)
class Asked:
    """A probe, by which way it was asked, and what came."""

    probe: Probe
    way: str
    seen: frozenset[str]

    @property
    def wrong(self) -> str:
        probe, seen = self.probe, self.seen
        if probe.answer == {PASSED}:
            fits = seen <= {SILENCE, NO, "OSError"}
        elif probe.answer in ({REFUSED}, {DROPPED}):
            fits = seen == {NO if probe.answer == {REFUSED} else SILENCE}
        else:
            fits = seen == probe.answer or (probe.sticky and len(seen) == 1 and seen <= probe.answer)
        return "" if fits else f"{probe.text} ({self.way}): {sorted(seen)}, not {sorted(probe.answer)}"


@pytest.fixture(scope="module")
def asked(cluster: Cluster) -> Iterator[list[Asked]]:
    """All rows applied; every client asks whatever concerns it."""
    usual = {name: NodeAddresses(index).zone for index, name in enumerate(NODES, 1)}
    try:
        for node, zone in ZONES.items():
            cluster.kubectl("label", "--overwrite", "node", node, f"{ZONE}={zone}" if zone else f"{ZONE}-")
        apply(cluster, [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *map(pod, PODS)])
        addresses = addresses_of(cluster)
        stand(cluster, addresses)
        yield ask_all(cluster, addresses)
    finally:
        for node, zone in usual.items():
            cluster.kubectl("label", "--overwrite", "node", node, f"{ZONE}={zone}")
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
        cluster.settle()


def stand(cluster: Cluster, addresses: Addresses) -> None:
    items = []
    for name, row in ROWS.items():
        items += [service(NUMBERS[name], row, addresses), *slices(NUMBERS[name], row, addresses)]
    apply(cluster, items)
    for name, row in ROWS.items():
        status = service_status(NUMBERS[name], row, addresses)
        if status:
            where = ["-n", NAMESPACE, service_name(NUMBERS[name]), "--subresource=status", "--type=merge"]
            cluster.kubectl("patch", "service", *where, "-p", json.dumps({"status": status}))
    cluster.settle()


def ask_all(cluster: Cluster, addresses: Addresses) -> list[Asked]:
    all_probes = list(probes(ROWS, NUMBERS, addresses))
    jobs = []
    for node in NODES:
        for client in ("pods", "nodes", "elsewhere"):
            concerned = [probe for probe in all_probes if probe.client == client and probe.node == node]
            jobs += [(way, line, concerned) for way, line in commands(cluster, client, node)]
    with refused_outside(cluster), ThreadPoolExecutor(4) as pool:
        found = [one for each in pool.map(lambda job: ask(*job), jobs) for one in each]
    for node in NODES:
        concerned = [probe for probe in all_probes if probe.client == "outside" and probe.node == node]
        with routed(cluster, addresses.nodes[node]):
            found += ask("packets", ["ip", "netns", "exec", cluster.layout.external, *ASKER], concerned)
    return found


ASKER = [sys.executable, "-S", "-E", str(Path(__file__).with_name("asker.py"))]


def before(node: str) -> str:
    return NODES[NODES.index(node) - 1]


def commands(cluster: Cluster, client: str, node: str) -> list[tuple[str, list[str]]]:
    """How a client runs: in the cgroup of its pod or node, where socket programs see it, or outside of it."""
    if client == "nodes":
        cgroup = cluster.layout.node_cgroup(node) / "agent"
        return [("sockets", inside(cluster.layout.node_namespace(node), cgroup, ASKER))]
    at = node if client == "pods" else before(node)
    name = f"c{at[-1]}"
    outside = ["ip", "netns", "exec", cluster.layout.pod_namespace(NAMESPACE, name), *ASKER]
    return [("sockets", cluster.command_in(f"{NAMESPACE}/{name}", *ASKER)), ("packets", outside)]


@contextmanager
def refused_outside(cluster: Cluster) -> Iterator[None]:
    """What leaves a node for an address of a Service is refused by the outside world, and so not taken for dropped."""
    ways = [
        (cluster.layout.node_namespace(node), ["unicast", network, "via", via])
        for node in NODES
        for family, via in ((IPV4, EXTERNAL_ADDRESS), (IPV6, EXTERNAL_ADDRESS6))
        for network in ROUTED[family]
    ]
    ways += [
        (cluster.layout.external, ["local", network, "dev", "lo"]) for family in BOTH for network in ROUTED[family]
    ]
    try:
        for namespace, way in ways:
            subprocess.run(["ip", "-n", namespace, "route", "replace", *way], check=True)
        yield
    finally:
        for namespace, way in ways:
            subprocess.run(["ip", "-n", namespace, "route", "del", *way], check=False)


@contextmanager
def routed(cluster: Cluster, via: Mapping[str, str]) -> Iterator[None]:
    """The outside world reaches all addresses of Services through that node."""
    external = ["ip", "-n", cluster.layout.external, "route"]
    ways = [(network, via[family]) for family, networks in ROUTED.items() for network in networks]
    try:
        for network, node in ways:
            subprocess.run([*external, "replace", network, "via", node], check=True)
        yield
    finally:
        for network, _ in ways:
            subprocess.run([*external, "del", network], check=False)


def ask(way: str, line: list[str], concerned: list[Probe]) -> list[Asked]:
    # The kernel here may have no SCTP sockets.
    concerned = [probe for probe in concerned if probe.protocol != "SCTP"]
    questions = [
        (
            p.address,
            p.port,
            p.protocol,
            sorted(p.answer) if p.chosen and not p.sticky else [],
            FEWEST if p.chosen else 1,
            SILENT_FOR if p.answer in ({DROPPED}, {PASSED}) else PATIENCE,
        )
        for p in concerned
    ]
    done = subprocess.run(line, input=json.dumps(questions) + "\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Asked(probe, way, frozenset(seen)) for probe, seen in zip(concerned, json.loads(done.stdout), strict=True)]


@pytest.mark.parametrize("name", ROWS)
def test_row(asked: list[Asked], name: str) -> None:
    concerned = [one for one in asked if one.probe.row == name]
    assert concerned
    assert [one.wrong for one in concerned if one.wrong] == []


# ---- what `tidegate services trace` says of the same connections ----------------------------------------------------


@pytest.fixture(scope="module")
def recorded(cluster: Cluster, asked: list[Asked]) -> Records:
    settings = playground_settings(cluster.register)
    with click.Context(click.Command("trace")):
        return load(settings)


def client_of(probe: Probe) -> str:
    if probe.client == "outside":
        return EXTERNAL_ADDRESS6 if probe.family == IPV6 else EXTERNAL_ADDRESS
    if probe.client == "nodes":
        return probe.node
    return f"{NAMESPACE}/c{(probe.node if probe.client == 'pods' else before(probe.node))[-1]}"


@pytest.mark.parametrize("name", ROWS)
def test_trace(
    cluster: Cluster, recorded: Records, asked: list[Asked], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answer, from the same maps, without a packet."""
    monkeypatch.setattr("tidegate.cli.cluster.RUN", cluster.layout.run)
    wrong = []
    for one in {(one.probe.client, one.probe.answer): one for one in asked if one.probe.row == name}.values():
        probe = one.probe
        target = read_target(f"{write_end(pack_address(probe.address), probe.port)}/{probe.protocol}")
        client = find_client(recorded, client_of(probe), probe.node)
        found = Tracer(recorded, ask_agent, client, target).run(packets=one.way == "packets")
        names = frozenset(way.who.rpartition("/")[2] for way in found.ways)
        answer = names if found.outcome == "chosen" else frozenset({found.outcome})
        kept = probe.sticky and answer == one.seen
        made = probe.chosen or probe.answer == {PASSED}
        if (answer != probe.answer and not kept) or found.made != made:
            wrong.append(f"{probe.text} ({one.way}): {sorted(answer)}, made: {found.made}, not {sorted(probe.answer)}")
    assert wrong == []
