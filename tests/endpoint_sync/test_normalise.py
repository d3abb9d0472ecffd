"""Objects of the API to records, and what is refused. The rules are those of the API reference."""

from typing import Any

import msgspec
import pytest
from tests.endpoint_sync.world import Object, endpoint_slice, node, pod, service

from endpoint_sync.normalise import (
    FrontendPort,
    ObjectError,
    identity_of,
    merge,
    node_record,
    pod_facts,
    service_facts,
    slice_backends,
)
from tidegate.kube import objects
from tidegate.records import Backend, HostPort, Protocol, Service
from tidegate.records.addresses import pack_address, pack_cidr, unpack_address, unpack_cidr


def parsed(kind: type[objects.T], item: Object) -> objects.T:
    return msgspec.json.decode(msgspec.json.encode(item), type=kind)


# Pods


def changed(item: Object, **sections: Any) -> Object:
    """The object with other fields in its spec, status or metadata."""
    return {**item, **{name: {**item.get(name, {}), **fields} for name, fields in sections.items()}}


POD = pod("shop/web", "10.0.0.1", {"app": "web"}, {"http": ("TCP", 8080)}, uid="u1")


def test_a_pod() -> None:
    facts = pod_facts(parsed(objects.Pod, POD))
    assert facts is not None
    assert (facts.node, facts.labels, facts.uid) == ("n1", (("app", "web"),), "u1")
    assert facts.addresses == (pack_address("10.0.0.1"),)
    assert facts.ports == (("http", (Protocol.TCP, 8080)),)
    assert not facts.terminating


@pytest.mark.parametrize(
    "item",
    [
        changed(POD, spec={"hostNetwork": True}),
        changed(POD, status={"phase": "Succeeded"}),
        changed(POD, status={"phase": "Failed"}),
        changed(POD, spec={"nodeName": ""}),
    ],
    ids=["host network", "succeeded", "failed", "not scheduled"],
)
def test_pods_that_are_no_endpoints(item: Object) -> None:
    assert pod_facts(parsed(objects.Pod, item)) is None


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown", ""])
def test_in_every_other_phase_a_pod_is_an_endpoint(phase: str) -> None:
    """Init containers send packets while the pod is Pending; of one that is Unknown only the kubelet is silent."""
    assert pod_facts(parsed(objects.Pod, changed(POD, status={"phase": phase}))) is not None


def test_a_pod_that_goes_has_its_address_until_it_has_finished() -> None:
    item = changed(POD, metadata={"deletionTimestamp": "2026-01-01T00:00:30Z", "creationTimestamp": "2026-01-01"})
    facts = pod_facts(parsed(objects.Pod, item))
    assert facts is not None
    assert facts.terminating
    assert facts.created == "2026-01-01"
    assert facts.addresses == (pack_address("10.0.0.1"),)


@pytest.mark.parametrize(
    ("status", "addresses"),
    [
        ({"podIP": "", "podIPs": None}, []),
        ({"podIP": "10.0.0.1", "podIPs": None}, ["10.0.0.1"]),
        ({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}, ["10.0.0.1", "fd00::1"]),
        ({"podIP": "fd00::1", "podIPs": [{"ip": "fd00::1"}]}, ["fd00::1"]),
        ({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "::ffff:10.0.0.1"}]}, ["10.0.0.1"]),
    ],
)
def test_addresses_of_pods(status: Object, addresses: list[str]) -> None:
    facts = pod_facts(parsed(objects.Pod, changed(POD, status=status)))
    assert facts is not None
    assert [unpack_address(address) for address in facts.addresses] == addresses


def test_port_names_of_containers_and_sidecars() -> None:
    containers = [
        {"ports": [{"containerPort": 80}, {"containerPort": 81, "name": "a"}]},
        {"ports": [{"containerPort": 82, "name": "a"}, {"containerPort": 53, "name": "dns", "protocol": "UDP"}]},
    ]
    inits = [
        {"ports": [{"containerPort": 90, "name": "gone"}]},
        {"restartPolicy": "Always", "ports": [{"containerPort": 91, "name": "mesh"}]},
    ]
    facts = pod_facts(parsed(objects.Pod, changed(POD, spec={"containers": containers, "initContainers": inits})))
    assert facts is not None
    assert facts.ports == (("a", (Protocol.TCP, 81)), ("dns", (Protocol.UDP, 53)), ("mesh", (Protocol.TCP, 91)))


