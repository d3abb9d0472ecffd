"""A pod that nobody can judge yet keeps what it had; another pod under its name or address inherits nothing."""

import pytest
from tests.node_agent.world import OWN, Agent, judged, pod, pod_key

from node_agent.entries import EP_CLOSED, EP_POD
from tidegate.records import Endpoint, encode
from tidegate.records.addresses import pack_address
from tidegate.store import Delete, Put

WEB, DB = 1001, 1002  # identities; nobody has judged DB
IP, OTHER_IP = "10.0.1.5", "10.0.1.6"
DEVICE = 7


@pytest.fixture
def agent() -> Agent:
    """With an open pod of its own."""
    made = Agent()
    made.route({IP: DEVICE})
    made.snapshot({**pod("web", WEB, IP), **judged(WEB)})
    assert made.rows("endpoints")[IP] == {"identity": WEB, "ifindex": DEVICE, "flags": EP_POD}
    return made


def restarted(agent: Agent, device: int) -> Agent:
    """Another agent, that has seen the host, and has not written anything yet."""
    again = agent.restarted()
    again.view.endpoints.set_host({pack_address(IP): device}, frozenset())
    return again


def flags(agent: Agent, ip: str) -> int:
    found: int = agent.rows("endpoints")[ip]["flags"]
    return found


def replaced(uid: str, ip: str) -> Put:
    return Put(pod_key("web"), encode(Endpoint(node=OWN, identity=DB, addresses=(pack_address(ip),), uid=uid)))


def test_a_relabelled_pod_keeps_its_identity_until_the_new_one_is_judged(agent: Agent) -> None:
    agent.change(pod("web", DB, IP))
    assert agent.rows("endpoints")[IP]["identity"] == WEB
    agent.change(judged(DB))
    assert agent.rows("endpoints")[IP]["identity"] == DB


@pytest.mark.parametrize("ip", [IP, OTHER_IP])
def test_another_pod_of_the_name_is_closed(agent: Agent, ip: str) -> None:
    agent.batch(replaced("another", ip))
    assert flags(agent, ip) == EP_POD | EP_CLOSED


def test_another_pod_with_the_address_is_closed(agent: Agent) -> None:
    agent.batch(Delete(pod_key("web")), *(Put(key, value) for key, value in pod("db", DB, IP).items()))
    assert flags(agent, IP) == EP_POD | EP_CLOSED


def test_after_a_restart_the_same_device_means_the_same_pod(agent: Agent) -> None:
    again = restarted(agent, DEVICE)
    again.snapshot({**pod("web", DB, IP), **judged(WEB)})
    assert again.rows("endpoints")[IP] == {"identity": WEB, "ifindex": DEVICE, "flags": EP_POD}


def test_after_a_restart_another_device_means_another_pod(agent: Agent) -> None:
    again = restarted(agent, DEVICE + 1)
    again.snapshot({**pod("web", DB, IP), **judged(WEB)})
    assert flags(again, IP) == EP_POD | EP_CLOSED
