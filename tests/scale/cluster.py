"""A cluster of a Population at an API server that is made for load, and what happens in it.

    python -m tests.scale.cluster --scale 0.1 --kubeconfig FILE

serves it until the end of standard input, with the changes that lines there ask for: `churn PODS POLICIES`, so many of
them a second from now on. Each is a line of standard output: its time (monotonic, seconds), kind, namespace and name,
of a pod that of its workload. `--kubeconfig` is written once it can be used.
"""

import asyncio
import gc
import itertools
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import yaml
from tests.scale import objects
from tests.scale.apiserver import Item, LoadedApi, serve
from tests.scale.population import Object, Pod, Policy, Population, Service

from tidegate.kube.watch import ENDPOINT_SLICES, NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICES

TURNS = 200  # a second, in which changes come


def items(of: Population, first: int = 2) -> Iterator[Item]:
    """All objects, pods ready, with versions that follow each other."""
    version = itertools.count(first)
    for space in of.namespaces():
        yield NAMESPACES.path, ("", space.name), objects.namespace(space, next(version))
    for node in of.nodes():
        yield NODES.path, ("", node.name), objects.node(node, next(version))
    for workload in of.workloads():
        where, pods = workload.namespace.name, of.pods_of(workload)
        for pod in pods:
            yield PODS.path, (where, pod.name), objects.pod(pod, next(version))
        for service in of.services_of(workload):
            yield SERVICES.path, (where, service.name), objects.service(service, next(version))
            for name, chunk in objects.slices(service, pods):
                yield ENDPOINT_SLICES.path, (where, name), objects.endpoint_slice(service, name, chunk, next(version))
        for policy in of.policies_of(workload):
            yield NETWORK_POLICIES.path, (where, policy.name), objects.policy(policy, next(version))


class Cluster:
    """What its controllers would do when something happens to a pod or a policy."""

    def __init__(self, of: Population, seed: int = 0) -> None:
        self.population = of
        self.api = LoadedApi()
        self.api.fill(items(of))
        self._random = random.Random(f"{seed} churn")  # noqa: S311  # not for secrets
        self._workloads = [workload for workload in of.workloads() if workload.serves]
        self._unready: set[tuple[str, str]] = set()
        self._ports = itertools.count(10_000)

    def change_pod(self) -> Pod:
        """Some pod of a Service is not ready any more, or is again: its status, and its place in its slices."""
        workload = self._random.choice(self._workloads)
        pods = self.population.pods_of(workload)
        pod = self._random.choice(pods)
        key = workload.namespace.name, pod.name
        self._unready ^= {key}
        self.api.put(PODS.path, key, objects.pod(pod, self.api.next_version, ready=key not in self._unready))
        for service in self.population.services_of(workload):
            self._put_slices(service, pods, pod)
        return pod

    def _put_slices(self, service: Service, pods: list[Pod], changed: Pod) -> None:
        where = service.workload.namespace.name
        unready = frozenset(name for namespace, name in self._unready if namespace == where)
        for name, chunk in objects.slices(service, pods):
            if changed in chunk:
                item = objects.endpoint_slice(service, name, chunk, self.api.next_version, unready)
                self.api.put(ENDPOINT_SLICES.path, (where, name), item)

    def change_policy(self) -> Policy:
        """Some policy allows another port."""
        policy = self._random.choice(self.population.policies_of(self._random.choice(self._workloads)))
        spec = with_port(policy.spec, 10_000 + next(self._ports) % 20_000)
        key = policy.namespace, policy.name
        self.api.put(NETWORK_POLICIES.path, key, objects.policy(policy, self.api.next_version, spec))
        return policy


def with_port(spec: Object, port: int) -> Object:
    """The rules' last port is this one."""
    direction = "ingress" if "ingress" in spec else "egress"
    *before, last = spec[direction]
    return {**spec, direction: [*before, {**last, "ports": [{"protocol": "TCP", "port": port}]}]}


async def churn(cluster: Cluster, pods: float, policies: float) -> None:
    """So many changes a second of each, evenly, also after a delay. Never returns."""
    loop = asyncio.get_running_loop()
    began, done_pods, done_policies = loop.time(), 0, 0
    while True:
        passed = loop.time() - began
        while done_pods < passed * pods:
            pod = cluster.change_pod()
            _tell("pod", pod.workload.namespace.name, pod.workload.name)
            done_pods += 1
        while done_policies < passed * policies:
            policy = cluster.change_policy()
            _tell("policy", policy.namespace, policy.name)
            done_policies += 1
        await asyncio.sleep(1 / TURNS)


def _tell(kind: str, namespace: str, name: str) -> None:
    click.echo(f"{time.monotonic()} {kind} {namespace} {name}")


def kubeconfig(server: str) -> str:
    named = {"name": "load"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{**named, "cluster": {"server": server}}],
            "users": [{**named, "user": {}}],
            "contexts": [{**named, "context": {"cluster": "load", "user": "load"}}],
            "current-context": "load",
        }
    )


async def _serve(cluster: Cluster, file: Path) -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    # What is there stays: looking through it again and again would hold up what is measured.
    gc.freeze()
    async with serve(cluster.api) as address:
        # Whoever waits for the file must not find a part of it.
        fresh = file.with_suffix(".new")
        fresh.write_text(kubeconfig(address))
        fresh.rename(file)
        changes: asyncio.Task[None] | None = None
        async for line in orders:
            _, pods, policies = line.split()
            if changes is not None:
                changes.cancel()
            changes = asyncio.create_task(churn(cluster, float(pods), float(policies)))
        if changes is not None:
            changes.cancel()


@click.command()
@click.option("--scale", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--kubeconfig", "file", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(scale: float, seed: int, file: Path) -> None:
    """Serves a cluster."""
    asyncio.run(_serve(Cluster(Population(scale, seed), seed), file))


if __name__ == "__main__":
    main()
