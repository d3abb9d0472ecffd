"""From records to map entries, without a kernel."""

import msgspec
import pytest
from tests.node_agent.world import (
    KEYS,
    MARKS,
    Agent,
    backend,
    backends,
    blocks,
    from_set,
    judged,
    members,
    node,
    pod,
    pod_key,
    puts,
    rules,
    service,
    subject,
    undecodable,
)

from node_agent.entries import (
    EP_CLOSED,
    EP_OWN_NODE,
    EP_POD,
    EP_REMOTE_NODE,
    LENGTH_ANY_PROTOCOL,
    SUBJECT_EGRESS_ISOLATED,
    SUBJECT_INGRESS_ISOLATED,
)
from tidegate.records import ANY_SET, Endpoint, Rule, Rules, encode
from tidegate.store import Delete, Put

WEB, DB, CRON = 1001, 1002, 1003  # identities
IP, OTHER_IP = "10.0.1.5", "10.0.2.5"


def open_pod(identity: int, ifindex: int = 0) -> dict[str, int]:
    return {"identity": identity, "ifindex": ifindex, "flags": EP_POD}


CLOSED = {"identity": 0, "ifindex": 0, "flags": EP_POD | EP_CLOSED}


@pytest.fixture
def agent() -> Agent:
    """With a complete, empty snapshot."""
    fresh = Agent()
    fresh.snapshot({})
    return fresh


# ---- snapshots and records --------------------------------------------------------------------------------------


def test_what_was_there_before_stays_until_a_snapshot_is_loaded() -> None:
    before = Agent()
    before.snapshot({**pod("web", WEB, IP), **judged(WEB)})
    agent = before.restarted()
    assert not agent.view.loaded
    agent.route({}, ["172.31.0.11"])
    assert agent.rows("endpoints")[IP] == open_pod(WEB)
    agent.snapshot({})
    assert IP not in agent.rows("endpoints")


def test_a_second_snapshot_costs_the_difference_only(agent: Agent) -> None:
    kept = {**pod("web", WEB, IP), **judged(WEB), **service("shop", "10.96.0.1", http=80)}
    agent.snapshot({**kept, **pod("old", WEB, OTHER_IP)})
    steps = agent.snapshot({**kept, **pod("new", WEB, "10.0.1.6")})
    assert [(step.map, len(step.puts), len(step.deletes)) for step in steps] == [
        ("endpoints", 1, 0),
        ("endpoints", 0, 1),
    ]
    assert set(agent.rows("endpoints")) == {IP, "10.0.1.6"}
    assert agent.snapshot({**kept, **pod("new", WEB, "10.0.1.6")}) == []


def test_a_restart_with_the_same_records_writes_nothing(agent: Agent) -> None:
    values = {
        **pod("web", WEB, IP),
        **subject(WEB, 5),
        **rules(5, from_set(300)),
        **members(300, 0, DB),
        **node("n2", "172.31.0.12"),
        **service("shop", "10.96.0.1", http=80),
        **backends("shop", 0, *(backend(f"10.0.2.{n}") for n in range(1, 9))),
    }
    agent.snapshot(values)
    agent.change(backends("shop", 0, *(backend(f"10.0.2.{n}") for n in range(3, 9))))
    assert (
        agent.restarted().snapshot({**values, **backends("shop", 0, *(backend(f"10.0.2.{n}") for n in range(3, 9)))})
        == []
    )


def test_a_record_that_cannot_be_decoded_leaves_the_previous_one(agent: Agent) -> None:
    agent.snapshot({**pod("web", WEB, IP), **judged(WEB)})
    assert agent.change(undecodable(pod("web", WEB, IP))) == []
    assert agent.view.problems.keys() == {pod_key("web")}
    assert "msgpack" in agent.view.problems[pod_key("web")]
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}
    agent.change(pod("web", WEB, "10.0.1.6"))
    assert agent.view.problems == {}
    assert agent.rows("endpoints") == {"10.0.1.6": open_pod(WEB)}


def test_a_snapshot_with_a_record_that_cannot_be_decoded_leaves_the_previous_one(agent: Agent) -> None:
    good = {**pod("web", WEB, IP), **judged(WEB)}
    agent.snapshot(good)
    assert agent.snapshot({**good, **undecodable(pod("web", WEB, IP))}) == []
    assert agent.view.problems.keys() == {pod_key("web")}
    agent.snapshot(judged(WEB))
    assert agent.view.problems == {}
    assert agent.rows("endpoints") == {}


def test_one_bad_record_costs_nobody_else(agent: Agent) -> None:
    agent.change({**undecodable(pod("bad", WEB, OTHER_IP)), **pod("web", WEB, IP), **judged(WEB)})
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}


