"""Which sockets are stuck to a backend: row by row, what changed and which of them are looked at and freed."""

from dataclasses import dataclass, field

import pytest
from tests.node_agent.world import (
    KEYS,
    OWN,
    Agent,
    Values,
    backend,
    backends,
    judged,
    node,
    pod,
    pod_key,
    service,
    undecodable,
)

from node_agent.departures import Given
from node_agent.frontends import HOST_PORT, LOCAL
from tidegate.records.addresses import pack_address

WEB = 1001
ONE, TWO, FAR = "10.202.2.2", "10.202.2.3", "192.0.2.7"
TCP, UDP = 6, 17
START: Values = {
    **node(OWN, "172.31.2.11", cidrs=("10.202.1.0/24",)),
    **node("n2", "172.31.2.12", cidrs=("10.202.2.0/24",)),
    **judged(WEB),
    **pod("one", WEB, ONE, node="n2"),
    **pod("two", WEB, TWO, node="n2"),
    **service("shop", "10.96.0.1", http=80),
    **backends("shop", 0, backend(ONE), backend(TWO)),
    **backends("shop", 1, backend(FAR)),
}
SHARD, POD, SERVICE = KEYS.backends("default", "shop", 0), pod_key("one"), KEYS.service("default", "shop")


def given(address: str, protocol: int, port: int = 8080, selection: int = 5080) -> Given:
    return Given(protocol, pack_address(address), port, selection)


@dataclass(frozen=True)
class Row:
    """Of the sockets that have ONE: which protocols are freed."""

    freed: set[int]
    change: Values = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    address: str = ONE


UNREADY = backend(ONE, ready=False, serving=False)
ROWS = {
    "nothing": Row(set()),
    "the pod and the backend": Row({TCP, UDP}, backends("shop", 0, backend(TWO)), (POD,)),
    "the pod, its backend is still listed": Row({TCP, UDP}, remove=(POD,)),
    "the backend, its pod lives on": Row({UDP}, backends("shop", 0, backend(TWO))),
    "terminating, and still serving": Row(set(), backends("shop", 0, backend(ONE, False, True, True), backend(TWO))),
    "terminating, and done": Row({UDP}, backends("shop", 0, backend(ONE, False, False, True), backend(TWO))),
    "not ready": Row({UDP}, backends("shop", 0, UNREADY, backend(TWO))),
    "not ready, and nobody else is": Row(set(), backends("shop", 0, UNREADY), (KEYS.backends("default", "shop", 1),)),
    "the Service, its pods live on": Row({UDP}, remove=(SERVICE, SHARD)),
    "the Service's port": Row({UDP}, service("shop", "10.96.0.1", other=81)),
    "another address for the pod": Row({TCP, UDP}, pod("one", WEB, "10.202.2.9", node="n2")),
    "the address, to another pod": Row({UDP}, {**pod("new", WEB, ONE), **backends("shop", 0, backend(TWO))}, (POD,)),
    "the backend moves to another shard": Row(
        set(), {**backends("shop", 0, backend(TWO)), **backends("shop", 2, backend(ONE))}
    ),
    "the node with all its pods": Row({TCP, UDP}, remove=(KEYS.node("n2"), POD, SHARD)),
    "a backend that never was a pod": Row({UDP}, remove=(KEYS.backends("default", "shop", 1),), address=FAR),
}


def freed(agent: Agent, row: Row) -> set[int]:
    departed = agent.view.departures.take()
    found = set()
    for protocol in (TCP, UDP):
        for selection in (5080, 5080 | LOCAL):
            socket = given(row.address, protocol, selection=selection)
            seen = departed.addresses is None or socket.address in departed.addresses
            if seen and agent.view.departures.is_stuck(socket, departed.pods):
                found.add(protocol)
    return found


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_what_has_gone_is_freed(row: Row) -> None:
    agent = Agent()
    agent.snapshot(START)
    assert freed(agent, row) == set()
    agent.change(row.change)
    agent.remove(*row.remove)
    assert freed(agent, row) == row.freed
    assert not agent.view.departures.pending


@pytest.mark.parametrize("name", [name for name in ROWS if name != "the node with all its pods"])
def test_what_went_while_the_agent_was_away_is_freed(name: str) -> None:
    row = ROWS[name]
    values = {**START, **row.change}
    agent = Agent()
    agent.snapshot({key: value for key, value in values.items() if key not in row.remove})
    assert freed(agent, row) == row.freed


def test_a_backend_that_begins_to_serve_frees_those_that_had_no_choice() -> None:
    agent = Agent()
    agent.snapshot({**START, **backends("shop", 0, UNREADY), **backends("shop", 1)})
    assert freed(agent, Row(set())) == set()
    agent.change(backends("shop", 1, backend(TWO)))
    assert freed(agent, Row(set())) == {UDP}


def test_another_port_of_the_same_backend_is_another_backend() -> None:
    agent = Agent()
    agent.snapshot(START)
    assert agent.view.departures.is_stuck(given(ONE, UDP, port=8081), set())


def test_a_host_port_is_stuck_when_its_pod_is_gone() -> None:
    agent = Agent()
    agent.snapshot(START)
    agent.view.departures.take()
    socket = given(ONE, UDP, selection=HOST_PORT | 7)
    assert not agent.view.departures.is_stuck(socket, set())
    agent.remove(POD)
    departed = agent.view.departures.take()
    assert departed.addresses is not None
    assert socket.address in departed.addresses
    assert agent.view.departures.is_stuck(socket, departed.pods)


@pytest.mark.parametrize("key", [SERVICE, SHARD, POD])
@pytest.mark.parametrize("later", ["understood", "gone"])
def test_what_a_record_that_cannot_be_read_may_say_has_not_gone(key: str, later: str) -> None:
    """After a restart, when the state before is not known. Once that is over, everything is looked at again."""
    gone = Row(set(), backends("shop", 0, backend(TWO)))
    agent = Agent()
    agent.snapshot({**START, **undecodable({key: b""})})
    assert freed(agent, Row(set())) == set()
    if later == "gone":
        agent.remove(key)
    else:
        agent.change({key: START[key], **gone.change})
    assert freed(agent, gone) == ({TCP, UDP} if (later, key) == ("gone", POD) else {UDP})


def test_what_could_not_be_done_is_done_again() -> None:
    agent = Agent()
    agent.snapshot(START)
    everything = agent.view.departures.take()
    agent.view.departures.again(everything)
    assert agent.view.departures.take() == everything
    agent.remove(POD)
    departed = agent.view.departures.take()
    agent.view.departures.again(departed)
    assert agent.view.departures.take() == departed