def test_host_ports() -> None:
    ports = [
        {"containerPort": 80, "hostPort": 8080},
        {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "172.16.0.1", "name": "dns"},
        {"containerPort": 81, "hostPort": 81, "hostIP": "0.0.0.0"},
        {"containerPort": 82},
    ]
    facts = pod_facts(parsed(objects.Pod, changed(POD, spec={"containers": [{"ports": ports}]})))
    assert facts is not None
    assert facts.host_ports == (
        HostPort(port=8080, target=80),
        HostPort(protocol=Protocol.UDP, port=53, target=53, address=pack_address("172.16.0.1")),
        HostPort(port=81, target=81),
    )
    assert facts.ports == (("dns", (Protocol.UDP, 53)),)


REPLICA_SET = {"kind": "ReplicaSet", "name": "web-5d", "controller": True}


@pytest.mark.parametrize(
    ("owners", "labels", "workload"),
    [
        ([], {}, ("Pod", "web")),
        ([REPLICA_SET], {"pod-template-hash": "5d"}, ("Deployment", "web")),
        ([REPLICA_SET], {}, ("ReplicaSet", "web-5d")),
        ([{"kind": "X", "name": "x"}, {**REPLICA_SET, "kind": "StatefulSet"}], {}, ("StatefulSet", "web-5d")),
    ],
)
def test_workloads(owners: list[Object], labels: dict[str, str], workload: tuple[str, str]) -> None:
    item = changed(POD, metadata={"ownerReferences": owners, "labels": labels})
    facts = pod_facts(parsed(objects.Pod, item))
    assert facts is not None
    assert facts.workload == workload


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (changed(POD, status={"podIP": "10.0.0.300", "podIPs": None}), "podIPs"),
        (changed(POD, spec={"containers": [{"ports": [{"name": "a", "containerPort": 70000}]}]}), "70000 is no port"),
        (changed(POD, spec={"containers": [{"ports": [{"name": "a", "containerPort": 1, "protocol": "X"}]}]}), "'X'"),
    ],
)
def test_pods_that_cannot_be_understood(item: Object, message: str) -> None:
    with pytest.raises(ObjectError, match=message):
        pod_facts(parsed(objects.Pod, item))


def test_what_makes_an_identity() -> None:
    labels = {"app": "web", "pod-template-hash": "h", "controller-revision-hash": "r"}
    facts = pod_facts(parsed(objects.Pod, pod("shop/web", "10.0.0.1", labels, {"http": ("TCP", 80), "x": ("TCP", 81)})))
    assert facts is not None
    plain = identity_of("shop", facts.labels, facts.ports, frozenset(), frozenset())
    assert (plain.namespace, plain.labels, plain.ports) == ("shop", {"app": "web"}, {})
    asked = identity_of(
        "shop", facts.labels, facts.ports, frozenset({"pod-template-hash"}), frozenset({"http", "none"})
    )
    assert asked.labels == {"app": "web", "pod-template-hash": "h"}
    assert asked.ports == {"http": (Protocol.TCP, 80)}


# Nodes


def test_a_node() -> None:
    item = node("n1", "172.16.0.1", "fd00::1", cidr="10.1.0.0/24")
    item["status"]["addresses"].insert(0, {"type": "ExternalIP", "address": "198.51.100.1"})
    item["status"]["addresses"].insert(0, {"type": "Hostname", "address": "n1"})
    item["metadata"]["labels"] = {"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"}
    record = node_record(parsed(objects.Node, item))
    assert [unpack_address(a) for a in record.addresses] == ["172.16.0.1", "fd00::1", "198.51.100.1"]
    assert [unpack_cidr(*cidr) for cidr in record.pod_cidrs] == ["10.1.0.0/24"]
    assert (record.zone, record.region) == ("z", "r")


def test_both_pod_cidrs_of_a_node() -> None:
    item = changed(node("n1", cidr="10.1.0.0/24"), spec={"podCIDRs": ["10.1.0.0/24", "fd01::/64"]})
    record = node_record(parsed(objects.Node, item))
    assert [unpack_cidr(*cidr) for cidr in record.pod_cidrs] == ["10.1.0.0/24", "fd01::/64"]


