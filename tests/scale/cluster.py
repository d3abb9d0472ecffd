"""A cluster of a Population at an API server that is made for load, and what happens in it.

    python -m tests.scale.cluster --scale 0.1 --kubeconfig FILE

serves it until the end of standard input, with the changes that lines there ask for: `churn PODS POLICIES LIVES`, so
many of them a second from now on. Each is a line of standard output: its time (monotonic, seconds), kind, namespace and
name, of a pod that of its workload. `--kubeconfig` is written once it can be used.
"""

import asyncio
import gc
import itertools
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import yaml
from tests.scale import objects
from tests.scale.apiserver import Item, Key, LoadedApi, serve
from tests.scale.population import Object, Pod, Policy, Population, Service, Workload

from tidegate.kube.watch import ENDPOINT_SLICES, NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICES

TURNS = 200  # a second, in which changes come
LIVES = (70, 15, 10, 5)  # of so many lives: of pods, policies, Services; labels


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


def subjects(of: Population, near: int | None = None) -> list[Workload]:
    """Workloads; with `near`, those that have a pod on the node of that number."""
    return [
        workload
        for workload in of.workloads()
        if near is None or any(pod.node.index == near for pod in of.pods_of(workload))
    ]


class Cluster:
    """What its controllers would do when something happens to a pod or a policy.

    Workloads take turns, in an order drawn once: what has changed has long been written when it changes again.
    """

    def __init__(self, of: Population, seed: int = 0, near: int | None = None) -> None:
        """`near`: policies that change are of pods of the node of that number."""
        self.population = of
        self.api = LoadedApi()
        self.api.fill(items(of))
        self._random = random.Random(f"{seed} churn")  # noqa: S311  # not for secrets
        self._served = self._turns([workload for workload in of.workloads() if workload.serves])
        self._judged = self._turns(subjects(of, near))
        self._unready: defaultdict[str, set[str]] = defaultdict(set)  # namespace → names
        self._gone: set[tuple[str, Key]] = set()  # path of the kind, key
        self._versions: Counter[int] = Counter()  # workload's index → how often its pods have been labelled anew
        self._ports = itertools.count(10_000)

    def _turns(self, workloads: list[Workload]) -> Iterator[Workload]:
        self._random.shuffle(workloads)
        return itertools.cycle(workloads)

    def pods_of(self, workload: Workload) -> list[Pod]:
        """Those that are there, as they are labelled now."""
        where, version = workload.namespace.name, self._versions[workload.index]
        if version:
            workload = replace(workload, labels={**workload.labels, "version": str(version)})
        pods = self.population.pods_of(workload)
        return [pod for pod in pods if (PODS.path, (where, pod.name)) not in self._gone]

    def change_pod(self) -> Pod:
        """Some pod of a Service is not ready any more, or is again: its status, and its place in its slices."""
        workload = next(self._served)
        pods = self.pods_of(workload)
        pod = self._random.choice(pods)
        self._unready[workload.namespace.name] ^= {pod.name}
        self._put_pod(pod)
        for service in self.population.services_of(workload):
            self._put_slices(service, pods, pod)
        return pod

    def _put_pod(self, pod: Pod) -> None:
        where = pod.workload.namespace.name
        ready = pod.name not in self._unready[where]
        self.api.put(PODS.path, (where, pod.name), objects.pod(pod, self.api.next_version, ready=ready))

    def _put_slices(self, service: Service, pods: list[Pod], changed: Pod | None = None) -> None:
        """Those of a pod, or all of them."""
        where = service.workload.namespace.name
        if (SERVICES.path, (where, service.name)) in self._gone:
            return
        unready = self._unready[where]
        for name, chunk in objects.slices(service, pods):
            if changed is None or changed in chunk:
                item = objects.endpoint_slice(service, name, chunk, self.api.next_version, unready)
                self.api.put(ENDPOINT_SLICES.path, (where, name), item)

    def change_policy(self) -> Policy:
        """Some policy allows another port."""
        policy = self._random.choice(self._policies_of(next(self._judged)))
        spec = with_port(policy.spec, 10_000 + next(self._ports) % 20_000)
        key = policy.namespace, policy.name
        self.api.put(NETWORK_POLICIES.path, key, objects.policy(policy, self.api.next_version, spec))
        return policy

    def _policies_of(self, workload: Workload) -> list[Policy]:
        """Those that are there, and there is always one."""
        policies = self.population.policies_of(workload)
        gone = [(NETWORK_POLICIES.path, (policy.namespace, policy.name)) in self._gone for policy in policies]
        return [policy for policy, away in zip(policies, gone, strict=True) if not away]

    def change_life(self) -> None:
        """A pod, a Service or a policy goes, or comes again; or all pods of a workload get another label."""
        workload = next(self._random.choice((self._served, self._judged)))
        change = self._random.choices((self._pod_lives, self._policy_lives, self._service_lives, self._label), LIVES)
        change[0](workload)

    def _turn(self, path: str, key: Key, *, last: bool = False) -> bool:
        """Whether it goes now: it has not gone, and is not the last one."""
        going = (path, key) not in self._gone and not last
        (self._gone.add if going else self._gone.discard)((path, key))
        return going

    def _pod_lives(self, workload: Workload) -> None:
        pod = self._random.choice(self.population.pods_of(workload))
        key = workload.namespace.name, pod.name
        if self._turn(PODS.path, key, last=len(self.pods_of(workload)) == 1):
            self.api.delete(PODS.path, key, objects.pod(pod, self.api.next_version))
        else:
            self._put_pod(next(each for each in self.pods_of(workload) if each.name == pod.name))
        for service in self.population.services_of(workload):
            self._put_slices(service, self.pods_of(workload))

    def _policy_lives(self, workload: Workload) -> None:
        policy = self._random.choice(self.population.policies_of(workload))
        key = policy.namespace, policy.name
        item = objects.policy(policy, self.api.next_version)
        if self._turn(NETWORK_POLICIES.path, key, last=len(self._policies_of(workload)) == 1):
            self.api.delete(NETWORK_POLICIES.path, key, item)
        else:
            self.api.put(NETWORK_POLICIES.path, key, item)

    def _service_lives(self, workload: Workload) -> None:
        for service in self.population.services_of(workload)[:1]:
            key = workload.namespace.name, service.name
            pods = self.pods_of(workload)
            if self._turn(SERVICES.path, key):
                self.api.delete(SERVICES.path, key, objects.service(service, self.api.next_version))
                for name, chunk in objects.slices(service, pods):
                    item = objects.endpoint_slice(service, name, chunk, self.api.next_version)
                    self.api.delete(ENDPOINT_SLICES.path, (key[0], name), item)
            else:
                self.api.put(SERVICES.path, key, objects.service(service, self.api.next_version))
                self._put_slices(service, pods)

    def _label(self, workload: Workload) -> None:
        self._versions[workload.index] += 1
        for pod in self.pods_of(workload):
            self._put_pod(pod)


