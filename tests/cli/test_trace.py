"""`tidegate services trace`: from the answers of agents and the records to what a client would see."""

import json
from dataclasses import replace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.cli.conftest import DB, KEYS, records

from tidegate.cli.cluster import Cluster, parse
from tidegate.cli.ends import Client, find_client, read_target
from tidegate.cli.root import tidegate
from tidegate.cli.trace import Answer, Trace, Tracer
from tidegate.records import Endpoint, NamespaceAudit, Node, Rules, Subject, encode
from tidegate.records.addresses import pack_address

VIP = "10.96.0.5:5432"
SERVICE = {
    "namespace": "shop",
    "name": "db",
    "port": 5432,
    "traffic_policy": "Cluster",
    "left_out": {"10.1.0.9:5432": "not ready"},
}
FAR, FAR_IP = "shop/far-1", "10.1.1.2"


@pytest.fixture
def cluster() -> Cluster:
    """Besides: node n2, and a pod of it with the identity of db-1, whose ingress is isolated."""
    more = {
        KEYS.node("n2"): Node(addresses=(pack_address("172.30.0.12"),)),
        KEYS.endpoint("shop", "far-1"): Endpoint(node="n2", identity=DB, addresses=(pack_address(FAR_IP),)),
    }
    return parse(KEYS, {key: encode(record) for key, record in {**records(), **more}.items()})


class Agents:
    """What they would answer, by node and hook; everything that they are asked."""

    def __init__(self, **answers: Answer) -> None:
        self._answers = answers
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, node: str, hook: str, _source: bytes, _vip: bytes, port: int, protocol: int) -> Answer:
        self.asked.append((node, hook, f"{port}/{protocol}"))
        return {"node": node, "hook": hook, **self._answers.get(f"{node}_{hook}", PASSED)}


def answered(outcome: str, *backends: str, reason: str = "", way: str = "a pod of this node") -> Answer:
    ends = [{"address": backend, "port": 5432, "way": way} for backend in backends]
    service = SERVICE if outcome != "passed" else None
    return {
        "outcome": outcome,
        "steps": [f"step to {outcome}"],
        "reason": reason,
        "reason_text": "because",
        "service": service,
        "backends": ends,
    }


PASSED = answered("passed")
MASQUERADED = "a pod of another node, by redirect_neigh and masqueraded: it sees this node's address"


def traced(
    cluster: Cluster, agents: Agents, client: str, to: str = VIP, via: str | None = None, packets: bool = False
) -> Trace:
    return Tracer(cluster, agents, find_client(cluster, client, via), read_target(to)).run(packets)


def test_a_pod_whose_socket_gets_a_backend(cluster: Cluster) -> None:
    agents = Agents(n1_socket=answered("chosen", "10.1.0.3"))
    found = traced(cluster, agents, "shop/web-1")
    assert agents.asked == [("n1", "socket", "5432/6")]
    assert found.result == "connected to shop/db-1 (10.1.0.3:5432)"
    assert (found.made, found.service, found.left_out) == (True, "shop/db", {"10.1.0.9:5432": "not ready"})
    (way,) = found.ways
    assert [side.text.partition(":")[0] for side in way.policies] == ["egress of shop/web-1", "ingress of shop/db-1"]


def test_a_backend_whose_policy_denies_it(cluster: Cluster) -> None:
    found = traced(cluster, Agents(n1_socket=answered("chosen", "10.1.0.3")), "shop/idle-1")
    assert (found.made, found.outcome, found.reason) == (False, "dropped", "POLICY_EGRESS"), (
        "its rules are not made yet"
    )
    node = traced(cluster, Agents(n2_socket=answered("chosen", "10.1.0.3")), "n2")
    assert (node.made, node.reason) == (False, "POLICY_INGRESS")
    own = traced(cluster, Agents(n1_socket=answered("chosen", "10.1.0.3")), "n1")
    assert own.made, "its own node reaches every pod"


