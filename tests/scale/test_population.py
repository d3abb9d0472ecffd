"""The population has the sizes that it says, and everything in it is somewhere and itself alone."""

from collections import Counter

import pytest
from tests.scale.population import Population

FULL = {"nodes": 7500, "pods": 200_000, "services": 10_000, "identities": 6000, "policies": 30_000}


def sizes(population: Population) -> dict[str, int]:
    return {
        "nodes": population.node_count,
        "pods": population.pod_count,
        "services": population.service_count,
        "identities": population.workload_count,
        "policies": population.policy_count,
    }


@pytest.mark.parametrize(("scale", "part"), [(1, 1), (1 / 10, 10), (1 / 20, 20)])
def test_sizes(scale: float, part: int) -> None:
    assert sizes(Population(scale)) == {name: size // part for name, size in FULL.items()}


def test_full_size_has_load_balancers_and_backends_to_the_limit() -> None:
    services = list(Population().services())
    assert sum(service.workload.replicas for service in services) == 260_000
    balanced = [service for service in services if service.load_balancer_ip]
    assert len(balanced) == 750
    assert max(service.node_port for service in balanced) <= 32767


def test_everything_is_there_once_as_often_as_it_is_counted() -> None:
    population = Population(1 / 20)
    pods, services, policies = list(population.pods()), list(population.services()), list(population.policies())
    workloads = list(population.workloads())
    counted = len(list(population.nodes())), len(pods), len(services), len(workloads), len(policies)
    assert counted == tuple(sizes(population).values())
    for unique in (
        [pod.address for pod in pods] + [node.address for node in population.nodes()],
        [pod.uid for pod in pods] + [item.uid for item in services] + [item.uid for item in policies],
        [(pod.workload.namespace.name, pod.name) for pod in pods],
        [service.cluster_ip for service in services] + [s.load_balancer_ip for s in services if s.load_balancer_ip],
        [(service.workload.namespace.name, service.name) for service in services],
        [(policy.namespace, policy.name) for policy in policies],
        [(workload.namespace.name, tuple(workload.labels.items())) for workload in workloads],
    ):
        assert len(set(unique)) == len(unique)
    a_node = Counter(pod.node.name for pod in pods)
    assert len(a_node) == population.node_count
    assert max(a_node.values()) - min(a_node.values()) <= 1


def test_the_same_again() -> None:
    def drawn(seed: int) -> tuple[list[object], list[object]]:
        population = Population(1 / 100, seed)
        return list(population.pods()), list(population.policies())

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
