"""What changes costs what changed; however a state was reached, the records are the same."""

import random
from collections.abc import AsyncIterator

import pytest
from tests.endpoint_sync.world import KEYS, Object, World, match, namespace, pod, policy
from tests.policy.compiled import Compiled
from tests.policy.model import Packet

from tidegate.records import IdentityKeys, PeerShard, Problem, Rules, Subject, encode
from tidegate.records.capacity import POLICY_SIZES
from tidegate.runtime import metrics
from tidegate.store import Delete, Put

WEB, DB = match(app="web"), match(app="db")
DB_FOR_WEB = policy("shop/p", DB, ingress=[{"from": [{"podSelector": WEB}], "ports": [{"port": 80}]}])


def web(number: int, ip: str | None = None) -> Object:
    return pod(f"shop/web-{number}", ip or f"10.0.1.{number}", {"app": "web"})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Three web pods, a database, and a policy by which those reach that."""
    made = World()
    made.put(namespace("shop", team="a"), namespace("pay", team="b"), *map(web, (1, 2, 3)))
    made.put(pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with made.running():
        yield made


def reaches(world: World, source: str, port: int = 80, target: str = "shop/db") -> bool:
    return Compiled(world).allows(Packet(source, target, "TCP", port))


# Costs


async def test_a_pod_of_a_known_identity_costs_its_endpoint(world: World) -> None:
    assert await world.written(web(4)) == {"endpoints/shop/web-4"}
    assert reaches(world, "shop/web-4")


async def test_a_new_identity_costs_itself_and_the_sets_that_it_is_in(world: World) -> None:
    (number,) = {name[0] for name in world.records(PeerShard)}
    keys = await world.written(pod("shop/web-x", "10.0.1.9", {"app": "web", "new": "yes"}))
    identity = world.identity_of("shop", "web-x")
    expected = {f"identities/{identity}", f"subjects/{identity}", f"peers/{number}/0", "endpoints/shop/web-x"}
    assert keys == expected
    keys = await world.written(pod("shop/other", "10.0.1.10", {"app": "other"}))
    identity = world.identity_of("shop", "other")
    assert keys == {f"identities/{identity}", f"subjects/{identity}", "endpoints/shop/other"}


async def test_a_namespace_relabelled_re_identifies_nobody(world: World) -> None:
    world.put(policy("shop/q", DB, ingress=[{"from": [{"namespaceSelector": match(team="b")}]}]))
    world.put(pod("pay/client", "10.0.2.1", {"app": "client"}))
    await world.settle()
    assert reaches(world, "pay/client", 5432)
    keys = await world.written(namespace("pay", team="c"))
    assert {key.split("/")[0] for key in keys} == {"peers"}
    assert not reaches(world, "pay/client", 5432)


async def test_policies_of_the_same_wording_share_their_sets(world: World) -> None:
    sets = len(world.records(PeerShard))
    world.put(*(policy(f"shop/p{n}", DB, ingress=[{"from": [{"podSelector": WEB}]}]) for n in range(50)))
    await world.settle()
    assert len(world.records(PeerShard)) == sets
    assert len(world.records(Rules)) == 2, "one for the database, one for those that no policy selects"


async def test_a_policy_that_goes_leaves_nothing_behind(world: World) -> None:
    before = world.values()
    world.put(policy("shop/q", WEB, egress=[{"to": [{"podSelector": DB}]}]))
    await world.settle()
    assert world.values() != before
    world.delete("NetworkPolicy", "shop", "q")
    await world.settle()
    assert world.values() == before


async def test_the_same_again_costs_nothing(world: World) -> None:
    assert await world.written(DB_FOR_WEB, namespace("shop", team="a"), web(1)) == set()


async def test_what_is_not_written_is_not_sent_either(world: World) -> None:
    """Counted as the store counts: a key written with the value that it has would cost every node as much."""
    operations = world.store.operations
    world.put(web(4))
    await world.settle()
    assert world.store.operations - operations == 1, "the endpoint"
    operations = world.store.operations
    world.put(DB_FOR_WEB, namespace("shop", team="a"), web(1))
    await world.settle()
    assert world.store.operations == operations


def fleet(numbers: range) -> list[Object]:
    return [pod(f"shop/n{n}", f"10.7.{n // 250}.{n % 250}", {"app": "web", "n": str(n)}) for n in numbers]


async def test_a_new_member_of_a_large_set_costs_one_shard(world: World) -> None:
    world.put(*fleet(range(900)))
    await world.settle()
    shards = world.records(PeerShard)
    assert len(shards) > 2
    members = [number for shard in shards.values() for number in shard.members]
    assert len(members) == len(set(members)) == 901
    operations = world.store.operations
    keys = await world.written(*fleet(range(900, 901)))
    identity = world.identity_of("shop", "n900")
    (shard,) = {key for key in keys if key.startswith("peers/")}
    assert keys == {f"identities/{identity}", f"subjects/{identity}", "endpoints/shop/n900", shard}
    assert world.store.operations - operations == len(keys)
    assert reaches(world, "shop/n900")


async def test_a_set_that_has_become_small_has_no_shards_left_over() -> None:
    world = World()
    world.grace = 0.0
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running():
        before = world.values()
        world.put(*fleet(range(900)))
        await world.settle()
        assert len(world.records(PeerShard)) > 2
        for n in range(900):
            world.delete("Pod", "shop", f"n{n}")
        await world.settle()
        world.endpoint_sync.collect()
        await world.settle()
        assert world.values() == before


# Port names in egress: whoever looks at its peers' ports is judged anew when those are others


TO_HTTP = policy(
    "shop/out", WEB, egress=[{"to": [{"namespaceSelector": match(team="b")}], "ports": [{"port": "http"}]}]
)


def listening(where: str, ip: str, port: int) -> Object:
    return pod(where, ip, {"app": "listener"}, {"http": ("TCP", port)})


async def test_a_new_peer_brings_another_number_for_a_name(world: World) -> None:
    world.put(TO_HTTP, listening("pay/a", "10.0.5.1", 8080))
    await world.settle()
    world.put(listening("pay/b", "10.0.5.2", 9090))
    await world.settle()
    assert reaches(world, "shop/web-1", 8080, "pay/a")
    assert reaches(world, "shop/web-1", 9090, "pay/b")
    assert not reaches(world, "shop/web-1", 9090, "pay/a")
    assert not reaches(world, "shop/web-1", 8080, "pay/b")


async def test_a_namespace_relabelled_brings_another_number_for_a_name(world: World) -> None:
    world.put(TO_HTTP, namespace("ops", team="c"), listening("ops/a", "10.0.5.1", 8080))
    await world.settle()
    assert not reaches(world, "shop/web-1", 8080, "ops/a")
    world.put(namespace("ops", team="b"))
    await world.settle()
    assert reaches(world, "shop/web-1", 8080, "ops/a")
    world.delete("Namespace", "", "ops")
    await world.settle()
    assert not reaches(world, "shop/web-1", 8080, "ops/a")


# Starting again


async def test_a_restart_writes_its_marks_and_nothing_else() -> None:
    world = World()
    world.put(namespace("shop"), *map(web, range(1, 200)), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running():
        pass
    before, operations = world.values(), world.store.operations
    async with world.running():
        assert world.values() == before
    # Each begins its chain of transactions, then marks; endpoint-sync has two marks.
    assert world.store.operations - operations == 5


async def test_a_wiped_store_gets_the_same_records_again(world: World) -> None:
    before = world.values()
    world.store.wipe()
    await world.until(lambda: world.values() == before)


async def test_an_older_copy_is_brought_up_to_date(world: World) -> None:
    copy = world.store.copy()
    world.put(web(9), policy("shop/q", WEB), pod("shop/new", "10.0.3.1", {"fresh": "label"}))
    await world.settle()
    before = world.values()
    world.store.restore(copy)
    await world.until(lambda: world.values() == before)


async def test_an_identity_that_went_while_the_history_was_forgotten(world: World) -> None:
    """A follower that must read everything again learns from what is not there, too."""
    world.put(pod("shop/other", "10.0.0.20", {"app": "other"}))
    await world.settle()
    number = world.identity_of("shop", "other")
    assert (str(number),) in world.records(Subject)
    world.store.put_now([Delete(KEYS.identity(number))])
    world.store.compact()
    await world.settle()
    assert world.store.relists > 0
    assert (str(number),) not in world.records(Subject)


async def test_records_that_somebody_else_damaged_are_mended_on_a_restart() -> None:
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running():
        before = world.values()
    key = next(key for key in before if key.startswith("rules/"))
    world.store.put_now([Put(KEYS.prefix + key, b"\xc1"), Put(KEYS.subject(1), b"nobody's")])
    async with world.running():
        assert world.values() == before


async def test_of_two_policy_syncs_one_writes_and_the_other_takes_over() -> None:
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running("one", "two"):
        leader = KEYS.leader("policy-sync")
        first = world.store.values()[leader]
        # A policy that asks endpoint-sync for more reaches the one that does not lead, too.
        world.put(policy("shop/q", match(**{"pod-template-hash": "h"})))
        await world.settle()
        before, asked = world.values(), world.records(IdentityKeys)
        world.store.expire(leader)
        await world.until(lambda: world.store.values().get(leader, first) != first)
        await world.settle()
        assert (world.values(), world.records(IdentityKeys)) == (before, asked)
        assert await world.written(policy("shop/r", WEB)) != set()


async def test_rules_are_not_made_for_a_part_of_the_identities() -> None:
    """policy-sync alone waits: without endpoint-sync's mark, what lies under identities may be half of them."""
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running(endpoint=False):
        world.store.put_now([Put(KEYS.identity(300), b"\x81\xa1v\x92\x01\x00")])
        await world.settle()
        assert world.records(Subject) == {}
        async with world.running(policy=False):
            await world.settle()
            assert reaches(world, "shop/web-1")


