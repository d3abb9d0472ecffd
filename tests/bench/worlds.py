"""Clusters of one shape, beside each other: plain forwarding, kube-proxy's rules, our programs, and the least that
programs can do."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import kubeproxy
from tests.bench.harness import pin_harness, update
from tests.bench.load import Load, Place, compile_load, quiet_cpu
from tests.bench.model import Size
from tests.bench.population import ELSEWHERE, Spec, fill
from tests.bpf.families import using
from tests.bpf.kernel import FIRST_PORT, LAST_PORT, TCX_INGRESS, Loaded, attach_tcx, attached_to_cgroup
from tests.bpf.topology import PREFIX, Cluster, Node, Pod, attached, build
from tests.bpf.traffic import outside, pod
from tests.leftovers import BPF, cgroup2, sweep

from node_agent import nft
from node_agent.entries import Entries
from node_agent.loader import CACHE, read_manifest
from node_agent.loader.pins import opened
from node_agent.maps import Maps
from node_agent.table import ORDER, Tables
from node_agent.view import View
from tidegate.records import (
    Backend,
    BackendShard,
    Endpoint,
    Keyspace,
    Rules,
    Service,
    ServicePort,
    Subject,
    encode,
)
from tidegate.records import Node as NodeRecord
from tidegate.records.addresses import pack_address

POD_NETWORK = "10.201.0.0/16"
PORT = 8080  # of the servers
IDENTITY, POLICY = 1001, 900
KEYS = Keyspace("bench")
FIRST_NUMBER = 5000

# Services by where their backend is, seen from n1; NodePorts of n1. The last one refuses.
NEAR, FAR, EMPTY = "near", "far", "empty"
VIPS = {NEAR: ("10.97.0.1", "fd00:97::1"), FAR: ("10.97.0.2", "fd00:97::2"), EMPTY: ("10.97.0.3", "fd00:97::3")}
NODE_PORTS = {NEAR: 30080, FAR: 30081}
BACKENDS = {NEAR: "b", FAR: "c"}


class SetupError(Exception):
    """A cluster to measure in could not be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Worlds:
    plain: Cluster
    proxied: Cluster
    ours: Cluster
    bare: Cluster  # pods of n1 reach each other by a redirect that asks nothing
    cgroup: Path  # of n1 of `ours`, with the socket programs
    harness: Path  # pins of harness.c
    load: Load


def measured(cluster: Cluster) -> list[Spec]:
    """In both families."""
    specs = []
    for version in (4, 6):
        with using(version):
            for name, vips in VIPS.items():
                backends = ((pod(cluster, BACKENDS[name]).address, PORT),) if name in BACKENDS else ()
                vip = vips[version == 6]
                specs.append(Spec(f"{name}{version}", vip, 80, backends, NODE_PORTS.get(name, 0)))
    return specs


@contextmanager
def worlds(size: Size, cache: Path = CACHE) -> Iterator[Worlds]:
    """Servers for the load run in all of them. Raises SetupError, LoadError."""
    sweep("tgt-bpf")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgt-bench-")))
        load = Load(compile_load(directory), quiet_cpu())
        plain, proxied, ours, bare = (_cluster(stack, f"{label}-") for label in ("plain", "proxied", "ours", "bare"))
        specs = fill(measured(ours), size.services)
        with ThreadPoolExecutor() as pool:
            rules = [pool.submit(_install_proxy, node, specs) for node in proxied.nodes]
            loaded = [_load(stack, node, directory, cache) for node in ours.nodes]
        for installed in rules:
            installed.result()
        cgroups = [
            _bring_up(stack, ours, node, programs, specs) for node, programs in zip(ours.nodes, loaded, strict=True)
        ]
        harness = _pin_harness(stack)
        _redirect(stack, bare.nodes[0], harness)
        for cluster in (plain, proxied, ours, bare):
            for name in BACKENDS.values():
                server = pod(cluster, name)
                where = Place(server.namespace, cgroups[cluster.nodes.index(server.node)] if cluster is ours else None)
                stack.enter_context(load.serving(where, server.address, PORT))
        yield Worlds(plain, proxied, ours, bare, cgroups[0], harness, load)


def _cluster(stack: ExitStack, label: str) -> Cluster:
    cluster = build(label)
    stack.callback(cluster.remove)
    # Servers close first. What would be left there refuses, or not, the next connection from the same port, as its
    # sequence number falls; that depends on what the client has addressed.
    for each in cluster.pods:
        each.namespace.set("ipv4/tcp_max_tw_buckets", "0")
    return cluster


def _install_proxy(node: Node, specs: Sequence[Spec]) -> None:
    for text in kubeproxy.transactions(specs, node.address, POD_NETWORK):
        _nft(node, text)


def _nft(node: Node, text: str) -> None:
    command = ["ip", "netns", "exec", node.namespace.name, "nft", "-f", "-"]
    done = subprocess.run(command, check=False, input=text, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"nft on {node.name}: {done.stderr.strip()[-2000:]}")