@pytest.mark.parametrize("item", [node("n1", "172.16.0.x"), node("n1", cidr="10.1.0.0/33"), node("n1", cidr="all")])
def test_nodes_that_cannot_be_understood(item: Object) -> None:
    with pytest.raises(ObjectError):
        node_record(parsed(objects.Node, item))


# Services


def test_a_service() -> None:
    ports = {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53, "nodePort": 30053}
    facts = service_facts(parsed(objects.Service, service("shop/web", "10.96.0.1", *ports, type="NodePort")))
    assert facts is not None
    assert facts.record.cluster_ips == (pack_address("10.96.0.1"),)
    assert facts.ports == (
        FrontendPort("dns", Protocol.UDP, 53, 0),
        FrontendPort("tcp", Protocol.TCP, 53, 30053),
    )


def test_both_addresses_of_a_service() -> None:
    item = service("shop/web", "10.96.0.1", 80, clusterIPs=["10.96.0.1", "fd96::1"])
    facts = service_facts(parsed(objects.Service, item))
    assert facts is not None
    assert [unpack_address(ip) for ip in facts.record.cluster_ips] == ["10.96.0.1", "fd96::1"]


def record_of(**fields: Any) -> Service:
    """The record of a Service with these sections added to."""
    facts = service_facts(parsed(objects.Service, changed(service("shop/web", "10.96.0.1", 80), **fields)))
    assert facts is not None
    return facts.record


NINE_SECONDS = {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 9}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"externalIPs": ["203.0.113.1"]}, {"external_ips": (pack_address("203.0.113.1"),)}),
        ({"internalTrafficPolicy": "Local"}, {"internal_local": True}),
        ({"internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster"}, {}),
        ({"externalTrafficPolicy": "Local"}, {"external_local": True}),
        ({"healthCheckNodePort": 32000}, {"health_port": 32000}),
        ({"sessionAffinity": "None"}, {}),
        ({"sessionAffinity": "ClientIP"}, {"affinity_seconds": 10800}),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, {"affinity_seconds": 10800}),
        ({"sessionAffinity": "ClientIP", **NINE_SECONDS}, {"affinity_seconds": 9}),
        (NINE_SECONDS, {}),
        (
            {"loadBalancerSourceRanges": [" 10.0.0.0/8", "fd00::/8"]},
            {"source_ranges": (pack_cidr("10.0.0.0/8"), pack_cidr("fd00::/8"))},
        ),
    ],
)
def test_what_a_service_asks_for(fields: Object, expected: dict[str, Any]) -> None:
    cluster_ips = (pack_address("10.96.0.1"),)
    assert record_of(spec=fields) == Service(cluster_ips=cluster_ips, **expected)


def test_addresses_of_load_balancers() -> None:
    ingress = [
        {"ip": "203.0.113.1"},
        {"ip": "203.0.113.2", "ipMode": "VIP"},
        {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.com"},
    ]
    record = record_of(status={"loadBalancer": {"ingress": ingress}})
    assert [unpack_address(ip) for ip in record.load_balancer_ips] == ["203.0.113.1", "203.0.113.2"]


LABELLED = [
    {"labels": {name: "x"}} for name in ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")
]


@pytest.mark.parametrize(
    "item",
    [
        service("shop/web", "None", 80),
        service("shop/web", "", 80),
        service("shop/web", "", type="ExternalName", externalName="example.com"),
        *(changed(service("shop/web", "10.96.0.1", 80), metadata=labels) for labels in LABELLED),
    ],
)
def test_services_without_frontends_of_ours(item: Object) -> None:
    assert service_facts(parsed(objects.Service, item)) is None


@pytest.mark.parametrize(
    "item",
    [
        service("shop/web", "10.96.0", 80),
        service("shop/web", "10.96.0.1", 0),
        service("shop/web", "10.96.0.1", {"port": 80, "protocol": "ICMP"}),
        service("shop/web", "10.96.0.1", {"port": 80, "nodePort": 65536}),
        service("shop/web", "10.96.0.1", 80, externalIPs=["x"]),
        service("shop/web", "10.96.0.1", 80, loadBalancerSourceRanges=["10.0.0.0/40"]),
        service("shop/web", "10.96.0.1", 80, healthCheckNodePort=70000),
        service(
            "shop/web",
            "10.96.0.1",
            80,
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 86401}},
        ),
    ],
)
def test_services_that_cannot_be_understood(item: Object) -> None:
    with pytest.raises(ObjectError):
        service_facts(parsed(objects.Service, item))