# Policies that ask for more


async def test_a_policy_waits_until_identities_carry_what_it_selects_on(world: World) -> None:
    world.put(pod("shop/a", "10.0.4.1", {"app": "x", "pod-template-hash": "h1"}))
    world.put(pod("shop/b", "10.0.4.2", {"app": "x", "pod-template-hash": "h2"}))
    await world.settle()
    assert world.identity_of("shop", "a") == world.identity_of("shop", "b")
    peer = {"podSelector": match(**{"pod-template-hash": "h1"})}
    world.put(policy("shop/q", DB, ingress=[{"from": [peer]}]))
    await world.settle()
    assert world.records(IdentityKeys)["identity-keys",].label_keys == ("pod-template-hash",)
    assert world.identity_of("shop", "a") != world.identity_of("shop", "b")
    assert reaches(world, "shop/a", 5432)
    assert not reaches(world, "shop/b", 5432)
    world.delete("NetworkPolicy", "shop", "q")
    await world.settle()
    assert world.identity_of("shop", "a") == world.identity_of("shop", "b")


async def test_until_endpoint_sync_answers_the_previous_state_stands() -> None:
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running(endpoint=False):
        async with world.running(policy=False):
            assert reaches(world, "shop/web-1")
        asking = policy("shop/p", DB, ingress=[{"from": [{"podSelector": match(**{"pod-template-hash": "h"})}]}])
        world.put(asking)
        await world.settle()
        assert reaches(world, "shop/web-1"), "endpoint-sync is away"
        async with world.running(policy=False):
            assert not reaches(world, "shop/web-1")