def with_port(spec: Object, port: int) -> Object:
    """The rules' last port is this one."""
    direction = "ingress" if "ingress" in spec else "egress"
    *before, last = spec[direction]
    return {**spec, direction: [*before, {**last, "ports": [{"protocol": "TCP", "port": port}]}]}


async def churn(cluster: Cluster, pods: float, policies: float, lives: float = 0) -> None:
    """So many changes a second of each, evenly, also after a delay. Never returns."""

    def change_pod() -> None:
        pod = cluster.change_pod()
        _tell("pod", pod.workload.namespace.name, pod.workload.name)

    def change_policy() -> None:
        policy = cluster.change_policy()
        _tell("policy", policy.namespace, policy.name)

    loop = asyncio.get_running_loop()
    began = loop.time()
    done: Counter[int] = Counter()
    rates = ((change_pod, pods), (change_policy, policies), (cluster.change_life, lives))
    while True:
        passed = loop.time() - began
        for number, (change, rate) in enumerate(rates):
            while done[number] < passed * rate:
                change()
                done[number] += 1
                await asyncio.sleep(0)  # who is behind still tells of what it has done
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
            _, *rates = line.split()
            if changes is not None:
                changes.cancel()
            changes = asyncio.create_task(churn(cluster, *map(float, rates)))
        if changes is not None:
            changes.cancel()


@click.command()
@click.option("--scale", default=1.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--near", type=int, default=None, help="Policies that change are of pods of the node of this number.")
@click.option("--kubeconfig", "file", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(scale: float, seed: int, near: int | None, file: Path) -> None:
    """Serves a cluster."""
    asyncio.run(_serve(Cluster(Population(scale, seed), seed, near), file))


if __name__ == "__main__":
    main()
