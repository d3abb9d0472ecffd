"""The generator of records writes what the services write of the same objects, byte for byte."""

import asyncio

from tests.endpoint_sync.world import KEYS, Object, World, endpoint_slice, namespace, node, pod, policy, service
from tests.scale.population import REGION, Pod, Population, Service
from tests.scale.records import records, services_alone

SMALL = 1 / 250  # two namespaces


def objects(population: Population) -> list[Object]:
    found: list[Object] = []
    for machine in population.nodes():
        item = node(machine.name, machine.address, cidr=machine.pod_cidr)
        item["metadata"]["labels"] = {
            "topology.kubernetes.io/zone": machine.zone,
            "topology.kubernetes.io/region": REGION,
        }
        found.append(item)
    found += [namespace(n.name, **n.labels) for n in population.namespaces()]
    found += [_pod(p) for p in population.pods()]
    for service_ in population.services():
        found += [_service(service_), _slice(service_, population.pods_of(service_.workload))]
    for wanted in population.policies():
        item = policy(f"{wanted.namespace}/{wanted.name}")
        item["metadata"]["uid"], item["spec"] = wanted.uid, wanted.spec
        found.append(item)
    return found


def _pod(item: Pod) -> Object:
    workload = item.workload
    owner = {"kind": "ReplicaSet", "name": f"{workload.name}-{workload.template_hash}", "controller": True}
    return pod(
        f"{workload.namespace.name}/{item.name}",
        item.address,
        {**workload.labels, "pod-template-hash": workload.template_hash},
        {name: ("TCP", port) for name, port in workload.ports.items()},
        item.node.name,
        uid=item.uid,
        ownerReferences=[owner],
    )


def _service(item: Service) -> Object:
    port = {"name": item.port_name, "port": item.port, **({"nodePort": item.node_port} if item.node_port else {})}
    where = f"{item.workload.namespace.name}/{item.name}"
    if not item.load_balancer_ip:
        return service(where, item.cluster_ip, port)
    found = service(where, item.cluster_ip, port, type="LoadBalancer")
    found["status"] = {"loadBalancer": {"ingress": [{"ip": item.load_balancer_ip, "ipMode": "VIP"}]}}
    return found


def _slice(item: Service, pods: list[Pod]) -> Object:
    endpoints = [{"addresses": [each.address], "nodeName": each.node.name, "zone": each.node.zone} for each in pods]
    ports = [{"name": item.port_name, "port": item.target}]
    where = f"{item.workload.namespace.name}/{item.name}-abc12"
    return endpoint_slice(where, item.name, *endpoints, ports=ports)


def test_records_are_those_of_the_services() -> None:
    async def work() -> None:
        population, world = Population(SMALL), World()
        async with world.running():
            world.put(*objects(population))
            await world.settle()
            assert world.problems() == {}
            written = world.values()
        generated = {key.removeprefix(KEYS.prefix): value for key, value in records(population, KEYS)}
        beside = {key for key in generated if key.startswith(("meta/synced/", "meta/writer/"))} | {"identities/synced"}
        generated = {key: value for key, value in generated.items() if key not in beside}
        del written["config/masquerade"], generated["config/masquerade"]  # a ConfigMap's
        assert generated.keys() == written.keys()
        assert generated == written

    asyncio.run(work())


def test_services_alone_are_a_part() -> None:
    whole = dict(records(Population(SMALL), KEYS))
    part = dict(services_alone(Population(SMALL), KEYS))
    assert part.items() <= whole.items()
    assert {key.removeprefix(KEYS.prefix).split("/")[0] for key in part} == {
        "services",
        "backends",
        "meta",
        "identities",
    }
