"""What an agent's view of a large cluster costs, counted in calls of functions: of the whole in proportion to it, of a
change in proportion to the change."""

import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any

import pytest
from msgspec import structs
from tests.node_agent.world import MAPS, Agent, backends, service
from tests.scale.population import REGION, Population
from tests.scale.records import identity_of, records

from endpoint_sync.backends import SHARD, shard_of
from node_agent.entries import Entries
from node_agent.table import ORDER, Step, Tables
from node_agent.view import View
from tidegate.records import (
    Backend,
    BackendShard,
    Endpoint,
    Keyspace,
    Node,
    PeerShard,
    Record,
    Rules,
    Service,
    Subject,
    decode,
    encode,
)
from tidegate.records.addresses import pack_address
from tidegate.records.ids import Numbering, identity_content
from tidegate.records.shards import shard_count, spread
from tidegate.store import Delete, Operation, Put

KEYS = Keyspace("scale")
SMALL, LARGE = 1 / 20, 1 / 10
OWN = 1  # number of the node whose agent it is
LINEAR = 1.15  # by how much the cost of an entry may differ between the two sizes
MORE = 20  # calls that a change in the larger cluster may cost beyond those in the smaller one
NEW_POD, NEW_ADDRESS = ("ns-000", "new"), "10.255.0.1"


