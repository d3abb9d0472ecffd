"""Which subjects the maps say are in audit."""

from tests.node_agent.world import (
    ENTRIES,
    KEYS,
    OWN,
    Agent,
    Values,
    addresses,
    from_set,
    members,
    pod,
    rules,
    subject,
    undecodable,
)

from node_agent.entries import SUBJECT_AUDIT, SUBJECT_LOG
from node_agent.table import POLICY
from tidegate.records import Endpoint, NamespaceAudit, NamespaceLogging, encode
from tidegate.records.addresses import pack_address

WEB, DB = 1001, 1002
RECORDS: Values = {
    **pod("web", WEB, "10.0.0.1"),
    KEYS.endpoint("pay", "db"): encode(Endpoint(node=OWN, identity=DB, addresses=addresses("10.0.0.2"))),
    **subject(WEB, 5),
    **subject(DB, 6),
    **rules(5, from_set(300)),
    **rules(6, from_set(301, 81)),
    **members(300, 0, DB),
    **members(301, 0, WEB),
}


def audit(namespace: str, enabled: bool = True) -> Values:
    return {KEYS.namespace_audit(namespace): encode(NamespaceAudit(enabled=enabled))}


def made(values: Values) -> Agent:
    agent = Agent()
    agent.snapshot(values)
    agent.route({"10.0.0.1": 7, "10.0.0.2": 8})
    return agent


def audited(agent: Agent) -> set[int]:
    """Identities of the subjects that the maps say are."""
    raw = {identity: agent.kernel["subjects"].get(ENTRIES.subject_key(identity)) for identity in (WEB, DB)}
    return {number for number, value in raw.items() if value and ENTRIES.subject_of(value)[1] & SUBJECT_AUDIT}


def test_a_namespace_s_subjects_are_marked_and_the_marks_go() -> None:
    agent = made(RECORDS)
    assert (audited(agent), agent.view.policy.audited) == (set(), set())
    steps = agent.change(audit("default"))
    assert [(step.map, len(step.puts)) for step in steps] == [("subjects", 1)]
    assert {step.map for step in steps} <= POLICY  # such that the generation rises
    assert (audited(agent), agent.view.policy.audited) == ({WEB}, {"default"})
    agent.change(audit("pay"))
    assert audited(agent) == {WEB, DB}
    agent.change(audit("pay", False))
    assert (audited(agent), agent.view.policy.audited) == ({WEB}, {"default"})
    steps = agent.remove(KEYS.namespace_audit("default"))
    assert {step.map for step in steps} <= POLICY
    assert (audited(agent), agent.view.policy.audited) == (set(), set())


def test_one_without_pods_here_is_not_of_this_node() -> None:
    agent = made({**RECORDS, **audit("elsewhere"), **audit("pay")})
    assert agent.view.policy.audited == {"pay"}
    agent.remove(KEYS.endpoint("pay", "db"))
    assert agent.view.policy.audited == set()


def test_entries_that_come_later_are_marked_too_and_keep_what_else_they_say() -> None:
    agent = made(audit("default"))
    agent.change(RECORDS)
    agent.change({KEYS.namespace_logging("default"): encode(NamespaceLogging(denied=True))})
    flags = ENTRIES.subject_of(agent.kernel["subjects"][ENTRIES.subject_key(WEB)])[1]
    assert flags & SUBJECT_AUDIT
    assert flags & SUBJECT_LOG
    # Other rules for the same identity.
    agent.change({**rules(7), **subject(WEB, 7)})
    assert audited(agent) == {WEB}


def test_it_holds_over_a_restart_also_for_rules_that_find_no_room() -> None:
    agent = made({**RECORDS, **audit("default")})
    before = dict(agent.kernel["subjects"])
    more = {**rules(8, *(from_set(300, port) for port in range(8000, 8010))), **subject(WEB, 8)}
    agent.sizes = {"rules": 5}
    after = agent.restarted()
    after.view.set_host({pack_address("10.0.0.1"): 7, pack_address("10.0.0.2"): 8}, frozenset())
    after.snapshot({**RECORDS, **audit("default"), **more})
    assert after.view.policy.refused.keys() == {WEB}
    assert after.kernel["subjects"] == before
    after.change(audit("default", False))
    assert audited(after) == set()


def test_a_record_that_cannot_be_read_leaves_what_is_in_force() -> None:
    agent = made({**RECORDS, **audit("default")})
    agent.change(undecodable(audit("default")))
    assert audited(agent) == {WEB}
    assert KEYS.namespace_audit("default") in agent.view.problems