def test_a_record_of_a_later_major_version_is_a_problem(agent: Agent) -> None:
    # `encode` writes what this version knows, whatever it is given.
    agent.change({**judged(WEB), pod_key("web"): msgspec.msgpack.encode(Endpoint(v=(2, 0), identity=WEB))})
    assert "version 2.0" in agent.view.problems[pod_key("web")]


def test_a_problem_ends_with_its_key(agent: Agent) -> None:
    bad = {**undecodable(pod("bad", WEB, IP)), f"{KEYS.prefix}rules/seven": encode(Rules())}
    agent.change(bad)
    assert agent.view.problems.keys() == bad.keys()
    agent.remove(*bad)
    assert agent.view.problems == {}
    agent.snapshot(bad)
    assert agent.view.problems.keys() == bad.keys()
    agent.snapshot({})
    assert agent.view.problems == {}


def test_keys_of_others_and_of_later_versions_are_passed_over(agent: Agent) -> None:
    assert agent.change({"/elsewhere": b"", f"{KEYS.prefix}later/kind": b"", **MARKS}) == []
    assert agent.view.problems == {}


# ---- who is judged by what --------------------------------------------------------------------------------------


def test_a_pod_without_a_subject_or_without_its_rules_is_closed(agent: Agent) -> None:
    agent.change(pod("web", WEB, IP))
    assert agent.rows("endpoints") == {IP: CLOSED}
    agent.change(subject(WEB, 5))
    assert agent.rows("endpoints") == {IP: CLOSED}
    assert agent.rows("subjects") == {}
    agent.change(rules(5))
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}
    assert agent.rows("subjects").keys() == {WEB}


def test_a_pod_elsewhere_has_no_entry_until_its_rules_stand(agent: Agent) -> None:
    agent.change({**pod("db", DB, OTHER_IP, node="n2"), **subject(DB, 5)})
    assert agent.rows("endpoints") == {}
    agent.change(rules(5))
    assert agent.rows("endpoints") == {OTHER_IP: open_pod(DB)}


def test_a_pod_keeps_its_identity_until_the_rules_of_the_new_one_stand(agent: Agent) -> None:
    agent.change({**pod("web", WEB, IP), **judged(WEB)})
    assert agent.change(pod("web", DB, IP)) == []
    assert agent.change(subject(DB, 5)) == []
    agent.change(rules(5))
    assert agent.rows("endpoints") == {IP: open_pod(DB)}
    assert agent.rows("subjects").keys() == {DB}


def test_a_pod_keeps_its_identity_over_a_restart_too(agent: Agent) -> None:
    agent.snapshot({**pod("web", WEB, IP), **judged(WEB)})
    again = agent.restarted()
    assert again.snapshot({**pod("web", DB, IP), **judged(WEB)}) == []
    assert again.rows("endpoints") == {IP: open_pod(WEB)}


def test_a_new_pod_does_not_inherit_the_identity_of_its_address(agent: Agent) -> None:
    agent.change({**pod("old", WEB, IP), **judged(WEB)})
    agent.batch(Delete(pod_key("old")), *puts(pod("new", DB, IP)))
    assert agent.rows("endpoints") == {IP: CLOSED}


def test_rules_that_vanish_close_nobody_but_newcomers(agent: Agent) -> None:
    agent.change({**pod("web", WEB, IP), **judged(WEB, 5)})
    agent.remove(KEYS.rules(5))
    agent.change(pod("late", WEB, "10.0.1.6"))
    assert agent.rows("endpoints") == {IP: open_pod(WEB), "10.0.1.6": CLOSED}
    assert agent.rows("subjects").keys() == {WEB}


def test_only_identities_with_pods_here_are_programmed(agent: Agent) -> None:
    agent.change(
        {**rules(5, from_set(300)), **rules(6, from_set(301)), **members(300, 0, CRON), **members(301, 0, CRON)}
    )
    agent.change({**subject(WEB, 5), **subject(DB, 6)})
    agent.change({**pod("web", WEB, IP), **pod("db", DB, OTHER_IP, node="n2")})
    assert agent.rows("subjects").keys() == {WEB}
    assert {key[0] for key in agent.rows("rules")} == {5}
    assert agent.rows("members") == {(300, CRON): 1}


def test_the_last_pod_of_an_identity_takes_its_entries_along(agent: Agent) -> None:
    base = {**rules(5, from_set(300)), **members(300, 0, CRON, DB), **subject(WEB, 5)}
    agent.change({**base, **pod("a", WEB, IP), **pod("b", WEB, "10.0.1.6")})
    agent.remove(pod_key("a"))
    assert agent.rows("subjects").keys() == {WEB}
    steps = agent.remove(pod_key("b"))
    assert [step.map for step in steps] == ["endpoints", "subjects", "rules", "members"]
    assert not any(agent.kernel.values())
    assert not agent.view.endpoints._groups