BY_NAME = policy("shop/p", DB, ingress=[{"from": [{"podSelector": WEB}], "ports": [{"port": "sql"}]}])
SQL = pod("shop/db", "10.0.0.9", {"app": "db"}, {"sql": ("TCP", 5432)})


async def test_an_answer_to_an_earlier_asking_says_nothing() -> None:
    """What identities carried before may have been taken from them since."""
    world = World()
    world.put(namespace("shop"), web(1), SQL, BY_NAME)
    async with world.running(endpoint=False):
        async with world.running(policy=False):
            assert reaches(world, "shop/web-1", 5432)
        for changed in (policy("shop/p", DB, ingress=[]), BY_NAME):
            world.put(changed)
            await world.settle()
            assert not reaches(world, "shop/web-1", 5432)
        async with world.running(policy=False):
            assert reaches(world, "shop/web-1", 5432)


async def test_what_is_in_force_keeps_what_it_looks_at() -> None:
    """While the next state of a policy waits for identities that carry more."""
    world = World()
    world.put(namespace("shop"), web(1), SQL, BY_NAME)
    async with world.running(endpoint=False):
        async with world.running(policy=False):
            assert reaches(world, "shop/web-1", 5432)
        world.put(policy("shop/p", DB, ingress=[{"from": [{"podSelector": match(**{"pod-template-hash": "h"})}]}]))
        await world.settle()
        asked = world.records(IdentityKeys)["identity-keys",]
        assert (asked.label_keys, asked.port_names) == (("pod-template-hash",), ("sql",))
        assert reaches(world, "shop/web-1", 5432)
        async with world.running(policy=False):
            assert not reaches(world, "shop/web-1", 5432)
            assert world.records(IdentityKeys)["identity-keys",].port_names == ()


