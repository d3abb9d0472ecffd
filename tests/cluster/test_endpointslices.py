"""The playground's EndpointSlice controller, its pure part: what Services and pods become."""

from typing import Any

import msgspec
import pytest

from playground.endpointslices import LARGEST, MANAGED_BY, MANAGER, selects, slices
from playground.topology import allocate
from tidegate.kube.objects import Pod, Service


def service(*ports: dict[str, Any], **spec: Any) -> Service:
    item = {
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": ports, **spec},
    }
    return msgspec.convert(item, Service)


def pod(name: str, *ips: str, ready: bool = True, going: bool = False, port: int = 8080, app: str = "web") -> Pod:
    metadata: dict[str, Any] = {"namespace": "shop", "name": name, "labels": {"app": app}}
    if going:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    item = {
        "metadata": metadata,
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "podIPs": [{"ip": ip} for ip in ips],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }
    return msgspec.convert(item, Pod)


def made(service: Service, *pods: Pod) -> list[dict[str, Any]]:
    return list(slices(service, list(pods), {"n1": "z"}).values())


def test_a_slice() -> None:
    (item,) = made(service({"name": "a", "port": 80, "targetPort": "http"}), pod("p", "10.0.0.1"))
    assert item["metadata"]["labels"] == {"kubernetes.io/service-name": "web", MANAGED_BY: MANAGER}
    assert item["ports"] == [{"name": "a", "port": 8080, "protocol": "TCP"}]
    (endpoint,) = item["endpoints"]
    assert endpoint["addresses"] == ["10.0.0.1"]
    assert endpoint["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert (endpoint["nodeName"], endpoint["zone"], endpoint["targetRef"]["name"]) == ("n1", "z", "p")


def test_conditions() -> None:
    pods = [
        pod("a", "10.0.0.1", ready=False),
        pod("b", "10.0.0.2", going=True),
        pod("c", "10.0.0.3", ready=False, going=True),
    ]

    def conditions(service: Service) -> list[tuple[bool, bool, bool]]:
        (item,) = made(service, *pods)
        found = [endpoint["conditions"] for endpoint in item["endpoints"]]
        return [(c["ready"], c["serving"], c["terminating"]) for c in found]

    assert conditions(service({"port": 80})) == [(False, False, False), (False, True, True), (False, False, True)]
    open_to_all = service({"port": 80}, publishNotReadyAddresses=True)
    assert [ready for ready, _, _ in conditions(open_to_all)] == [True, True, True]


def test_target_ports() -> None:
    ports = [
        {"name": "same", "port": 80},
        {"name": "other", "port": 81, "targetPort": 9},
        {"name": "none", "port": 82, "targetPort": "x"},
    ]
    (item,) = made(service(*ports), pod("p", "10.0.0.1"))
    assert [(port["name"], port["port"]) for port in item["ports"]] == [("same", 80), ("other", 9)]


def test_pods_whose_names_mean_other_numbers_get_slices_of_their_own() -> None:
    items = made(service({"port": 80, "targetPort": "http"}), pod("a", "10.0.0.1"), pod("b", "10.0.0.2", port=9090))
    assert sorted((item["ports"][0]["port"], item["endpoints"][0]["addresses"][0]) for item in items) == [
        (8080, "10.0.0.1"),
        (9090, "10.0.0.2"),
    ]


def test_families() -> None:
    both = pod("a", "10.0.0.1", "fd00::1")
    assert [item["addressType"] for item in made(service({"port": 80}), both)] == ["IPv4"]
    dual = service({"port": 80}, ipFamilies=["IPv6", "IPv4"])
    assert sorted(item["addressType"] for item in made(dual, both)) == ["IPv4", "IPv6"]


def test_large_services_have_several_slices() -> None:
    items = made(
        service({"port": 80}), *(pod(f"p{n:03}", f"10.0.{n // 250}.{n % 250}") for n in range(2 * LARGEST + 1))
    )
    assert [len(item["endpoints"]) for item in items] == [LARGEST, LARGEST, 1]
    assert len({item["metadata"]["name"] for item in items}) == 3


def test_whom_a_service_selects() -> None:
    assert selects(service(), pod("a"))
    assert not selects(service(), pod("a", app="db"))
    assert not selects(service(selector=None), pod("a")), "its slices are made by hand"
    assert not selects(service(type="ExternalName"), pod("a"))


def test_hints_by_traffic_distribution() -> None:
    """KEP-4444 and KEP-3015; who is not ready needs none, and where there is no zone there is none to name."""

    def hints(distribution: str | None, zone: str = "z", ready: bool = True) -> dict[str, Any] | None:
        wanted = service({"port": 80}, **({"trafficDistribution": distribution} if distribution else {}))
        (item,) = slices(wanted, [pod("p", "10.0.0.1", ready=ready)], {"n1": zone}).values()
        found: dict[str, Any] | None = item["endpoints"][0].get("hints")
        return found

    zone, node = {"forZones": [{"name": "z"}]}, {"forNodes": [{"name": "n1"}]}
    assert hints(None) is None
    assert hints("PreferClose") == hints("PreferSameZone") == zone
    assert hints("PreferSameNode") == {**zone, **node}
    assert hints("PreferSameNode", zone="") == node
    assert hints("PreferSameZone", zone="") is None
    assert hints("PreferSameNode", ready=False) is None
    assert hints("of a later version") is None


ZONES = {"n1": "a", "n2": "b", "n3": "c"}
# nodes → zones, zones of the endpoints → zones that they are for (by the nodes' share, within an overload of 20 %)
ALLOCATIONS: list[tuple[str, dict[str, str], str, str]] = [
    ("each its own", ZONES, "abc", "abc"),
    ("within the overload", ZONES, "aabbcc", "aabbcc"),
    ("one has too many", ZONES, "aaaabc", "bcaabc"),
    ("one has all", ZONES, "aaa", "bca"),
    ("a zone of two nodes", {"n1": "a", "n2": "a", "n3": "b"}, "aab", "aab"),
    ("a zone of two nodes that has one endpoint", {"n1": "a", "n2": "a", "n3": "b"}, "abbbbb", "aaaabb"),
    ("a zone without nodes", {"n1": "a", "n2": "b"}, "abx", ""),
    ("too few", ZONES, "ab", ""),
    ("one zone", {"n1": "a", "n2": "a"}, "aa", ""),
    ("a node in no zone", {"n1": "a", "n2": "b", "n3": ""}, "ab", ""),
    ("nobody", ZONES, "", ""),
]


@pytest.mark.parametrize(("why", "nodes", "endpoints", "expected"), ALLOCATIONS, ids=[row[0] for row in ALLOCATIONS])
def test_hints_by_topology(why: str, nodes: dict[str, str], endpoints: str, expected: str) -> None:
    assert "".join(allocate(nodes, list(endpoints))) == expected


def test_an_endpoint_in_no_zone_leaves_all_without_hints() -> None:
    assert allocate(ZONES, ["a", "b", "c", ""]) == []


def test_topology_mode_goes_before_traffic_distribution() -> None:
    """Of the ready ones alone."""
    item = service({"port": 80}, trafficDistribution="PreferSameNode")
    metadata = msgspec.structs.replace(item.metadata, annotations={"service.kubernetes.io/topology-mode": "Auto"})
    auto = msgspec.structs.replace(item, metadata=metadata)
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3", ready=False)]
    (found,) = slices(auto, pods, {"n1": "z", "n2": "y"}).values()
    assert [each.get("hints") for each in found["endpoints"]] == [
        {"forZones": [{"name": "y"}]},
        {"forZones": [{"name": "z"}]},
        None,
    ]
