"""Rules that do not fit into the maps are refused whole, subject by subject: what held before stays."""

from tests.node_agent.world import (
    KEYS,
    Agent,
    Values,
    blocks,
    from_set,
    members,
    pod,
    pod_key,
    rules,
    subject,
)

from node_agent.entries import EP_CLOSED, SUBJECT_INGRESS_ISOLATED
from tidegate.records import PeerSet, encode
from tidegate.records.addresses import pack_address

WEB, DB, JOB = 1001, 1002, 1003
IP, DB_IP = "10.0.1.5", "10.0.1.6"
SIZES = {"members": 10, "rules": 4, "peer_blocks": 3}


def policy(number: int, group: int, count: int) -> Values:
    """One rule for one set of so many members."""
    known = {KEYS.peer_set(group): encode(PeerSet(text="some pods"))}
    return {**known, **rules(number, from_set(group)), **members(group, 0, *range(2000, 2000 + count))}


def programmed(agent: Agent) -> dict[int, int]:
    """Identity → policy."""
    return {identity: row["policy"] for identity, row in agent.rows("subjects").items()}


def members_of(agent: Agent, group: int) -> int:
    return sum(1 for number, _ in agent.rows("members") if number == group)


def settled(agent: Agent) -> None:
    """As an agent that looks again once something has gone."""
    agent.route({IP: 7, DB_IP: 8})
    agent.route({IP: 7, DB_IP: 8})


def test_a_subject_keeps_its_complete_rules_until_there_is_room_for_the_new_ones() -> None:
    agent = Agent(sizes=SIZES)
    agent.snapshot({**pod("web", WEB, IP), **subject(WEB, 5), **policy(5, 300, 4)})
    agent.change({**pod("db", DB, DB_IP), **subject(DB, 7), **policy(7, 302, 3)})
    before = dict(agent.kernel["subjects"]), dict(agent.kernel["rules"]), dict(agent.kernel["members"])
    agent.change({**policy(6, 301, 6), **subject(WEB, 6)})
    # As policy-sync, which knows of no node that it still uses them.
    agent.remove(KEYS.rules(5), KEYS.peers(300, 0), KEYS.peer_set(300))
    assert (agent.kernel["subjects"], agent.kernel["rules"], agent.kernel["members"]) == before
    assert agent.view.refused_policies == {
        "policies of default/web": "map members: 6 entries more, and the map holds 10",
    }
    agent.change({**policy(8, 303, 2), **subject(DB, 8)})
    assert programmed(agent) == {WEB: 5, DB: 8}, "others go on"
    assert members_of(agent, 301) == 0
    agent.remove(pod_key("db"))
    settled(agent)
    assert programmed(agent) == {WEB: 6}
    assert (members_of(agent, 300), members_of(agent, 301)) == (0, 6)
    assert agent.rows("rules").keys() == {(6, 0, 6, 16, 80)}
    assert agent.view.refused_policies == {}


def test_a_pod_that_is_relabelled_keeps_its_identity_where_the_new_ones_rules_find_no_room() -> None:
    agent = Agent(sizes=SIZES)
    agent.route({IP: 7})
    agent.snapshot({**pod("web", WEB, IP), **subject(WEB, 5), **policy(5, 300, 4)})
    agent.change({**subject(JOB, 6), **policy(6, 301, 7), **pod("web", JOB, IP)})
    assert agent.rows("endpoints")[IP]["identity"] == WEB
    assert programmed(agent) == {WEB: 5}
    assert list(agent.view.refused_policies) == ["policies of default/web"]
    agent.change(policy(6, 301, 6))
    agent.change(pod("web", JOB, IP))
    assert agent.rows("endpoints")[IP]["identity"] == JOB
    assert programmed(agent) == {JOB: 6}
    assert agent.view.refused_policies == {}


def test_rules_and_blocks_are_counted_too() -> None:
    agent = Agent(sizes=SIZES)
    agent.snapshot({**pod("web", WEB, IP), **subject(WEB, 5), **rules(5)})
    agent.change({**rules(6, *(from_set(300, port) for port in range(5))), **subject(WEB, 6)})
    assert "map rules: 5 entries more, and the map holds 4" in agent.view.refused_policies.values()
    named = from_set(300)
    cidrs = tuple((f"10.{n}.0.0/16", 1) for n in range(4))
    record = rules(7, type(named)(direction=0, blocks=700))
    agent.change({**record, **blocks(700, 0, *cidrs), **subject(WEB, 7)})
    assert "map peer_blocks: 4 entries more, and the map holds 3" in agent.view.refused_policies.values()
    assert programmed(agent) == {WEB: 5}
    assert agent.flags("subjects", WEB) == SUBJECT_INGRESS_ISOLATED


