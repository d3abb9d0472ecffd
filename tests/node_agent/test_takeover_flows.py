"""What becomes of each kind of connection that the kernel's conntrack holds when an agent first starts."""

import errno
from typing import Any

import pytest
from tests.bpf.kernel import Loaded, unpack
from tests.node_agent.world import ENTRIES, OWN, Agent, Values, backends, judged, node, pod, service

from node_agent.conntrack import End, Flow, read_flows
from node_agent.takeover import SLOT_STACK, Decision, Writer, decide, place_of
from tidegate.records import Backend
from tidegate.records.addresses import pack_address

pytestmark = pytest.mark.root

TCP, UDP, ICMP = 6, 17, 1
POD, PEER, NODE, WORLD, VIP = "10.1.0.2", "10.2.0.2", "192.0.2.1", "198.51.100.1", "10.96.0.1"
RECORDS: Values = {
    **node(OWN, NODE),
    **judged(7),
    **pod("a", 7, POD),
    **pod("b", 7, PEER, node="n2"),
    **service("shop", VIP, http=80),
    **backends(
        "shop",
        0,
        *(Backend(address=pack_address(address), ports={"http": 8080}) for address in ("10.2.0.9", PEER)),
    ),
}


def end(text: str) -> End:
    address, _, port = text.partition(" ")
    return pack_address(address), int(port)


def flow(client: str, vip: str, seen: str, backend: str, protocol: int = TCP, replied: bool = True) -> Flow:
    return Flow(protocol, end(client), end(vip), end(seen), end(backend), replied, seconds=100)


@pytest.fixture(scope="module")
def agent() -> Agent:
    made = Agent()
    made.view.set_host({pack_address(POD): 3}, frozenset({pack_address(NODE)}))
    made.snapshot(RECORDS)
    return made


def decided(agent: Agent, loaded: Loaded, *flows: Flow) -> Decision:
    place = place_of(agent.tables, ENTRIES, frozenset({pack_address(NODE)}), {pack_address(POD)})
    return decide(flows, place, Writer(loaded.manifest.maps, now=1000))


def written(loaded: Loaded, decision: Decision, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """As the programs find them."""
    entry = loaded.manifest.maps[name]
    return [(unpack(entry.key, key), unpack(entry.value, value)) for key, value in decision.entries[name]]


def test_a_pods_connection_to_a_service_is_ours(agent: Agent, loaded: Loaded) -> None:
    decision = decided(agent, loaded, flow(f"{POD} 4000", f"{VIP} 80", f"{POD} 4000", f"{PEER} 8080"))
    assert decision.kept == []
    [(key, value)] = written(loaded, decision, "translations")
    assert key == {"client": POD, "vip": VIP, "client_port": 4000, "vip_port": 80, "protocol": TCP}
    slot = next(
        slot for (number, slot), row in agent.rows("backends").items() if row["addr"] == PEER and number == 5080
    )
    assert value == {"backend": PEER, "backend_port": 8080, "service": 5080, "slot": slot, "expires": 1100}
    [(key, value)] = written(loaded, decision, "connections")
    assert key == {"a": POD, "b": PEER, "a_port": 4000, "b_port": 8080, "protocol": TCP}
    assert (value["flags"], value["vip"], value["vip_port"], value["generation"]) == (0x2 | 0x4, VIP, 80, 0)


def test_one_that_has_not_been_answered_is_judged_by_its_next_packet(agent: Agent, loaded: Loaded) -> None:
    asked = flow(f"{POD} 4000", f"{VIP} 80", f"{POD} 4000", f"{PEER} 8080", replied=False)
    assert list(decided(agent, loaded, asked).entries) == ["translations"]


def test_datagrams_that_the_stack_would_keep_are_given_a_backend_anew(agent: Agent, loaded: Loaded) -> None:
    masked = flow(f"{WORLD} 4000", f"{VIP} 80", f"{NODE} 5000", f"{PEER} 8080", UDP)
    decision = decided(agent, loaded, masked)
    assert (decision.kept, decision.entries["translations"]) == ([], [])
    own = flow(f"{NODE} 4000", f"{VIP} 80", f"{NODE} 4000", f"{PEER} 8080", UDP)
    assert decided(agent, loaded, own).kept == [own]


def test_a_masquerading_port_that_is_a_frontend_now(agent: Agent, loaded: Loaded) -> None:
    """Replies to it are no client's of that Service."""
    masked = flow(f"{WORLD} 4000", f"{WORLD} 9", f"{VIP} 80", f"{PEER} 8080")
    decision = decided(agent, loaded, masked)
    assert decision.kept == [masked]
    [(key, value)] = written(loaded, decision, "translations")
    assert (key["client"], key["client_port"], key["vip"], value["slot"]) == (PEER, 8080, VIP, SLOT_STACK)


def test_what_is_no_frontend_of_ours_is_left_alone(agent: Agent, loaded: Loaded) -> None:
    foreign = flow(f"{WORLD} 4000", f"{NODE} 81", f"{WORLD} 4000", f"{PEER} 8080")
    decision = decided(agent, loaded, foreign)
    assert (decision.kept, decision.entries) == ([foreign], {})


def test_echoes_and_what_passes_by_are_nobodys(agent: Agent, loaded: Loaded) -> None:
    decision = decided(
        agent,
        loaded,
        flow(f"{POD} 0", f"{WORLD} 0", f"{POD} 0", f"{WORLD} 0", ICMP),
        flow(f"{NODE} 4000", f"{WORLD} 80", f"{NODE} 4000", f"{WORLD} 80"),
    )
    assert (decision.kept, decision.entries) == ([], {})


@pytest.mark.parametrize(("code", "found"), [(errno.EINVAL, []), (errno.EPERM, None)])
def test_a_kernel_that_tracks_no_connections(
    monkeypatch: pytest.MonkeyPatch, code: int, found: list[Flow] | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr("node_agent.conntrack.dump", refuse)
    if found is None:
        with pytest.raises(OSError, match="no"):
            read_flows()
    else:
        assert read_flows() == found