def _load(stack: ExitStack, node: Node, directory: Path, cache: Path) -> Loaded:
    """The programs of one node, with maps of the sizes that they have by default."""
    bpffs, state = BPF / f"{PREFIX}-bench-{node.name}", directory / node.name
    stack.callback(shutil.rmtree, bpffs, ignore_errors=True)
    command = [sys.executable, "-m", "node_agent.loader", "--bpffs", str(bpffs), "--state", str(state)]
    done = subprocess.run([*command, "--cache", str(cache)], check=False, capture_output=True, text=True)
    manifest = read_manifest(state)
    if done.returncode or manifest is None:
        raise SetupError(f"the programs could not be loaded: {done.stderr.strip()}")
    loaded = Loaded(manifest, bpffs, state)
    stack.callback(loaded.close)
    return loaded


def _bring_up(stack: ExitStack, cluster: Cluster, node: Node, loaded: Loaded, specs: Sequence[Spec]) -> Path:
    """All of a node: the guard, maps, programs. Returns the cgroup of its pods."""
    _nft(node, nft.ruleset("veth*"))
    _write_maps(cluster, node, loaded, specs)
    stack.enter_context(attached(node, loaded, "tcx"))
    cgroup = cgroup2() / f"{PREFIX}-bench-{node.name}"
    cgroup.mkdir()
    stack.callback(cgroup.rmdir)
    stack.enter_context(attached_to_cgroup(loaded, cgroup))
    return cgroup


def _pin_harness(stack: ExitStack) -> Path:
    directory = BPF / f"{PREFIX}-bench-harness"
    directory.mkdir()
    stack.callback(shutil.rmtree, directory)
    pin_harness(directory)
    return directory


def _redirect(stack: ExitStack, node: Node, harness: Path) -> None:
    """Whatever of IPv4 comes from one pod of the node goes to the other."""
    one, other = (each.ifindex for each in node.pods)
    with opened(harness / "peers") as peers, opened(harness / "bare") as program:
        for key, value in ((one, other), (other, one)):
            update(peers, struct.pack("=I", key), struct.pack("=I", value))
            with node.namespace.entered():
                stack.callback(os.close, attach_tcx(program, key, TCX_INGRESS))


def _write_maps(cluster: Cluster, node: Node, loaded: Loaded, specs: Sequence[Spec]) -> None:
    """As the node's agent would, from the same records."""
    maps = Maps(loaded.manifest.maps)
    try:
        tables = Tables({name: maps[name].items() for name in ORDER})
        view = View(node.name, KEYS, tables, Entries(loaded.manifest.maps))
        routes = {pack_address(address): each.ifindex for each in node.pods for address in each.addresses}
        view.set_host(routes, frozenset(map(pack_address, node.addresses)))
        view.snapshot(_records(cluster, specs))
        for step in tables.plan():
            if maps[step.map].update_all(step.puts) != len(step.puts):
                raise SetupError(f"the map {step.map} is full")
            tables.done(step.map, step.puts, step.deletes)
    finally:
        maps.close()
    ipv4, ipv6 = node.addresses
    loaded.set_ports((FIRST_PORT, LAST_PORT))
    loaded.maps["devices"].set({"value": node.uplink}, {"flags": 1, "addr": ipv4, "addr6": ipv6})


def _records(cluster: Cluster, specs: Sequence[Spec]) -> dict[str, bytes]:
    """What endpoint-sync and policy-sync would have written: no policy isolates anybody."""
    values = {
        KEYS.subject(IDENTITY): encode(Subject(policy=POLICY)),
        KEYS.rules(POLICY): encode(Rules()),
    }
    for node in cluster.nodes:
        values[KEYS.node(node.name)] = encode(NodeRecord(addresses=_packed(*node.addresses)))
        for each in node.pods:
            values[KEYS.endpoint("bench", each.name)] = _endpoint(node.name, *each.addresses)
    on = {address: each.node.name for each in cluster.pods for address in each.addresses}
    for number, spec in enumerate(specs, FIRST_NUMBER):
        port = ServicePort(id=number, name="p", port=spec.port, node_port=spec.node_port)
        values[KEYS.service("bench", spec.name)] = encode(Service(cluster_ips=_packed(spec.vip), ports=(port,)))
        backends = []
        for address, target in spec.backends:
            backends.append(
                Backend(address=pack_address(address), ports={"p": target}, node=on.get(address, ELSEWHERE))
            )
            if address not in on:
                values[KEYS.endpoint("bench", f"{spec.name}-pod")] = _endpoint(ELSEWHERE, address)
        values[KEYS.backends("bench", spec.name, 0)] = encode(BackendShard(backends=tuple(backends)))
    return values


def _endpoint(node: str, *addresses: str) -> bytes:
    return encode(Endpoint(node=node, identity=IDENTITY, addresses=_packed(*addresses)))


def _packed(*addresses: str) -> tuple[bytes, ...]:
    return tuple(map(pack_address, addresses))


def client_inside(cluster: Cluster) -> Pod:
    return pod(cluster, "a")


def client_outside(cluster: Cluster) -> Pod:
    return outside(cluster)
