"""What is to be logged, in the maps; records, and the file that they go to."""

import json
from pathlib import Path

import pytest
from tests.node_agent.world import (
    ENTRIES,
    KEYS,
    OWN,
    Agent,
    Values,
    addresses,
    blocks,
    judged,
    members,
    node,
    pod,
    subject,
)

from node_agent.entries import RULE_LOG, SUBJECT_LOG
from node_agent.logfile import LogFile
from node_agent.logrecords import LogRecords
from tidegate.records import ANY_SET, Direction, Endpoint, Ground, Logging, NamespaceLogging, Rule, Rules, encode
from tidegate.records.addresses import pack_address

WEB, DB, OPS = 1001, 1002, 1003
POLICY = 5
TIME = 1592277037_993712906
# Policy a allows set 300, b set 301 (which are one for the programs), c a block.
RULE = Rule(
    direction=Direction.INGRESS,
    protocol=6,
    port=80,
    prefix=16,
    sets=(302,),
    blocks=310,
    grounds=(Ground(300, (0,)), Ground(301, (1,)), Ground(310, (2,))),
)
RULES = Rules(ingress_isolated=True, rules=(RULE,), policies=("default/a", "default/b", "default/c"))
RECORDS: Values = {
    **node(OWN, "172.31.1.11"),
    **node("n2", "172.31.2.12"),
    **pod("web", WEB, "10.0.0.1"),
    KEYS.endpoint("default", "db"): encode(
        Endpoint(
            node="n2", identity=DB, addresses=addresses("10.0.2.1"), workload_kind="StatefulSet", workload_name="db"
        )
    ),
    **subject(WEB, POLICY),
    KEYS.rules(POLICY): encode(RULES),
    **members(300, 0, DB),
    **members(301, 0, OPS),
    **members(302, 0, DB, OPS),
    **blocks(310, 0, ("10.0.2.0/24", ANY_SET), ("192.0.2.0/24", ANY_SET), ("192.0.2.128/25", 0)),
    **judged(DB),
    **judged(OPS, 901),
}


@pytest.fixture
def agent() -> Agent:
    made = Agent()
    made.snapshot(RECORDS)
    made.route({"10.0.0.1": 7}, ["172.31.1.11"])
    return made


def marks(agent: Agent) -> tuple[bool, bool]:
    """Of the subject, and of its rule."""
    value = agent.kernel["subjects"][ENTRIES.subject_key(WEB)]
    (rule,) = (raw for key, raw in agent.kernel["rules"].items() if ENTRIES.rule_of(key, raw)[0] == POLICY)
    flags = ENTRIES._values["rules"].unpack(rule)["flags"]
    return bool(ENTRIES.subject_of(value)[1] & SUBJECT_LOG), bool(flags & RULE_LOG)


def delegated(namespace: str, denied: bool = False, *policies: str) -> Values:
    return {KEYS.namespace_logging(namespace): encode(NamespaceLogging(denied=denied, policies=policies))}


def test_annotations_mark_entries_and_take_the_marks_away(agent: Agent) -> None:
    assert marks(agent) == (False, False)
    steps = agent.change(delegated("default", True))
    assert {step.map for step in steps} == {"subjects"}
    assert marks(agent) == (True, False)
    steps = agent.change(delegated("default", False, "b"))
    assert {step.map for step in steps} == {"rules", "subjects"}
    assert marks(agent) == (False, True)
    agent.change(delegated("default", False, "other"))
    assert marks(agent) == (False, False)
    agent.change(delegated("elsewhere", True, "a"))
    assert marks(agent) == (False, False)
    agent.change(delegated("default", True, "a"))
    agent.remove(KEYS.namespace_logging("default"))
    assert marks(agent) == (False, False)


def test_entries_that_come_later_are_marked_too() -> None:
    made = Agent()
    made.snapshot({**RECORDS, **delegated("default", True, "c")})
    made.route({"10.0.0.1": 7})
    assert marks(made) == (True, True)


def test_the_cluster_s_setting(agent: Agent) -> None:
    agent.change({KEYS.logging(): encode(Logging(denied=True))})
    assert agent.view.logging == Logging(denied=True)
    agent.remove(KEYS.logging())
    assert agent.view.logging == Logging()