def test_what_is_denied_passes_in_audit(cluster: Cluster) -> None:
    """At the node of whose policies it is: db-1's, not the client's."""

    def ask(*audited: str, state: Cluster = cluster) -> Trace:
        agents = Agents(n2_socket=answered("chosen", "10.1.0.3"))
        return Tracer(state, agents, find_client(state, "n2", None), read_target(VIP), audited).run()

    assert not ask("n2").made
    found = ask("n1")
    assert (found.made, found.reason, found.result) == (True, "", "connected to shop/db-1 (10.1.0.3:5432)")
    assert "denied, but passes: node n1 is in audit" in found.ways[0].policies[0].text
    audited = parse(KEYS, {KEYS.namespace_audit("shop"): encode(NamespaceAudit(enabled=True))})
    assert ask(state=replace(cluster, by_kind={**cluster.by_kind, **audited.by_kind})).made


def test_some_backends_allow_it_and_some_do_not(cluster: Cluster) -> None:
    """The connection may be made, or not: who relies on the exit code is told that it is not sure."""
    mixed = traced(cluster, Agents(n2_socket=answered("chosen", "10.1.0.2", "10.1.0.3")), "n2")
    assert mixed.result == (
        "connected to shop/web-1 (10.1.0.2:5432); dropped where it gets shop/db-1: a policy does not allow it"
    )
    assert (mixed.outcome, mixed.made) == ("chosen", False)


def test_a_pod_reaches_itself_whatever_its_policies_say(cluster: Cluster) -> None:
    found = traced(cluster, Agents(n1_socket=answered("chosen", "10.1.0.3")), "shop/db-1")
    assert found.made
    assert found.ways[0].policies == []


@pytest.mark.parametrize(
    ("hook", "protocol", "words"),
    [
        ("n1_socket", "TCP", "ECONNREFUSED"),
        ("n1_from_pod", "TCP", "TCP RST"),
        ("n1_from_pod", "UDP", "ICMP port unreachable"),
    ],
)
def test_refusals(cluster: Cluster, hook: str, protocol: str, words: str) -> None:
    agents = Agents(**{hook: answered("refused", reason="NO_BACKEND")})
    found = traced(cluster, agents, "shop/web-1", f"{VIP}/{protocol}", packets=hook == "n1_from_pod")
    assert (found.made, found.outcome, found.reason) == (False, "refused", "NO_BACKEND")
    assert words in found.result


def test_what_a_socket_leaves_is_for_the_veth(cluster: Cluster) -> None:
    left, dropped = answered("undecided"), answered("dropped", reason="SOURCE_RANGE")
    agents = Agents(n1_socket=left, n1_from_pod=dropped)
    found = traced(cluster, agents, "shop/web-1")
    assert [hook for _, hook, _ in agents.asked] == ["socket", "from_pod"]
    assert (found.outcome, found.reason) == ("dropped", "SOURCE_RANGE")
    assert [step[2] for step in found.steps] == ["step to undecided", "step to dropped"]


def test_a_client_outside_comes_by_a_node(cluster: Cluster) -> None:
    chosen = answered("chosen", FAR_IP, way=MASQUERADED)
    found = traced(cluster, Agents(n1_from_network=chosen), "198.51.100.9", "172.30.0.11:30080")
    (way,) = found.ways
    assert [side.rules for side in way.policies] == ["ingress of shop/far-1, as a connection of n1"]
    assert not found.made
    with pytest.raises(click.ClickException, match="--via is missing"):
        traced(cluster, Agents(), "198.51.100.9")
    agents = Agents(n2_from_network=chosen)
    traced(cluster, agents, "198.51.100.9", via="n2")
    assert agents.asked == [("n2", "from_network", "5432/6")]


def test_a_pod_that_asks_another_node(cluster: Cluster) -> None:
    """Its own egress is judged first, then the other node sees it come in."""
    agents = Agents(n2_from_network=answered("chosen", FAR_IP))
    found = traced(cluster, agents, "shop/web-1", "172.30.0.12:30080")
    assert [asked[:2] for asked in agents.asked] == [("n1", "socket"), ("n1", "from_pod"), ("n2", "from_network")]
    (way,) = found.ways
    assert [side.text for side in way.policies] == [
        "ingress of shop/far-1: allowed: shop/db: TCP 5432 for namespace shop: pods app=web"
    ]
    assert found.made


