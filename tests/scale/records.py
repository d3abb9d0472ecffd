"""The population as it lies in etcd: the records that the services would have written of it."""

from collections.abc import Iterator

import msgspec
from tests.scale.population import REGION, Policy, Population, Service, Workload

from endpoint_sync.backends import SHARD, shard_of
from policy_sync.compile import compile_policy
from policy_sync.peers import Peers
from policy_sync.sets import Directory
from policy_sync.subjects import Subjects
from policy_sync.sync import RANKS
from tidegate.kube import objects
from tidegate.records import (
    Backend,
    BackendShard,
    Capacity,
    Endpoint,
    Identity,
    IdentityKeys,
    Keyspace,
    LastWrite,
    Masquerade,
    Node,
    Protocol,
    Record,
    ServicePort,
    Synced,
    encode,
)
from tidegate.records import Service as ServiceRecord
from tidegate.records.addresses import pack_address, pack_cidr
from tidegate.records.capacity import DEFAULT
from tidegate.records.ids import SERVICE_SPACE, Numbering, identity_content, service_port_content
from tidegate.records.shards import shard_count, spread
from tidegate.runtime.http import Health
from tidegate.store.memory import MemoryStore
from tidegate.store.publisher import Publisher

WRITERS = ("endpoint-sync", "policy-sync")


def records(population: Population, keys: Keyspace) -> Iterator[tuple[str, bytes]]:
    """Everything that an agent reads, and what lies beside it; the marks come last."""
    for key, record in _endpoint_side(population, keys):
        yield key, encode(record)
    yield from _policy_side(population, keys)
    for key, record in _marks(keys):
        yield key, encode(record)


def services_alone(population: Population, keys: Keyspace) -> Iterator[tuple[str, bytes]]:
    """The Services and their backends, and what an agent asks for besides: its goal has a figure for this alone."""
    for key, record in _services(population, keys):
        yield key, encode(record)
    for key, record in _marks(keys):
        yield key, encode(record)


def _marks(keys: Keyspace) -> Iterator[tuple[str, Record]]:
    for writer in WRITERS:
        yield keys.last_write(writer), LastWrite(sequence=1, token=bytes(8))
    yield keys.identities_synced(), Synced(epoch=1, loaded=1)
    for writer in WRITERS:
        yield keys.synced(writer), Synced(epoch=1, loaded=1)


def _endpoint_side(population: Population, keys: Keyspace) -> Iterator[tuple[str, Record]]:
    yield (
        keys.capacity(),
        Capacity(backends=DEFAULT.backends, frontends=DEFAULT.frontends, source_ranges=DEFAULT.source_ranges),
    )
    yield keys.masquerade(), Masquerade(non_masquerade=tuple(map(pack_cidr, ("10.0.0.0/8", "172.16.0.0/12"))))
    for node in population.nodes():
        yield (
            keys.node(node.name),
            Node(
                addresses=(pack_address(node.address),),
                pod_cidrs=(pack_cidr(node.pod_cidr),),
                zone=node.zone,
                region=REGION,
            ),
        )
    identities = Numbering()
    for workload in population.workloads():
        identity = identity_of(workload)
        number = identities.take(identity_content(identity))
        yield keys.identity(number), identity
        ports: dict[str, tuple[int, int]] = {name: (Protocol.TCP, port) for name, port in workload.ports.items()}
        for pod in population.pods_of(workload):
            yield (
                keys.endpoint(workload.namespace.name, pod.name),
                Endpoint(
                    node=pod.node.name,
                    identity=number,
                    addresses=(pack_address(pod.address),),
                    ports=ports,
                    workload_kind="Deployment",
                    workload_name=workload.name,
                    uid=pod.uid,
                ),
            )
    yield from _services(population, keys)


def identity_of(workload: Workload) -> Identity:
    return Identity(namespace=workload.namespace.name, labels=dict(sorted(workload.labels.items())))


def _services(population: Population, keys: Keyspace) -> Iterator[tuple[str, Record]]:
    numbers = Numbering(space=SERVICE_SPACE)
    for workload in population.workloads():
        pods = population.pods_of(workload) if workload.serves else []
        for service in population.services_of(workload):
            where = workload.namespace.name, service.name
            yield keys.service(*where), _service(service, numbers.take(service_port_content(*where, service.port_name)))
            backends = [
                Backend(
                    address=pack_address(pod.address),
                    ports={service.port_name: service.target},
                    node=pod.node.name,
                    zone=pod.node.zone,
                )
                for pod in pods
            ]
            for shard, members in _sharded(backends).items():
                yield keys.backends(*where, shard), BackendShard(backends=tuple(members))


def _sharded(backends: list[Backend]) -> dict[int, list[Backend]]:
    count = shard_count(len(backends), SHARD)
    ordered = sorted(backends, key=lambda backend: backend.address)
    return spread(ordered, count, lambda backend: shard_of(backend.address, count))


def _service(service: Service, number: int) -> ServiceRecord:
    port = ServicePort(
        id=number,
        name=service.port_name,
        protocol=Protocol.TCP,
        port=service.port,
        node_port=service.node_port,
    )
    balanced = service.load_balancer_ip
    return ServiceRecord(
        type="LoadBalancer" if balanced else "ClusterIP",
        cluster_ips=(pack_address(service.cluster_ip),),
        load_balancer_ips=(pack_address(balanced),) if balanced else (),
        ports=(port,),
    )


def _policy_side(population: Population, keys: Keyspace) -> Iterator[tuple[str, bytes]]:
    """By policy-sync's own compiler: what it makes of 30,000 policies is its business."""
    publisher = Publisher(MemoryStore(), keys, WRITERS[1], RANKS, (), Health())
    directory = Directory()
    peers = Peers(publisher, directory)
    subjects = Subjects(publisher, directory, peers)
    for namespace in population.namespaces():
        directory.label_namespace(namespace.name, namespace.labels)
    for policy in population.policies():
        subjects.set_policy((policy.namespace, policy.name), compile_policy(policy_object(policy)))
    numbers = Numbering()
    for workload in population.workloads():
        identity = identity_of(workload)
        directory.add(numbers.take(identity_content(identity)), identity)
    for number, identity in directory.identities.items():
        subjects.identity_added(number, identity)
    publisher.put(keys.identity_keys(), IdentityKeys())
    yield from publisher.writer.wanted.items()


def policy_object(policy: Policy) -> objects.NetworkPolicy:
    metadata = {"namespace": policy.namespace, "name": policy.name, "uid": policy.uid}
    return msgspec.convert({"metadata": metadata, "spec": policy.spec}, objects.NetworkPolicy)