# Bad policies

BAD: dict[str, Object] = {
    "operator": policy("shop/p", {"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]}),
    "values missing": policy("shop/p", {"matchExpressions": [{"key": "a", "operator": "In"}]}),
    "values too many": policy("shop/p", {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}),
    "port": policy("shop/p", DB, ingress=[{"ports": [{"port": 70000}]}]),
    "port 0": policy("shop/p", DB, ingress=[{"ports": [{"port": 0}]}]),
    "backward range": policy("shop/p", DB, ingress=[{"ports": [{"port": 90, "endPort": 80}]}]),
    "range of a name": policy("shop/p", DB, ingress=[{"ports": [{"port": "http", "endPort": 80}]}]),
    "endPort alone": policy("shop/p", DB, ingress=[{"ports": [{"endPort": 80}]}]),
    "protocol": policy("shop/p", DB, ingress=[{"ports": [{"protocol": "IPX"}]}]),
    "type": policy("shop/p", DB, policyTypes=["Sideways"]),
    "empty peer": policy("shop/p", DB, ingress=[{"from": [{}]}]),
    "wrong JSON type": policy("shop/p", DB, ingress={"from": 5}),
}
UNREADABLE = ("operator", "values missing", "values too many", "wrong JSON type")  # not even whom it is for


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_policy_gone_bad_keeps_its_previous_state(world: World, bad: Object) -> None:
    database = str(world.identity_of("shop", "db"))
    before = world.records(Subject)[database,]
    world.put(bad, policy("shop/other", WEB, policyTypes=["Egress"]))
    await world.settle()
    assert list(world.problems()) == ["NetworkPolicy shop/p"]
    assert "previous state" in world.problems()["NetworkPolicy shop/p"]
    assert world.records(Subject)[database,] == before
    assert not reaches(world, "shop/web-1"), "the other policy works: web may send nothing"
    world.put(policy("shop/p", DB, ingress=[{}]))
    await world.settle()
    assert world.problems() == {}
    assert world.records(Subject)[database,] != before


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_policy_gone_bad_keeps_its_previous_state_over_restarts(bad: Object) -> None:
    world = World()
    world.put(namespace("shop"), *map(web, (1, 2)), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running():
        world.put(bad)
        await world.settle()
        before, problems = world.values(), world.problems()
        assert "previous state" in problems["NetworkPolicy shop/p"]
    for _ in range(2):
        async with world.running():
            assert world.values() == before
            assert reaches(world, "shop/web-1", 80)
            assert not reaches(world, "shop/web-1", 81)
            world.put(pod("shop/stranger", "10.0.4.1", {"app": "stranger"}))
            await world.settle()
            assert not reaches(world, "shop/stranger", 80)
            world.delete("Pod", "shop", "stranger")
            await world.settle()
            before = world.values()
    async with world.running():
        world.put(policy("shop/p", DB, ingress=[{}]))
        await world.settle()
        assert world.problems() == {}
        assert reaches(world, "shop/web-1", 81)


async def test_a_policy_that_went_and_came_back_bad_has_no_previous_state() -> None:
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running():
        world.put(BAD["port"])
        await world.settle()
    async with world.running():
        world.delete("NetworkPolicy", "shop", "p")
        await world.settle()
        assert reaches(world, "shop/web-1", 81)
        world.put(BAD["port"])
        await world.settle()
        assert not reaches(world, "shop/web-1", 80)


async def test_a_last_good_state_that_cannot_be_read_closes() -> None:
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), DB_FOR_WEB)
    async with world.running():
        world.put(BAD["port"])
        await world.settle()
    problem = Problem(reason="r", last_good="{")
    world.store.put_now([Put(KEYS.problem("policy-sync", "NetworkPolicy", "shop", "p"), encode(problem))])
    async with world.running():
        assert not reaches(world, "shop/web-1", 80)
        assert "isolated" in world.problems()["NetworkPolicy shop/p"]


# Policies too large


def ports(numbers: range) -> list[Object]:
    return [{"ports": [{"port": number} for number in numbers]}]


async def test_a_policy_of_too_many_ports_is_refused_alone(world: World) -> None:
    world.put(policy("shop/p", DB, ingress=ports(range(1, 60_000))), policy("shop/q", WEB, egress=ports(range(1, 9))))
    await world.settle()
    assert list(world.problems()) == ["NetworkPolicy shop/p"]
    assert "8192 are possible" in world.problems()["NetworkPolicy shop/p"]
    assert not reaches(world, "shop/web-1", 80), "by the other policy"
    world.delete("NetworkPolicy", "shop", "q")
    await world.settle()
    assert reaches(world, "shop/web-1", 80), "as before"
    assert not reaches(world, "shop/web-1", 81)


async def test_policies_too_large_together_cost_those_that_they_select(world: World) -> None:
    before = world.records(Subject)
    for index in range(4):
        start = 1 + index * 8000
        world.put(policy(f"shop/large-{index}", DB, ingress=ports(range(start, start + 8000))))
    await world.settle()
    identity = world.identity_of("shop", "db")
    assert list(world.problems()) == [f"Identity shop/{identity}"]
    assert "what held before stays" in world.problems()[f"Identity shop/{identity}"]
    selecting = {"p", *(f"large-{index}" for index in range(4))}
    assert events(world) == dict.fromkeys(selecting, ("TidegateRulesTooLarge", 1))
    world.put(policy("shop/out", WEB, policyTypes=["Egress"]))
    await world.settle()
    assert not reaches(world, "shop/web-1", 80), "others go on"
    for name in ("out", *(f"large-{index}" for index in range(4))):
        world.delete("NetworkPolicy", "shop", name)
        await world.settle()
    assert world.problems() == {}
    assert world.records(Subject) == before
    fitting = {name for name, (reason, _) in events(world).items() if reason == "TidegateRulesFit"}
    assert fitting == {"p", "large-2", "large-3"}, "those that were left when it fitted"


def events(world: World) -> dict[str, tuple[str, int]]:
    """Name of a NetworkPolicy → reason and count of the last Event about it."""
    found = {}
    for event in world.api.objects("/api/v1/namespaces/shop/events"):
        about = event["involvedObject"]
        assert (about["kind"], event["source"]["component"]) == ("NetworkPolicy", "tidegate-policy-sync")
        found[about["name"]] = event["reason"], event["count"]
    return found


async def test_a_subject_with_more_members_than_a_node_holds_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICY_SIZES, "members", 2)
    world.put(*fleet(range(3)))
    await world.settle()
    world.put(policy("shop/q", DB, ingress=[{"from": [{"podSelector": WEB}]}]))
    await world.settle()
    (reason,) = world.problems().values()
    assert "4 entries of members for it, and a node holds 2 of members" in reason
    assert not reaches(world, "shop/web-1", 81), "what held before stays"
    assert reaches(world, "shop/web-1", 80)