def test_egress_to_another_node_may_be_denied(cluster: Cluster) -> None:
    closed = {KEYS.rules(23): Rules(egress_isolated=True, policies=("shop/out",)), KEYS.subject(DB): Subject(policy=23)}
    values = {
        key: encode(record)
        for key, record in {
            **records(),
            **closed,
            KEYS.node("n2"): Node(addresses=(pack_address("172.30.0.12"),)),
        }.items()
    }
    agents = Agents()
    found = traced(parse(KEYS, values), agents, "shop/db-1", "172.30.0.12:30080")
    assert (found.outcome, found.reason) == ("dropped", "POLICY_EGRESS")
    assert ("n2", "from_network", "30080/6") not in agents.asked


def test_no_service(cluster: Cluster) -> None:
    found = traced(cluster, Agents(), "shop/web-1", "10.1.0.3:5432")
    assert found.made
    assert found.result == "passed on to shop/db-1: no Service here has this address and port"
    denied = traced(cluster, Agents(), "shop/web-1", "10.1.0.3:1")
    assert (denied.made, denied.reason) == (False, "POLICY_INGRESS")


@pytest.mark.parametrize(
    ("text", "kind", "node"),
    [
        ("shop/web-1", "pod", "n1"),
        ("n2", "node", "n2"),
        ("10.1.0.3", "pod", "n1"),
        ("172.30.0.12", "node", "n2"),
        ("192.0.2.1", "outside", ""),
    ],
)
def test_clients(cluster: Cluster, text: str, kind: str, node: str) -> None:
    found = find_client(cluster, text, None)
    assert (found.kind, found.node) == (kind, node)


@pytest.mark.parametrize(
    "text", ["", "10.96.0.1", "10.96.0.1:0", "10.96.0.1:70000", "10.96.0.1:80/icmp", "x:80", "fd00::1"]
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(click.ClickException, match="write an address, a port and a protocol"):
        read_target(text)


def test_targets() -> None:
    assert read_target("[fd00::1]:53/UDP").text == "[fd00::1]:53/UDP"
    assert read_target("10.96.0.1:80").text == "10.96.0.1:80/TCP"


def test_a_client_without_an_address_of_the_family() -> None:
    client = Client("shop/web-1", "pod", "n1", (pack_address("10.1.0.2"),))
    with pytest.raises(click.ClickException, match="has no IPv6 address"):
        client.address(pack_address("fd00::1"))


def run(etcd: str, monkeypatch: pytest.MonkeyPatch, agents: Agents, *more: str) -> Any:
    monkeypatch.setattr("tidegate.cli.trace.ask_agent", agents)
    arguments = ["services", "trace", f"--etcd={etcd}", "--cluster=t", "--from=shop/web-1", f"--to={VIP}", *more]
    return CliRunner().invoke(tidegate, arguments)


def test_the_command(etcd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(etcd, monkeypatch, Agents(n1_socket=answered("chosen", "10.1.0.3")))
    assert made.exit_code == 0, made.output
    lines = made.output.splitlines()
    assert lines[0] == "shop/web-1 -> 10.96.0.5:5432/TCP  (Service shop/db)"
    assert lines[-1] == "connected to shop/db-1 (10.1.0.3:5432)"
    assert "  10.1.0.9:5432: not ready" in lines
    refused = run(etcd, monkeypatch, Agents(n1_socket=answered("refused", reason="NO_BACKEND")), "-o", "json")
    assert refused.exit_code == 1
    assert json.loads(refused.output)["outcome"] == "refused"


def test_a_node_without_an_agent_here(etcd: str) -> None:
    result = CliRunner().invoke(
        tidegate, ["services", "trace", f"--etcd={etcd}", "--cluster=t", "--from=shop/web-1", f"--to={VIP}"]
    )
    assert result.exit_code == 1
    assert "no agent of node n1 on this machine" in result.output


def test_a_masqueraded_connection_is_judged_as_the_nodes(cluster: Cluster) -> None:
    """web-1 itself would be allowed; what reaches db-1 by way of node n2 comes from n2."""
    agents = Agents(n2_from_network=answered("chosen", "10.1.0.3", way=MASQUERADED))
    found = traced(cluster, agents, "shop/web-1", "172.30.0.12:30080")
    assert (found.made, found.reason) == (False, "POLICY_INGRESS")