def calls(work: Callable[[], Any]) -> int:
    """How many functions of Python's it calls, and how often generators go on."""
    count = 0

    def told(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(told)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class Loaded:
    """An agent's pure part, and how much it cost to bring it to the whole cluster."""

    def __init__(self, scale: float) -> None:
        self.population = Population(scale)
        self.values = dict(records(self.population, KEYS))
        node = self.population.node(OWN)
        self.tables = Tables({name: {} for name in ORDER})
        self.view = View(node.name, KEYS, self.tables, Entries(MAPS))
        self.host: tuple[dict[bytes, int], frozenset[bytes]] = {}, frozenset([pack_address(node.address)])
        self.view.set_host(*self.host)
        self.steps: list[Step] = []
        self.read = calls(lambda: self.view.snapshot({**self.values}))
        self.written = calls(self.write)
        self.first = self.steps

    def write(self) -> None:
        self.view.set_host(*self.host)
        self.steps = self.tables.plan()
        for step in self.steps:
            self.tables.done(step.map, step.puts, step.deletes)

    def change(self, *operations: Operation) -> tuple[int, int]:
        """Calls, and entries written or removed."""

        def work() -> None:
            self.view.batch(operations)
            self.write()

        cost = calls(work)
        return cost, sum(len(step.puts) + len(step.deletes) for step in self.steps)

    def record(self, kind: type[Record], key: str) -> Any:
        return decode(kind, self.values[key])


@cache
def loaded(scale: float) -> Loaded:
    return Loaded(scale)


def entries(of: Loaded) -> int:
    return sum(len(step.puts) for step in of.first)


def test_the_whole_is_read_and_written_in_proportion() -> None:
    small, large = loaded(SMALL), loaded(LARGE)
    assert large.read / len(large.values) < LINEAR * small.read / len(small.values)
    assert large.written / entries(large) < LINEAR * small.written / entries(small)


def test_each_record_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole, when it is taken. Those of policies that have subjects here are looked at once more."""
    population = Population(SMALL)
    values = dict(records(population, KEYS))
    decoded: Counter[str] = Counter()

    def counting(kind: type[Record], value: bytes) -> Record:
        decoded[kind.kind] += 1
        return decode(kind, value)

    for module in ("view", "services"):
        monkeypatch.setattr(f"node_agent.{module}.decode", counting)
    view = View(population.node(OWN).name, KEYS, Tables({name: {} for name in ORDER}), Entries(MAPS))
    view.snapshot({**values})
    assert decoded["backends"] == sum("/backends/" in key for key in values) > population.service_count / 2
    assert decoded["endpoint"] == population.pod_count
    assert decoded["service"] == population.service_count


def test_the_whole_goes_to_each_map_at_once() -> None:
    """A step is a batch update of the kernel, or a few."""
    large = loaded(LARGE)
    names = [step.map for step in large.first]
    assert len(set(names)) == len(names)
    assert not any(step.deletes for step in large.first)
    held = {name: len(large.tables.have(name)) for name in ORDER}
    population = large.population
    assert held["endpoints"] == population.pod_count + population.node_count
    assert held["services"] >= population.service_count
    assert held["backends"] >= 26 * population.service_count
    assert held["subjects"] == len({pod.workload.index for pod in population.pods() if pod.node.index == OWN})


def pod_comes(of: Loaded) -> list[Operation]:
    identity = next(of.population.workloads())
    number = Numbering().take(identity_content(identity_of(identity)))
    record = Endpoint(node="node-00000", identity=number, addresses=(pack_address(NEW_ADDRESS),), uid="new")
    return [Put(KEYS.endpoint(*NEW_POD), encode(record))]


def pod_goes(_: Loaded) -> list[Operation]:
    return [Delete(KEYS.endpoint(*NEW_POD))]


def node_gets_another_address(of: Loaded) -> list[Operation]:
    node = of.population.node(2)
    record = Node(addresses=tuple(map(pack_address, (node.address, "192.0.2.1"))), zone=node.zone, region=REGION)
    return [Put(KEYS.node(node.name), encode(record))]


def backend_goes(of: Loaded) -> list[Operation]:
    service = next(of.population.services())
    where = service.workload.namespace.name, service.name
    shard: BackendShard = of.record(BackendShard, KEYS.backends(*where, 0))
    return [Put(KEYS.backends(*where, 0), encode(BackendShard(backends=shard.backends[1:])))]


def backend_comes(of: Loaded) -> list[Operation]:
    service = next(of.population.services())
    where = service.workload.namespace.name, service.name
    shard: BackendShard = of.record(BackendShard, KEYS.backends(*where, 0))
    more = Backend(address=pack_address(NEW_ADDRESS), ports={service.port_name: service.target})
    return [Put(KEYS.backends(*where, 0), encode(BackendShard(backends=(*shard.backends, more))))]


def identity_comes(of: Loaded) -> list[Operation]:
    """It joins a set that is in use here, and is judged by rules that are known."""
    rules = next(policy for policy in map(of.view.policy.rules_of, _policies(of)) if policy and policy.rules)
    group = next(group for rule in rules.rules for group in rule.sets)
    key = KEYS.peers(group, 0)
    shard: PeerShard = of.record(PeerShard, key)
    joined = PeerShard(members=tuple(sorted((*shard.members, 999))))
    return [Put(key, encode(joined)), Put(KEYS.subject(999), encode(Subject(policy=_policies(of)[0])))]


def rules_change(of: Loaded) -> list[Operation]:
    """Of an identity that has pods here: its subject is led to others."""
    here = (pod.workload for pod in of.population.pods() if pod.node.index == OWN)
    workload = next(workload for workload in here if workload.serves and workload.name != "app-0")
    subject = Numbering().take(identity_content(identity_of(workload)))
    changed = Rules(ingress_isolated=True)
    return [Put(KEYS.rules(77), encode(changed)), Put(KEYS.subject(subject), encode(Subject(policy=77)))]


def _policies(of: Loaded) -> list[int]:
    return sorted({decode(Subject, of.values[KEYS.subject(number)]).policy for number in of.view.policy.subjects})


CHANGES = (
    pod_comes,
    pod_goes,
    node_gets_another_address,
    backend_goes,
    backend_comes,
    identity_comes,
    rules_change,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_costs_what_changes(change: Callable[[Loaded], list[Operation]]) -> None:
    small, large = (of.change(*change(of)) for of in (loaded(SMALL), loaded(LARGE)))
    assert large[1], "it reaches the maps"
    assert large[1] <= 12
    assert large[0] <= small[0] * LINEAR + MORE


class Big:
    """An agent's pure part, with one Service of so many backends, in shards as endpoint-sync makes them."""

    def __init__(self, count: int, **fields: Any) -> None:
        shards = shard_count(count, SHARD)
        address = [pack_address(f"10.{128 + number // 250}.{number % 250}.7") for number in range(count)]
        held = spread(address, shards, lambda each: shard_of(each, shards))
        self._shards = {
            number: [Backend(address=each, ports={"http": 80}) for each in of] for number, of in held.items()
        }
        self.agent = Agent()
        (key, value), *_ = service("shop", "10.96.0.1", http=80).items()
        values = {key: encode(structs.replace(decode(Service, value), **fields))}
        self.agent.snapshot(
            values | {key: value for number in self._shards for key, value in self._written(number).items()}
        )

    def _written(self, number: int) -> dict[str, bytes]:
        return backends("shop", number, *self._shards[number])

    def change(self, change: Callable[[list[Backend]], object]) -> tuple[int, int]:
        """Calls, and entries written or removed."""
        number = min(self._shards)
        change(self._shards[number])
        steps: list[Step] = []
        values = self._written(number)
        cost = calls(lambda: steps.extend(self.agent.change(values)))
        return cost, sum(len(step.puts) + len(step.deletes) for step in steps)


OUTSIDE = {"external_ips": (pack_address("198.51.100.1"),)}


@pytest.mark.parametrize("fields", [{}, {"affinity_seconds": 60}, OUTSIDE], ids=["plain", "affinity", "outside"])
def test_one_backend_of_ten_thousand_costs_what_one_of_a_thousand_does(fields: dict[str, Any]) -> None:
    """Both ways: it goes, and comes."""
    large, small = Big(10_000, **fields), Big(1_000, **fields)
    gone = Backend(address=pack_address("10.0.0.1"), ports={"http": 80})
    for change in (lambda shard: shard.append(gone), lambda shard: shard.remove(gone)):
        cost, entries = large.change(change)
        assert 2 <= entries <= 12
        assert cost <= small.change(change)[0] * LINEAR + 2 * MORE