def test_a_pod_that_moves_to_another_node_takes_its_entries_along(agent: Agent) -> None:
    agent.change({**judged(WEB), **pod("web", WEB, IP)})
    agent.change(pod("web", WEB, IP, node="n2"))
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}
    assert agent.rows("subjects") == {}


def test_rules_under_a_new_policy_stand_before_the_subject_names_them(agent: Agent) -> None:
    agent.change({**pod("web", WEB, IP), **subject(WEB, 5), **rules(5, from_set(300)), **members(300, 0, DB)})
    steps = agent.batch(
        *(Put(key, value) for key, value in {**members(301, 0, CRON), **rules(6, from_set(301))}.items()),
        *(Put(key, value) for key, value in subject(WEB, 6).items()),
        Delete(KEYS.rules(5)),
        Delete(KEYS.peers(300, 0)),
    )
    assert [(step.map, bool(step.puts)) for step in steps] == [
        ("members", True),
        ("rules", True),
        ("subjects", True),
        ("rules", False),
        ("members", False),
    ]
    assert len(steps[2].puts) == 1
    assert agent.rows("subjects")[WEB]["policy"] == 6


def test_a_subject_waits_for_the_rules_that_it_names(agent: Agent) -> None:
    agent.change({**pod("web", WEB, IP), **subject(WEB, 5), **rules(5, from_set(300)), **members(300, 0, DB)})
    assert agent.change(subject(WEB, 6)) == []
    agent.change(rules(6))
    assert agent.rows("subjects")[WEB]["policy"] == 6
    assert agent.rows("rules") == {}


def test_subjects_with_equal_rules_share_them(agent: Agent) -> None:
    shared = {**rules(5, from_set(300)), **members(300, 0, CRON), **subject(WEB, 5), **subject(DB, 5)}
    agent.change({**shared, **pod("web", WEB, IP), **pod("db", DB, "10.0.1.6")})
    assert len(agent.rows("rules")) == 1
    agent.remove(pod_key("web"))
    assert len(agent.rows("rules")) == 1
    agent.remove(pod_key("db"))
    assert agent.rows("rules") == {}


def test_what_a_rule_and_its_subject_say(agent: Agent) -> None:
    listed = (
        from_set(300, port=443),
        Rule(direction=0, sets=(ANY_SET,)),
        Rule(direction=1, protocol=17, port=0x1F00, prefix=8, sets=(300, 301)),
    )
    agent.change({**pod("web", WEB, IP), **subject(WEB, 5), **rules(5, *listed, egress=True), **members(301, 0, DB)})
    assert agent.rows("rules") == {
        (5, 0, 6, 16, 443): (300,),
        (5, 0, 0, 0, 0): (ANY_SET,),
        (5, 1, 17, 8, 0x1F00): (300, 301),
    }
    assert agent.rows("subjects")[WEB] == {
        "policy": 5,
        "flags": SUBJECT_INGRESS_ISOLATED | SUBJECT_EGRESS_ISOLATED,
        "ingress_lengths": 1 << 16 | LENGTH_ANY_PROTOCOL,
        "egress_lengths": 1 << 8,
    }


def test_a_member_that_moves_to_another_shard_stays(agent: Agent) -> None:
    base = {**pod("web", WEB, IP), **subject(WEB, 5), **rules(5, from_set(300))}
    agent.change({**base, **members(300, 0, DB, CRON)})
    assert agent.change(members(300, 1, CRON)) == []
    assert agent.change(members(300, 0, DB)) == []
    assert agent.rows("members").keys() == {(300, DB), (300, CRON)}
    # In one step, and whichever comes first.
    assert agent.batch(Delete(KEYS.peers(300, 1)), *puts(members(300, 0, DB, CRON))) == []
    agent.change(members(300, 0, DB))
    assert agent.rows("members").keys() == {(300, DB)}


def test_blocks_of_addresses_come_and_go_with_their_rules(agent: Agent) -> None:
    """They stand before the rule that names them, and the sets that they name before them."""
    shards = {**blocks(700, 0, ("10.0.0.0/8", ANY_SET), ("10.1.0.0/16", 0)), **blocks(700, 1, ("fd00::/8", 300))}
    named = Rule(direction=0, sets=(), blocks=700)
    steps = agent.change(
        {**pod("web", WEB, IP), **members(300, 0, CRON), **shards, **rules(5, named), **subject(WEB, 5)}
    )
    assert [step.map for step in steps if step.map != "devices"][:4] == ["members", "peer_blocks", "rules", "subjects"]
    assert agent.rows("peer_blocks") == {
        (32 + 104, 700, "10.0.0.0"): ANY_SET,
        (32 + 112, 700, "10.1.0.0"): 0,
        (32 + 8, 700, "fd00::"): 300,
    }
    assert agent.rows("members") == {(300, CRON): 1}
    assert agent.rows("rules") == {(5, 0, 0, 0, 0): (700,)}
    agent.change(members(300, 0, CRON, DB))
    assert agent.rows("members").keys() == {(300, CRON), (300, DB)}
    agent.change(blocks(700, 1, ("fd00::/8", 301)))
    assert agent.rows("peer_blocks")[32 + 8, 700, "fd00::"] == 301
    assert agent.rows("members") == {}
    steps = agent.change({**rules(6), **subject(WEB, 6)})
    assert [step.map for step in steps] == ["subjects", "rules", "peer_blocks"]
    assert agent.rows("peer_blocks") == {}