@pytest.mark.parametrize(
    ("source", "identity", "names", "end"),
    [
        (
            "10.0.2.1",
            DB,
            ["a", "c"],
            {
                "pod_name": "db",
                "pod_namespace": "default",
                "namespace": "default",
                "workload_kind": "StatefulSet",
                "workload_name": "db",
            },
        ),
        ("10.0.9.9", OPS, ["b"], {"instance": "10.0.9.9"}),
        ("192.0.2.1", 3, ["c"], {"instance": "192.0.2.1"}),
        ("192.0.2.129", 3, [], {"instance": "192.0.2.129"}),
        ("172.31.2.12", 2, [], {"node_name": "n2"}),
        ("172.31.1.11", 1, [], {"node_name": OWN}),
    ],
)
def test_an_allowed_connection(agent: Agent, source: str, identity: int, names: list[str], end: dict[str, str]) -> None:
    event = {
        "source": pack_address(source),
        "destination": pack_address("10.0.0.1"),
        "source_port": 40000,
        "destination_port": 80,
        "source_identity": identity,
        "destination_identity": WEB,
        "protocol": 6,
        "direction": 0,
        "policy": POLICY,
    }
    assert LogRecords(OWN, agent.view).allowed(event, TIME) == {
        "connection": {
            "src_ip": source,
            "src_port": 40000,
            "dest_ip": "10.0.0.1",
            "dest_port": 80,
            "protocol": "tcp",
            "direction": "ingress",
        },
        "disposition": "allow",
        "policies": [{"kind": "NetworkPolicy", "name": name, "namespace": "default"} for name in names],
        "src": end,
        "dest": {"pod_name": "web", "pod_namespace": "default", "namespace": "default"},
        "count": 1,
        "node_name": OWN,
        "timestamp": "2020-06-16T03:10:37.993712906Z",
    }


@pytest.mark.parametrize(("audited", "disposition"), [(0, "deny"), (1, "audit")])
def test_denied_packets(agent: Agent, audited: int, disposition: str) -> None:
    key = {
        "initiator": pack_address("10.0.0.1"),
        "responder": pack_address("fd00::1"),
        "responder_port": 53,
        "protocol": 17,
        "direction": 1,
        "audited": audited,
    }
    assert LogRecords(OWN, agent.view).denied(key, 42, TIME) == {
        "connection": {
            "src_ip": "10.0.0.1",
            "dest_ip": "fd00::1",
            "dest_port": 53,
            "protocol": "udp",
            "direction": "egress",
        },
        "disposition": disposition,
        "src": {"pod_name": "web", "pod_namespace": "default", "namespace": "default"},
        "dest": {"instance": "fd00::1"},
        "count": 42,
        "node_name": OWN,
        "timestamp": "2020-06-16T03:10:37.993712906Z",
    }


def test_a_full_file_gives_way_to_a_fresh_one(tmp_path: Path) -> None:
    path = tmp_path / "network" / "policy_action.log"
    file = LogFile(path, size=1000, kept=5)
    for number in range(100):
        file.write([json.dumps({"number": number, "text": "x" * 80}).encode()] * 2)
    names = sorted(found.name for found in path.parent.iterdir())
    assert names == ["policy_action.log", *(f"policy_action.log.{number}" for number in range(1, 6))]
    assert all(found.stat().st_size <= 1000 for found in path.parent.iterdir())
    lines = "".join((path.parent / name).read_text() for name in reversed(names)).splitlines()
    kept = [json.loads(line)["number"] for line in lines]
    # The latest ones, in order, each line whole.
    assert kept == sorted(kept)
    assert kept[-1] == 99
    assert len(kept) > 40


def test_a_file_that_somebody_takes_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LogFile(path)
    file.write([b"one"])
    path.unlink()
    file.write([b"two"])
    assert path.read_text() == "two\n"


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        LogFile(tmp_path / "file" / "log").write([b"one"])
    full = LogFile(Path("/dev/full"))
    with pytest.raises(OSError, match="No space"):
        full.write([b"one"])