async def test_many_that_may_all_see_each_other_are_a_sum(world: World) -> None:
    """1,000 identities on 50 ports: 50 rules and 1,000 members, not 50 million pairs; one more costs one member."""
    world.put(*fleet(range(997)))
    world.put(
        policy("shop/p", ingress=[{"from": [{"podSelector": {}}], "ports": [{"port": 8000 + n} for n in range(50)]}])
    )
    await world.settle()
    subjects = {record.policy for record in world.records(Subject).values()}
    assert len(subjects) == 1
    (rules,) = (record.rules for (n,), record in world.records(Rules).items() if int(n) in subjects)
    assert len(rules) == 50
    assert sum(len(shard.members) for shard in world.records(PeerShard).values()) == 999
    operations = world.store.operations
    await world.written(*fleet(range(997, 998)))
    assert world.store.operations - operations == 4, "identity, endpoint, subject, and one shard of the set"


async def test_an_identity_that_goes_takes_its_problem_along() -> None:
    world = World()
    world.grace = 0.0
    for index in range(4):
        start = 1 + index * 8000
        world.put(policy(f"shop/large-{index}", ingress=ports(range(start, start + 8000))))
    world.put(namespace("shop"), web(1))
    async with world.running():
        identity = world.identity_of("shop", "web-1")
        assert list(world.problems()) == [f"Identity shop/{identity}"]
        assert (str(identity),) not in world.records(Subject), "a new one is closed"
        world.delete("Pod", "shop", "web-1")
        await world.settle()
        world.endpoint_sync.collect()
        await world.settle()
        assert world.problems() == {}


