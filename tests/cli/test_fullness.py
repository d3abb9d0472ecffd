"""How full it is, as `tidegate status` tells."""

from typing import Any

import pytest

from tidegate.cli.cluster import Cluster, UnreadableError, parse
from tidegate.cli.status import _print, _show_agents, collect
from tidegate.records import Backend, BackendShard, Capacity, Keyspace, Problem, Service, ServicePort, Synced, encode
from tidegate.records.addresses import pack_address

KEYS = Keyspace("test")


def node(name: str, refused: dict[str, str] | None = None, **maps: tuple[int, int]) -> dict[str, Any]:
    return {
        "node": name,
        "ready": True,
        "components": {},
        "attached_by": "tcx",
        "endpoints": [],
        "map_writes_total": 0,
        "memory_mib": 1.0,
        "drops": {},
        "refused": refused or {},
        "maps": {
            **{key: {"entries": entries, "capacity": size} for key, (entries, size) in maps.items()},
            "connections": {"entries": 100, "capacity": 100, "evicts": True},
        },
    }


def cluster(backends: int, capacity: int = 10, problem: Problem | None = None) -> Cluster:
    """A Service with so many backends of the capacity, where all else is well, but for the problem of another one."""
    ends = tuple(Backend(address=pack_address(f"10.0.0.{n}"), ports={"a": 80}) for n in range(backends))
    service = Service(cluster_ips=(pack_address("10.96.0.1"),), ports=(ServicePort(id=1, name="a", port=80),))
    values = {
        KEYS.capacity(): encode(Capacity(backends=capacity, frontends=100, source_ranges=100)),
        KEYS.service("shop", "web"): encode(service),
        KEYS.backends("shop", "web", 0): encode(BackendShard(backends=ends)),
    }
    if problem:
        values[KEYS.problem("endpoint-sync", "Service", "shop", "db")] = encode(problem)
    for writer in ("endpoint-sync", "policy-sync"):
        values[KEYS.synced(writer)] = encode(Synced())
        values[KEYS.leader(writer)] = b"somebody"
    return parse(KEYS, values)


@pytest.mark.parametrize(("entries", "healthy"), [(79, True), (80, False), (100, False)])
def test_a_map_is_warned_of_from_80_percent(entries: int, healthy: bool) -> None:
    found = collect(cluster(1), [node("n1", backends=(entries, 100), frontends=(1, 100))])
    assert found["healthy"] is healthy
    words = f"n1: map backends holds {entries} of 100 ({entries}.0%) entries: raise --map-size backends=N of the agent"
    assert found["warnings"] == ([] if healthy else [words])


@pytest.mark.parametrize(("backends", "healthy"), [(7, True), (8, False)])
def test_the_capacity_of_all_services_is_warned_of(backends: int, healthy: bool) -> None:
    found = collect(cluster(backends), [])
    assert found["capacity"]["backends"] == {"entries": backends, "capacity": 10}
    assert found["capacity"]["frontends"] == {"entries": 1, "capacity": 100}
    assert found["healthy"] is healthy
    assert [text.partition(":")[0] for text in found["warnings"]] == (
        [] if healthy else ["all Services together have 8 of 10 (80.0%) backends"]
    )


def test_a_service_refused_by_an_agent_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = collect(cluster(1), [node("n1", {"shop/web": "map backends: no room"}, backends=(1, 100))])
    assert not found["healthy"]
    _print(found)
    assert "n1: shop/web keeps its last state: map backends: no room" in capsys.readouterr().out


def test_a_service_that_is_held_back_is_no_healthy_state_and_one_that_is_wrong_is_its_owners() -> None:
    assert not collect(cluster(1, problem=Problem(reason="does not fit", held_back=True)), [])["healthy"]
    assert collect(cluster(1, problem=Problem(reason="no such field")), [])["healthy"]


def test_each_map_is_a_row_and_each_node_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("n1", backends=(5, 100)), node("n2", backends=(90, 200)), {"node": "n3", "error": "silent"}]
    _print(collect(cluster(1), nodes))
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["MAP", "ENTRIES", "OF", "N1", "N2"] in shown
    assert ["backends", "100", "5", "5.0%", "90", "45.0%", "of", "200"] in shown
    assert ["connections", "100", "(the", "oldest", "go)", "100", "100.0%", "100", "100.0%"] in shown


def test_full_maps_are_told_without_etcd_too(capsys: pytest.CaptureFixture[str]) -> None:
    _show_agents([node("n1", backends=(99, 100))], "table", UnreadableError("away"))
    assert "warning: n1: map backends holds 99 of 100 (99.0%) entries" in capsys.readouterr().out
