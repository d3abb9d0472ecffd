"""The command against a real etcd."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.cli.conftest import DB, IDLE, KEYS, WEB, records

from tidegate.cli import agents, cluster
from tidegate.cli.cluster import Cluster, parse
from tidegate.cli.monitor import line, why
from tidegate.cli.render import plain, ports
from tidegate.cli.root import tidegate
from tidegate.cli.status import _print, collect
from tidegate.cli.verdicts import Peer, judge
from tidegate.records import Direction, NamespaceAudit, Protocol, encode
from tidegate.records.addresses import pack_address


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever runs on the machine is not what these tests ask about."""
    monkeypatch.setattr(cluster, "RUN", tmp_path / "tidegate")
    monkeypatch.delenv("TIDEGATE_PLAYGROUND", raising=False)


def call(etcd: str, *arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(tidegate, [*arguments, f"--etcd={etcd}", "--cluster=t"], input=text)


def call_json(etcd: str, *arguments: str) -> Any:
    result = call(etcd, *arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_services(etcd: str) -> None:
    (row,) = call_json(etcd, "services")
    assert row["addresses"] == ["10.96.0.5"]
    assert (row["port"], row["protocol"], row["id"]) == (5432, "TCP", 7)
    assert [(b["address"], b["state"]) for b in row["backends"]] == [("10.1.0.3", "ready"), ("10.1.0.9", "terminating")]
    assert "10.96.0.5:5432/TCP" in call(etcd, "services").output
    assert call_json(etcd, "services", "-n", "other") == []


def test_identities_say_whether_they_are_judged(etcd: str) -> None:
    rows = {row["id"]: row for row in call_json(etcd, "identities")}
    assert rows[DB]["policies"] == ["shop/db"]
    assert rows[WEB]["judged"]
    assert not rows[IDLE]["judged"]
    assert "rules not made yet" in call(etcd, "identities").output


def test_endpoints(etcd: str) -> None:
    rows = call_json(etcd, "endpoints")
    assert [(row["name"], row["addresses"], row["workload"]) for row in rows if row["name"] == "web-1"] == [
        ("web-1", ["10.1.0.2"], "Deployment/web")
    ]


def test_policy_in_words(etcd: str) -> None:
    found = call_json(etcd, "policy", "show", "shop/db-1")
    assert found["isolated"] == "ingress"
    assert {(rule["ports"], rule["peers"], tuple(rule["policies"])) for rule in found["rules"]} == {
        ("TCP 5432", "namespace shop: pods app=web", ("shop/db",)),
        ("UDP 8000-8007", "everybody", ("shop/db",)),
    }


@pytest.mark.parametrize(
    ("source", "destination", "options", "allowed"),
    [
        ("shop/web-1", "shop/db-1", ["--port=5432"], True),
        ("shop/web-1", "shop/db-1", ["--port=5433"], False),
        ("shop/web-1", "shop/db-1", ["--port=8007/UDP"], True),
        ("shop/web-1", "shop/db-1", ["--port=8008/UDP"], False),
        ("shop/db-1", "shop/web-1", ["--port=1"], True),
        ("shop/db-1", "shop/db-1", ["--port=1"], True),
        ("shop/web-1", "shop/idle-1", ["--port=80"], False),
    ],
)
def test_policy_explain(etcd: str, source: str, destination: str, options: list[str], allowed: bool) -> None:
    result = call(etcd, "policy", "explain", f"--from={source}", f"--to={destination}", *options)
    assert result.exit_code == (0 if allowed else 1)
    assert ("allowed" if allowed else "denied") in result.output.splitlines()[0]


def test_a_pod_that_is_not_there_is_said_so(etcd: str) -> None:
    result = call(etcd, "policy", "show", "shop/nobody")
    assert result.exit_code == 1
    assert "no endpoint shop/nobody" in result.output


def test_status_tells_what_was_refused(etcd: str) -> None:
    found = call_json(etcd, "status")
    assert found["healthy"]
    assert found["records"] == {
        "nodes": 1,
        "endpoints": 3,
        "identities": 3,
        "services": 1,
        "rules": 2,
        "subjects": 2,
    }
    (problem,) = found["problems"]
    assert (problem["kind"], problem["name"], problem["reason"]) == ("NetworkPolicy", "bad", "unknown operator 'Gt'")
    assert "refused by policy-sync: NetworkPolicy shop/bad: unknown operator 'Gt'" in call(etcd, "status").output


def test_etcd_away_is_a_sentence() -> None:
    result = call("127.0.0.1:1", "services")
    assert result.exit_code == 1
    assert "--etcd" in result.output
    assert "Traceback" not in result.output


def test_another_cluster_is_empty(etcd: str) -> None:
    result = CliRunner().invoke(tidegate, ["services", f"--etcd={etcd}", "--cluster=other"])
    assert result.exit_code == 1
    assert "holds nothing of a cluster 'other'" in result.output


def test_decode_shows_what_etcdctl_printed(etcd: str) -> None:
    printed = subprocess.run(
        ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={etcd}", "get", "--prefix", "/tidegate/t/", "-w", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    result = CliRunner().invoke(tidegate, ["decode"], input=printed.stdout)
    assert result.exit_code == 0
    found = {item["key"]: item for item in json.loads(result.output)}
    assert found[KEYS.node("n1")]["value"] == {
        "v": "1.0",
        "addresses": ["172.30.0.11"],
        "pod_cidrs": ["10.1.0.0/24"],
    }
    assert found[KEYS.leader("endpoint-sync")]["text"] == "host/1"
    assert len(found) == len(records()) + 2


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"kvs": [{"key": 1}]}'])
def test_decode_says_what_it_wants(text: str) -> None:
    result = CliRunner().invoke(tidegate, ["decode"], input=text)
    assert result.exit_code == 1
    assert "etcdctl get" in result.output


def test_monitor_without_agents_says_so(etcd: str) -> None:
    result = call(etcd, "monitor")
    assert result.exit_code == 1
    assert "no agent" in result.output


def test_a_record_that_cannot_be_read_is_told() -> None:
    values = {key: encode(record) for key, record in records().items()}
    values[KEYS.node("n2")] = b"\xc1"
    found = collect(parse(KEYS, values), [])
    assert list(found["unreadable"]) == [KEYS.node("n2")]
    assert not found["healthy"]


def test_status_is_not_healthy_without_a_leader_or_with_a_silent_agent() -> None:
    values = {key: encode(record) for key, record in records().items()}
    assert not collect(parse(KEYS, values), [])["healthy"]
    led = {**values, **{KEYS.leader(writer): b"x" for writer in ("endpoint-sync", "policy-sync")}}
    assert collect(parse(KEYS, led), [])["healthy"]
    assert not collect(parse(KEYS, led), [{"node": "n1", "ready": False, "error": "no answer"}])["healthy"]
    assert collect(parse(KEYS, led), [{"node": "n1", "ready": True, "problems": {}}])["healthy"]
    assert not collect(parse(KEYS, led), [{"node": "n1", "ready": True, "problems": {"guard": "gone"}}])["healthy"]


def leave_agent(run: Path, node: str) -> None:
    """The traces of an agent that does not answer."""
    (run / node).mkdir(parents=True)
    (run / node / "agent.json").write_text(json.dumps({"node": node}))


def test_status_without_etcd_still_tells_of_the_agents(tmp_path: Path) -> None:
    leave_agent(tmp_path / "tidegate", "n1")
    result = call("127.0.0.1:1", "status")
    assert result.exit_code == 1
    assert "n1" in result.output
    assert "the agent does not answer" in result.output
    assert "Name etcd with --etcd" in result.output
    result = CliRunner().invoke(tidegate, ["status", "--etcd=127.0.0.1:1", "-o", "json"])
    found = json.loads(result.stdout)
    assert (found["healthy"], [node["node"] for node in found["nodes"]]) == (False, ["n1"])
    assert "127.0.0.1:1" in found["error"]


def test_the_playground_that_the_environment_names(etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_agent(tmp_path / "tidegate", "other")
    leave_agent(tmp_path / "tidegate-x", "n1")
    (tmp_path / "tidegate-x/playground").mkdir()
    (tmp_path / "tidegate-x/playground/state.json").write_text(json.dumps({"etcd": etcd, "cluster": "t"}))
    monkeypatch.setenv("TIDEGATE_PLAYGROUND", "x")
    result = CliRunner().invoke(tidegate, ["status", "-o", "json"])
    assert [node["node"] for node in json.loads(result.output)["nodes"]] == ["n1"]
    rows = json.loads(CliRunner().invoke(tidegate, ["services", "-o", "json"]).output)
    assert [row["addresses"] for row in rows] == [["10.96.0.5"]]


def test_judge_needs_the_peer_in_the_set() -> None:
    values = {key: encode(record) for key, record in records().items()}
    found = parse(KEYS, values)
    assert judge(found, DB, Peer(WEB, pack_address("10.1.0.2")), Direction.INGRESS, Protocol.TCP, 5432).allowed
    assert not judge(found, DB, Peer(IDLE, pack_address("10.1.0.4")), Direction.INGRESS, Protocol.TCP, 5432).allowed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((6, 80, 16), "TCP 80"),
        ((17, 8000, 13), "UDP 8000-8007"),
        ((6, 0, 0), "TCP all ports"),
        ((0, 0, 0), "everything"),
    ],
)
def test_ports_in_words(arguments: tuple[int, int, int], words: str) -> None:
    assert ports(*arguments) == words


def test_plain_values() -> None:
    assert plain({"v": [1, 0], "direction": 1, "protocol": 17, "x": [b"\0" * 16]}) == {
        "v": "1.0",
        "direction": "egress",
        "protocol": "UDP",
        "x": ["::"],
    }


@pytest.mark.parametrize(
    ("reason", "direction", "ends", "port", "text"),
    [
        ("POLICY_INGRESS", "egress", (IDLE, DB), 5432, "ingress: isolated by shop/db, and nothing allows it"),
        ("FORWARDED", "ingress", (WEB, DB), 5432, "ingress: shop/db: TCP 5432 for namespace shop: pods app=web"),
        ("FORWARDED", "egress", (WEB, DB), 5432, "egress: no policy isolates its egress"),
        ("POLICY_INGRESS", "ingress", (WEB, DB), 5432, ""),  # another rule has come since
        ("AUDITED_INGRESS", "ingress", (IDLE, DB), 5432, "ingress: isolated by shop/db, and nothing allows it"),
        ("AUDITED_INGRESS", "ingress", (WEB, DB), 5432, ""),
    ],
)
def test_an_event_and_the_policies_behind_it(
    reason: str, direction: str, ends: tuple[int, int], port: int, text: str
) -> None:
    event = {
        "node": "n1",
        "hook": "from-pod",
        "reason": reason,
        "direction": direction,
        "protocol": 6,
        "source": "10.1.0.4",
        "source_port": 4000,
        "source_identity": ends[0],
        "destination": "10.1.0.3",
        "destination_port": port,
        "destination_identity": ends[1],
    }
    found = why(event, parse(KEYS, {key: encode(record) for key, record in records().items()}))
    assert found == text
    assert (f"({text})" in line({**event, "why": found}, {}).plain) == bool(text)
    assert why({"lost": 3, "node": "n1"}, Cluster()) == ""


def events(*reasons: str) -> Any:
    """As an agent sends them; which of its rings are asked for is in `asked`."""
    asked: list[tuple[bool, bool]] = []

    async def stream(_: agents.Found, drops: bool, verdicts: bool) -> AsyncIterator[dict[str, Any]]:
        asked.append((drops, verdicts))
        ends = {"source": "10.1.0.2", "destination": "10.1.0.3", "source_port": 4000, "destination_port": 5432}
        identities = {"source_identity": WEB, "destination_identity": DB}
        for reason in reasons:
            yield {**ends, **identities, "node": "n1", "reason": reason, "direction": "ingress", "protocol": 6}

    return stream, asked


@pytest.mark.parametrize(
    ("verdict", "shown", "rings"),
    [
        ("allow", ["FORWARDED"], (False, True)),
        ("deny", ["POLICY_INGRESS"], (True, False)),
        ("audit", ["AUDITED_INGRESS", "AUDITED_EGRESS"], (False, True)),
    ],
)
def test_monitor_shows_the_verdict_that_is_asked_for(
    etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, shown: list[str], rings: tuple[bool, bool]
) -> None:
    leave_agent(tmp_path / "tidegate", "n1")
    stream, asked = events("FORWARDED", "POLICY_INGRESS", "AUDITED_INGRESS", "SPOOFED", "AUDITED_EGRESS")
    monkeypatch.setattr(agents, "events", stream)
    result = call(etcd, "monitor", f"--verdict={verdict}", "-o", "json")
    assert [json.loads(row)["reason"] for row in result.stdout.splitlines()] == shown
    assert asked == [rings]


def test_status_names_what_is_in_audit(capsys: pytest.CaptureFixture[str]) -> None:
    audited = {KEYS.namespace_audit("pay"): NamespaceAudit(enabled=True), KEYS.namespace_audit("x"): NamespaceAudit()}
    values = {key: encode(record) for key, record in {**records(), **audited}.items()}
    led = {**values, **{KEYS.leader(writer): b"x" for writer in ("endpoint-sync", "policy-sync")}}
    answers = [
        {"node": "n1", "error": "", "ready": True, "audit": audit}
        for audit in (
            {"node": False, "namespaces": ["pay", "shop"], "verdicts": {"AUDITED_INGRESS": 7}},
            {"node": True, "namespaces": ["pay"], "verdicts": {}},
            {"node": False, "namespaces": [], "verdicts": {"AUDITED_EGRESS": 1}},
        )
    ]
    found = collect(parse(KEYS, led), answers)
    assert found["healthy"]
    assert found["audit"] == ["pay"]
    _print(found)
    lines = [text for text in capsys.readouterr().out.splitlines() if "audit" in text]
    assert lines == [
        "n1: in audit: namespace pay, namespace shop; passed so far: 7 by AUDITED_INGRESS",
        "n1: in audit: the whole node; passed so far: nothing",
        "in audit, their policies deny nothing: namespaces pay",
    ]


def test_explain_knows_of_nodes_in_audit_here(etcd: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leave_agent(tmp_path / "tidegate", "n1")

    async def status(agent: agents.Found) -> dict[str, Any]:
        return {"node": agent.node, "audit": {"node": True}}

    question = ("policy", "explain", "--from=shop/web-1", "--port=5433")
    assert call(etcd, *question, "--to=shop/db-1").exit_code == 1
    monkeypatch.setattr(agents, "status", status)
    result = call(etcd, *question, "--to=shop/db-1")
    assert result.exit_code == 0
    assert result.output.splitlines()[0].endswith("denied, but passes: node n1 is in audit")
    # It has no rules yet.
    assert call(etcd, *question, "--to=shop/idle-1").exit_code == 1


def test_an_event_in_one_line() -> None:
    event = {
        "node": "n1",
        "hook": "from-pod",
        "reason": "POLICY_INGRESS",
        "protocol": 6,
        "source": "10.1.0.2",
        "source_port": 40000,
        "destination": "10.1.0.3",
        "destination_port": 5432,
    }
    text = line(event, {"10.1.0.2": "shop/web-1"}).plain
    assert "POLICY_INGRESS" in text
    assert "shop/web-1(10.1.0.2:40000) -> 10.1.0.3:5432" in text
    assert "7 events lost" in line({"node": "n1", "lost": 7}, {}).plain


def test_an_interrupt_while_it_is_being_read_is_no_traceback(tmp_path: Path) -> None:
    """Sent by the first module that it reads, as a terminal would send it."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    # What runs in the background of a shell ignores SIGINT, and so would its children.
    reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{reset}; import tidegate.cli; tidegate.cli.main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