@pytest.mark.parametrize("kind", BAD)
async def test_a_policy_bad_from_the_start_closes_whom_it_is_for(kind: str) -> None:
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), BAD[kind])
    async with world.running():
        assert list(world.problems()) == ["NetworkPolicy shop/p"]
        assert reaches(world, "shop/web-1") == (kind in UNREADABLE)
        world.delete("NetworkPolicy", "shop", "p")
        await world.settle()
        assert world.problems() == {}
        assert reaches(world, "shop/web-1")


async def test_a_closed_policy_that_gets_worse_stays_closed_and_says_so() -> None:
    world = World()
    world.put(namespace("shop"), web(1), pod("shop/db", "10.0.0.9", {"app": "db"}), BAD["port"])
    async with world.running():
        assert not reaches(world, "shop/web-1")
        world.put(BAD["wrong JSON type"])
        await world.settle()
        assert not reaches(world, "shop/web-1")
        assert "isolated" in world.problems()["NetworkPolicy shop/p"]
        world.put(DB_FOR_WEB)
        await world.settle()
        assert reaches(world, "shop/web-1")
        assert world.problems() == {}


async def test_problems_are_counted(world: World) -> None:
    def count() -> float | None:
        labels = {"writer": "policy-sync", "kind": "NetworkPolicy"}
        return metrics.REGISTRY.get_sample_value("tidegate_problems", labels)

    world.put(BAD["port"], policy("shop/q", WEB, policyTypes=["Sideways"]))
    await world.settle()
    assert count() == 2
    world.put(DB_FOR_WEB)
    world.delete("NetworkPolicy", "shop", "q")
    await world.settle()
    assert count() == 0


# However it was reached


def any_object(choice: random.Random) -> Object:
    what = choice.randrange(4)
    where = choice.choice(["shop", "pay", "ops"])
    if what == 0:
        return namespace(where, team=choice.choice("ab"))
    if what < 3:
        number = choice.randrange(8)
        labels = {"app": choice.choice(["web", "db"]), "pod-template-hash": choice.choice("xy")}
        ports = {"http": ("TCP", choice.choice([80, 8080]))} if choice.random() < 0.5 else {}
        return pod(f"{where}/p{number}", f"10.9.{ord(where[0])}.{number}", labels, ports)
    peer = choice.choice(
        [
            {"podSelector": WEB},
            {"podSelector": match(**{"pod-template-hash": "x"})},
            {"namespaceSelector": match(team="a"), "podSelector": DB},
        ]
    )
    rule = {"from": [peer], "ports": [choice.choice([{"port": 80}, {"port": "http"}])]}
    spec = {"ingress": [rule]} if choice.random() < 0.5 else {"egress": [{"to": rule["from"], "ports": rule["ports"]}]}
    return policy(f"{where}/n{choice.randrange(3)}", choice.choice([WEB, DB, {}]), **spec)


def any_step(choice: random.Random, world: World, present: dict[tuple[str, str, str], Object]) -> None:
    item = any_object(choice)
    key = item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]
    if key in present and choice.random() < 0.4:
        world.delete(*key)
        del present[key]
    else:
        world.put(item)
        present[key] = item


@pytest.mark.parametrize("seed", range(12))
async def test_step_by_step_is_as_from_scratch(seed: int) -> None:
    """What changes while nobody looks is found at the next start."""
    choice = random.Random(seed)  # noqa: S311  # to be repeated, not to be secret
    world = World()
    present: dict[tuple[str, str, str], Object] = {}
    world.grace = 0.0
    for _ in range(3):
        async with world.running():
            for _ in range(60):
                any_step(choice, world, present)
                if choice.random() < 0.3:
                    await world.settle()
                if choice.random() < 0.1:
                    world.endpoint_sync.collect()
            await world.settle()
            world.endpoint_sync.collect()
            await world.settle()
            assert world.values() == await from_scratch(present)
        for _ in range(15):
            any_step(choice, world, present)


async def from_scratch(present: dict[tuple[str, str, str], Object]) -> dict[str, bytes]:
    fresh = World()
    fresh.grace = 0.0
    fresh.put(*present.values())
    async with fresh.running():
        # The first identities were made before policies asked for what they need of them.
        fresh.endpoint_sync.collect()
        await fresh.settle()
        return fresh.values()
