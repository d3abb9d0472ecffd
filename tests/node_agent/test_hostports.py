"""hostPort: ports of the node that lead to one of its pods."""

import pytest
from tests.node_agent.world import OWN, Agent, Values, pod_key

from node_agent.frontends import HOST_PORT
from tidegate.records import Endpoint, HostPort, Protocol, encode
from tidegate.records.addresses import pack_address

NODE, OTHER = "172.16.0.1", "203.0.113.9"


def pod(name: str, ip: str, *ports: HostPort, node: str = OWN) -> Values:
    record = Endpoint(node=node, identity=1001, addresses=(pack_address(ip),), host_ports=ports)
    return {pod_key(name): encode(record)}


@pytest.fixture
def agent() -> Agent:
    fresh = Agent()
    fresh.snapshot({})
    fresh.route({}, [NODE, OTHER, "127.0.0.1"])
    return fresh


def leads(agent: Agent) -> dict[tuple[str, int, int], set[tuple[str, int]]]:
    """Frontend → backends behind it."""
    backends: dict[int, set[tuple[str, int]]] = {}
    for (number, _), row in agent.rows("backends").items():
        backends.setdefault(number, set()).add((row["addr"], row["port"]))
    return {key: backends[number] for key, number in agent.rows("frontends").items()}


WEB = HostPort(port=80, target=8080)
DNS = HostPort(protocol=Protocol.UDP, port=53, target=5353, address=pack_address(NODE))


def test_on_every_address_or_on_one(agent: Agent) -> None:
    agent.change(pod("web", "10.0.0.1", WEB, DNS))
    assert leads(agent) == {
        (NODE, 80, 6): {("10.0.0.1", 8080)},
        (OTHER, 80, 6): {("10.0.0.1", 8080)},
        (NODE, 53, 17): {("10.0.0.1", 5353)},
    }
    assert all(number & HOST_PORT for number in agent.rows("frontends").values())


def test_a_pod_with_two_families(agent: Agent) -> None:
    agent.route({}, [NODE, "fd00:31::1", "fe80::1", "::1"])
    dual = Endpoint(
        node=OWN, identity=1001, addresses=(pack_address("10.0.0.1"), pack_address("fd00::5")), host_ports=(WEB, DNS)
    )
    agent.change({pod_key("web"): encode(dual)})
    assert leads(agent) == {
        (NODE, 80, 6): {("10.0.0.1", 8080)},
        ("fd00:31::1", 80, 6): {("fd00::5", 8080)},
        (NODE, 53, 17): {("10.0.0.1", 5353)},
    }
    agent.change(pod("web", "fd00::5", WEB))
    assert leads(agent) == {("fd00:31::1", 80, 6): {("fd00::5", 8080)}}
    agent.remove(pod_key("web"))
    assert not any(agent.kernel[name] for name in ("frontends", "services", "backends"))


def test_pods_of_other_nodes_have_theirs_there(agent: Agent) -> None:
    agent.change(pod("web", "10.0.0.1", WEB, node="n9"))
    assert leads(agent) == {}


def test_a_pod_that_goes_leaves_nothing(agent: Agent) -> None:
    agent.change(pod("web", "10.0.0.1", WEB, DNS))
    agent.change(pod("web", "10.0.0.1", WEB))
    assert set(leads(agent)) == {(NODE, 80, 6), (OTHER, 80, 6)}
    agent.remove(pod_key("web"))
    assert not any(agent.kernel[name] for name in ("frontends", "services", "backends"))


def test_the_pod_moves_to_another_address(agent: Agent) -> None:
    agent.change(pod("web", "10.0.0.1", WEB))
    agent.change(pod("web", "10.0.0.2", WEB))
    assert leads(agent)[NODE, 80, 6] == {("10.0.0.2", 8080)}


def test_addresses_of_the_node_come_and_go(agent: Agent) -> None:
    agent.change(pod("web", "10.0.0.1", WEB))
    agent.route({}, [OTHER])
    assert set(leads(agent)) == {(OTHER, 80, 6)}


def test_of_two_pods_one_has_the_port_and_the_other_follows(agent: Agent) -> None:
    agent.change(pod("old", "10.0.0.1", WEB))
    agent.change(pod("new", "10.0.0.2", WEB))
    assert leads(agent)[NODE, 80, 6] == {("10.0.0.2", 8080)}
    agent.remove(pod_key("new"))
    assert leads(agent)[NODE, 80, 6] == {("10.0.0.1", 8080)}


def test_a_restart_writes_nothing(agent: Agent) -> None:
    agent.change(pod("web", "10.0.0.1", WEB, DNS))
    again = agent.restarted()
    again.view.set_host({}, frozenset(map(pack_address, (NODE, OTHER, "127.0.0.1"))))
    assert again.snapshot(pod("web", "10.0.0.1", WEB, DNS)) == []