# EndpointSlices


def backends(item: Object) -> dict[str, Backend]:
    found = slice_backends(parsed(objects.EndpointSlice, item))
    return {unpack_address(address): backend for address, backend in found.items()}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
        ({"ready": True, "serving": False}, (True, False, False)),
    ],
)
def test_absent_conditions(conditions: Object | None, expected: tuple[bool, bool, bool]) -> None:
    (backend,) = backends(
        endpoint_slice("shop/s", "web", {"addresses": ["10.0.0.1"], "conditions": conditions})
    ).values()
    assert (backend.ready, backend.serving, backend.terminating) == expected


def test_of_an_endpoint_the_first_address_counts() -> None:
    item = endpoint_slice("shop/s", "web", {"addresses": ["10.0.0.1", "10.0.0.2"], "nodeName": "n1", "zone": "z"})
    found = backends(item)
    assert list(found) == ["10.0.0.1"]
    assert (found["10.0.0.1"].node, found["10.0.0.1"].zone) == ("n1", "z")


def test_ports_of_a_slice_by_name() -> None:
    ports = [{"name": "a", "port": 1}, {"name": None, "port": 2}, {"name": "open"}]
    (backend,) = backends(endpoint_slice("shop/s", "web", "10.0.0.1", ports=ports)).values()
    assert backend.ports == {"a": 1, "": 2}


def test_hints() -> None:
    hints = {"forZones": [{"name": "b"}, {"name": "a"}], "forNodes": [{"name": "n1"}]}
    (backend,) = backends(endpoint_slice("shop/s", "web", {"addresses": ["10.0.0.1"], "hints": hints})).values()
    assert (backend.for_zones, backend.for_nodes) == (("a", "b"), ("n1",))
    (backend,) = backends(endpoint_slice("shop/s", "web", {"addresses": ["10.0.0.1"], "hints": {}})).values()
    assert (backend.for_zones, backend.for_nodes) == ((), ())


def test_slices_of_names_lead_nowhere() -> None:
    assert backends(endpoint_slice("shop/s", "web", "example.com", addressType="FQDN")) == {}


def test_a_slice_without_ports_or_endpoints() -> None:
    assert backends(endpoint_slice("shop/s", "web", endpoints=None, ports=None)) == {}
    (backend,) = backends(endpoint_slice("shop/s", "web", "10.0.0.1", ports=None)).values()
    assert backend.ports == {}


@pytest.mark.parametrize(
    "item",
    [
        endpoint_slice("shop/s", "web", "10.0.0.x"),
        endpoint_slice("shop/s", "web", "fd00::1"),
        endpoint_slice("shop/s", "web", "10.0.0.1", addressType="IPv6"),
        endpoint_slice("shop/s", "web", "10.0.0.1", port=0),
        endpoint_slice("shop/s", "web", "10.0.0.1", ports=[{"port": 80, "protocol": "IPX"}]),
    ],
)
def test_slices_that_cannot_be_understood(item: Object) -> None:
    with pytest.raises(ObjectError):
        backends(item)


def test_slices_of_the_other_family() -> None:
    assert list(backends(endpoint_slice("shop/s", "web", "fd00::1", addressType="IPv6"))) == ["fd00::1"]


SERVING = Backend(address=pack_address("10.0.0.1"), ready=False, serving=True)
SERVING_AND_GOING = Backend(address=pack_address("10.0.0.1"), ready=False, serving=True, terminating=True)
DOWN = Backend(address=pack_address("10.0.0.1"), ready=False, serving=False)


@pytest.mark.parametrize(
    ("better", "worse"), [(SERVING, DOWN), (SERVING_AND_GOING, DOWN), (SERVING, SERVING_AND_GOING)]
)
def test_of_two_slices_the_more_able_state_counts(better: Backend, worse: Backend) -> None:
    assert merge([better, worse]) == merge([worse, better]) == better


def test_an_address_in_two_slices_is_as_able_as_its_better_half() -> None:
    address = pack_address("10.0.0.1")
    going = Backend(address=address, ports={"a": 1, "b": 2}, ready=False, serving=True, terminating=True, node="n1")
    ready = Backend(address=address, ports={"a": 9}, node="n2")
    for order in ([going, ready], [ready, going]):
        assert merge(order) == Backend(address=address, ports={"a": 9, "b": 2}, node="n2")
