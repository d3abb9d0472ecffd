"""The soak run is worth something only if it sees a difference, and its cluster stays one."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.bpf.conftest import COMPILED
from tests.node_agent.world import MAPS
from tests.scale import soak
from tests.scale.cluster import Cluster
from tests.scale.population import Population
from tests.scale.soak import Held, Rates, Soak, differences, without_slots

from node_agent.entries import Entries
from node_agent.table import ORDER
from tidegate.kube.watch import ENDPOINT_SLICES, NETWORK_POLICIES, PODS, SERVICES

ENTRIES = Entries(MAPS)
A, B, C = (bytes([number] * 16) for number in (1, 2, 3))


def held(*backends: bytes, first: int = 0) -> Held:
    """A Service with these backends in its slots, and a ring that leads to A, which is in slot `first`."""
    found: Held = {name: {} for name in ORDER}
    for slot, address in enumerate(backends):
        found["backends"][ENTRIES.backend_key(7, slot)] = ENTRIES.backend(address, 80)
    found["ring"] = dict([ENTRIES.ring(7, 0, first)])
    found["slots"] = dict([ENTRIES.slot(7, A, 80, first)])
    return found


def test_what_is_in_which_slot_is_no_difference() -> None:
    one, other = (without_slots(each, ENTRIES) for each in (held(A, B), held(B, A, first=1)))
    assert differences(one, other) == {}


@pytest.mark.parametrize(
    ("other", "maps"),
    [
        (held(A, C), {"backends"}),
        (held(A), {"backends"}),
        (held(A, B, first=1), {"ring", "slots"}),
    ],
)
def test_what_is_a_difference(other: Held, maps: set[str]) -> None:
    assert differences(*(without_slots(each, ENTRIES) for each in (held(A, B), other))).keys() == maps


def listed(cluster: Cluster, path: str) -> list[Any]:
    page, _ = cluster.api.page(path, 10**6, "")
    return msgspec.json.decode(page)["items"]  # type: ignore[no-any-return]


def name_of(item: Any) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def test_a_cluster_in_which_much_comes_and_goes_is_one() -> None:
    """Slices have the pods that are there, and a Service that is there has slices."""
    cluster = Cluster(Population(1 / 100), near=1)
    kinds = (PODS.path, SERVICES.path, NETWORK_POLICIES.path)
    sizes = {path: len(listed(cluster, path)) for path in kinds}
    for _ in range(2000):
        cluster.change_life()
        cluster.change_pod()
        cluster.change_policy()
    for path, size in sizes.items():
        assert 0 < len(listed(cluster, path)) < size, path
    pods = listed(cluster, PODS.path)
    assert any("version" in pod["metadata"]["labels"] for pod in pods)
    there: dict[tuple[str, str], set[str]] = {}
    for pod in pods:
        where, name = name_of(pod)
        there.setdefault((where, pod["metadata"]["labels"]["app"]), set()).add(name)
    served = set()
    for item in listed(cluster, ENDPOINT_SLICES.path):
        where, labels = item["metadata"]["namespace"], item["metadata"]["labels"]
        served.add((where, labels["kubernetes.io/service-name"]))
        assert {endpoint["targetRef"]["name"] for endpoint in item["endpoints"]} == there[where, labels["app"]]
    assert served == set(map(name_of, listed(cluster, SERVICES.path)))


@pytest.mark.root
def test_after_a_soak_the_maps_are_those_of_a_fresh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY", 1.0)
    monkeypatch.setattr(soak, "SETTLED", 3.0)
    run = Soak(1 / 250, Rates(20, 5, 20), tmp_path, COMPILED)
    asyncio.run(run.run(0.1, 1))
    found = run.found()
    assert found["differing"] == [{}]
    assert set(found["memory"]) == {"endpoint-sync", "policy-sync", "node-agent", "etcd"}  # type: ignore[call-overload]