def test_a_member_that_finds_no_room_is_left_out_and_hinders_nothing() -> None:
    agent = Agent(sizes=SIZES)
    agent.snapshot({**pod("web", WEB, IP), **subject(WEB, 5), **policy(5, 300, 10)})
    agent.change(members(300, 1, 3000, 3001))
    assert members_of(agent, 300) == 10
    assert agent.view.refused_policies == {
        "1 sets of peers": "2 members found no room, and are not allowed what they should be"
    }
    agent.change({**pod("db", DB, DB_IP), **subject(DB, 7), **rules(7)})
    assert programmed(agent) == {WEB: 5, DB: 7}, "others go on"
    agent.change(members(300, 0, 2000, 2001))
    settled(agent)
    assert {(300, 3000), (300, 3001)} <= agent.rows("members").keys()
    assert agent.view.refused_policies == {}
    agent.remove(KEYS.peers(300, 1))
    assert members_of(agent, 300) == 2


def test_a_subject_keeps_its_rules_over_a_restart_also_where_their_records_are_gone() -> None:
    agent = Agent(sizes=SIZES)
    old = {**rules(5, type(from_set(300))(direction=0, sets=(300,), blocks=700)), **members(300, 0, 2000, 2001, 2002)}
    old |= {**blocks(700, 0, ("10.0.0.0/8", 301), ("10.1.0.0/16", 0)), **members(301, 0, 2003)}
    agent.route({IP: 7})
    agent.snapshot({**pod("web", WEB, IP), **subject(WEB, 5), **old})
    before = {name: dict(agent.kernel[name]) for name in ("subjects", "rules", "members", "peer_blocks", "endpoints")}
    again = agent.restarted()
    again.view.set_host({pack_address(IP): 7}, frozenset())  # nothing is written before the first snapshot
    again.snapshot({**pod("web", WEB, IP), **subject(WEB, 6), **policy(6, 302, 7)})
    assert list(again.view.refused_policies) == ["policies of default/web"]
    assert {name: again.kernel[name] for name in before} == before
    again.change(policy(6, 302, 6))
    again.change(pod("web", WEB, IP))
    settled(again)
    assert programmed(again) == {WEB: 6}
    assert (members_of(again, 300), members_of(again, 301), members_of(again, 302)) == (0, 0, 6)
    assert again.rows("peer_blocks") == {}


def test_a_restart_counts_what_stands_already_once() -> None:
    agent = Agent(sizes=SIZES)
    values = {**pod("web", WEB, IP), **subject(WEB, 5), **policy(5, 300, 9)}
    agent.snapshot(values)
    again = agent.restarted()
    assert again.snapshot(values) == []
    assert again.view.refused_policies == {}


def test_many_that_may_all_see_each_other_are_a_sum() -> None:
    """6,000 identities with pods here, on fifty ports: 12,050 entries, where pairs would be 36 million."""
    agent = Agent()
    many = range(2000, 8000)
    values: Values = {**rules(5, *(from_set(300, 8000 + port) for port in range(50)))}
    for shard in range(32):
        values |= members(300, shard, *(number for number in many if number % 32 == shard))
    for number in many:
        values |= {**subject(number, 5), **pod(f"p{number}", number, f"10.0.{number >> 8}.{number & 255}")}
    agent.snapshot(values)
    counts = {name: len(agent.kernel[name]) for name in ("members", "rules", "subjects")}
    assert counts == {"members": 6000, "rules": 50, "subjects": 6000}


def test_pods_that_found_no_room_get_it_with_another_one_of_their_identity() -> None:
    agent = Agent(sizes=SIZES)
    agent.route({IP: 7, DB_IP: 8, "10.0.1.7": 9})
    agent.snapshot({**pod("db", DB, DB_IP), **subject(DB, 5), **policy(5, 300, 6)})
    agent.change({**subject(WEB, 6), **policy(6, 301, 6), **pod("web", WEB, IP)})
    assert agent.rows("endpoints")[IP]["flags"] & EP_CLOSED
    agent.remove(pod_key("db"))
    agent.change(pod("web-2", WEB, "10.0.1.7"))  # before the agent looks for what has gone
    assert {agent.rows("endpoints")[ip]["identity"] for ip in (IP, "10.0.1.7")} == {WEB}
    assert agent.view.refused_policies == {}


def test_rules_that_found_no_room_find_it_when_their_sets_have_become_smaller() -> None:
    agent = Agent(sizes=SIZES)
    agent.route({IP: 7})
    agent.snapshot({**pod("web", WEB, IP), **subject(WEB, 6), **policy(6, 301, 11)})
    assert agent.rows("endpoints")[IP]["flags"] & EP_CLOSED
    agent.change(members(301, 0, *range(2000, 2010)))
    settled(agent)
    assert agent.rows("endpoints")[IP]["identity"] == WEB
    assert members_of(agent, 301) == 10