def test_a_set_that_nobody_here_uses_costs_nothing(agent: Agent) -> None:
    assert agent.change({**members(300, 0, *range(256, 1256)), **rules(5, from_set(300)), **subject(WEB, 5)}) == []
    agent.change(pod("web", WEB, IP))
    assert len(agent.rows("members")) == 1000


# ---- addresses --------------------------------------------------------------------------------------------------


def test_a_pod_here_has_its_device_as_long_as_the_host_route_is_there(agent: Agent) -> None:
    agent.change({**pod("web", WEB, IP), **judged(WEB)})
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}
    agent.route({IP: 7})
    assert agent.rows("endpoints") == {IP: open_pod(WEB, 7)}
    agent.route({IP: 9})
    assert agent.rows("endpoints") == {IP: open_pod(WEB, 9)}
    agent.route({})
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}


def test_a_route_alone_makes_no_endpoint(agent: Agent) -> None:
    assert agent.route({IP: 7}) == []


def test_a_pod_elsewhere_never_has_a_device(agent: Agent) -> None:
    agent.route({IP: 7})
    agent.change({**pod("web", WEB, IP, node="n2"), **judged(WEB)})
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}


def test_nodes_and_their_addresses(agent: Agent) -> None:
    agent.route({}, ["172.31.0.11", "127.0.0.1"])
    agent.change({**node("n1", "172.31.0.11", "192.0.2.1"), **node("n2", "172.31.0.12")})
    flags = {address: row["flags"] for address, row in agent.rows("endpoints").items()}
    own = dict.fromkeys(("172.31.0.11", "127.0.0.1", "192.0.2.1"), EP_OWN_NODE)
    assert flags == {**own, "172.31.0.12": EP_REMOTE_NODE}
    agent.route({}, ["172.31.0.11"])
    agent.remove(KEYS.node("n2"))
    assert agent.rows("endpoints").keys() == {"172.31.0.11", "192.0.2.1"}


def test_both_addresses_of_a_pod(agent: Agent) -> None:
    agent.change({**pod("web", WEB, IP, "fd00::5"), **judged(WEB)})
    assert agent.rows("endpoints").keys() == {IP, "fd00::5"}
    agent.change(pod("web", WEB, IP))
    assert agent.rows("endpoints").keys() == {IP}


def test_an_address_that_a_record_names_twice(agent: Agent) -> None:
    agent.change({**pod("web", WEB, IP, IP), **judged(WEB)})
    agent.change(pod("web", WEB, IP))
    agent.change(pod("web", WEB, IP, IP))
    assert agent.rows("endpoints").keys() == {IP}
    agent.remove(pod_key("web"))
    assert agent.rows("endpoints") == {}


def test_an_address_passes_from_one_pod_to_the_next(agent: Agent) -> None:
    agent.change({**pod("old", WEB, IP), **judged(WEB), **judged(DB)})
    agent.change(pod("new", DB, IP))
    assert agent.rows("endpoints") == {IP: open_pod(DB)}
    assert agent.remove(pod_key("old"))
    assert agent.rows("endpoints") == {IP: open_pod(DB)}
    agent.remove(pod_key("new"))
    assert agent.rows("endpoints") == {}


def test_an_address_falls_back_to_the_pod_that_still_claims_it(agent: Agent) -> None:
    agent.change({**pod("first", WEB, IP), **judged(WEB), **judged(DB)})
    agent.change(pod("second", DB, IP))
    agent.remove(pod_key("second"))
    assert agent.rows("endpoints") == {IP: open_pod(WEB)}


def test_of_two_that_claim_an_address_in_a_snapshot_the_later_key_has_it(agent: Agent) -> None:
    agent.snapshot({**judged(WEB), **judged(DB), **pod("a", WEB, IP), **pod("b", DB, IP)})
    assert agent.rows("endpoints")[IP] == open_pod(DB)


def test_an_older_claim_does_not_take_an_address_back(agent: Agent) -> None:
    agent.change({**pod("first", WEB, IP), **judged(WEB), **judged(DB)})
    agent.change(pod("second", DB, IP))
    assert agent.change(pod("first", CRON, IP)) == []
    assert agent.rows("endpoints") == {IP: open_pod(DB)}
