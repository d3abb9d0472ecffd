"""The ConfigMap of ip-masq-agent, as ip-masq-agent reads it, and what changes of it write."""

import json

import pytest
from tests.endpoint_sync.world import KEYS, Object, World, config_map

from endpoint_sync.masquerade import masquerade_record
from endpoint_sync.normalise import ObjectError
from tidegate.records import Masquerade
from tidegate.records.addresses import unpack_cidr

DEFAULTS = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"}
LINK = {"169.254.0.0/16", "fe80::/10"}
WHERE = "kube-system/ip-masq-agent"


def ranges(record: Masquerade) -> set[str]:
    return {unpack_cidr(*item) for item in record.non_masquerade}


def cidrs(count: int) -> str:
    return json.dumps([f"203.0.{number}.0/24" for number in range(count)])


ACCEPTED = [
    ("no file", None, DEFAULTS | LINK),
    ("empty", "", DEFAULTS | LINK),
    ("a comment alone", "# nothing\n", DEFAULTS | LINK),
    ("null", "null", DEFAULTS | LINK),
    ("an empty map", "{}", DEFAULTS | LINK),
    ("fields of others", "somethingElse: 5\nnonmasqueradecidrs: [5]", DEFAULTS | LINK),
    ("a list", "nonMasqueradeCIDRs:\n- 192.0.2.0/24\n- 2001:db8::/32\n", {"192.0.2.0/24", "2001:db8::/32"} | LINK),
    ("one twice", "nonMasqueradeCIDRs: [192.0.2.0/24, 192.0.2.0/24]", {"192.0.2.0/24"} | LINK),
    ("a list of none", "nonMasqueradeCIDRs: []", LINK),
    ("a list that is null", "nonMasqueradeCIDRs:\n", LINK),
    ("everything", "nonMasqueradeCIDRs: [0.0.0.0/0, '::/0']", {"0.0.0.0/0", "::/0"} | LINK),
    ("an address", "nonMasqueradeCIDRs: [192.0.2.1/32]", {"192.0.2.1/32"} | LINK),
    ("link-local", "masqLinkLocal: true", DEFAULTS | {"fe80::/10"}),
    ("link-local of IPv6", "masqLinkLocalIPv6: true", DEFAULTS | {"169.254.0.0/16"}),
    ("both", "masqLinkLocal: true\nmasqLinkLocalIPv6: true", DEFAULTS),
    ("neither, by null", "masqLinkLocal: null\nmasqLinkLocalIPv6: false", DEFAULTS | LINK),
    ("JSON", '{"nonMasqueradeCIDRs": ["192.0.2.0/24"], "masqLinkLocal": true}', {"192.0.2.0/24", "fe80::/10"}),
    ("JSON with tabs", '{\n\t"nonMasqueradeCIDRs": ["192.0.2.0/24"]\n}', {"192.0.2.0/24"} | LINK),
    ("intervals", "resyncInterval: 1h30m2.5s", DEFAULTS | LINK),
    ("an interval of nothing", "resyncInterval: '0'", DEFAULTS | LINK),
    ("an interval with a sign", "resyncInterval: '+1.s'", DEFAULTS | LINK),
    ("a part of an interval", "resyncInterval: .25h", DEFAULTS | LINK),
    ("as many as may be", f"nonMasqueradeCIDRs: {cidrs(64)}", set(json.loads(cidrs(64))) | LINK),
    ("more, allowed", f"cidrLimit: 65\nnonMasqueradeCIDRs: {cidrs(65)}", set(json.loads(cidrs(65))) | LINK),
    ("a limit below the defaults", "cidrLimit: 0", DEFAULTS | LINK),
]


@pytest.mark.parametrize(("why", "text", "expected"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_what_is_understood(why: str, text: str | None, expected: set[str]) -> None:
    assert ranges(masquerade_record(None if text is None else {"config": text})) == expected


def test_the_order_of_the_list_is_nothing() -> None:
    first, second = (
        masquerade_record({"config": f"nonMasqueradeCIDRs: {listed}"})
        for listed in ("[10.0.0.0/8, 192.0.2.0/24]", "[192.0.2.0/24, 10.0.0.0/8, 192.0.2.0/24]")
    )
    assert first == second


def test_other_keys_are_others_business() -> None:
    assert ranges(masquerade_record({"ip-masq-agent": "nonMasqueradeCIDRs: []"})) == DEFAULTS | LINK


# What PyYAML has no error of its own for.
TAGGED = (("bool", "x"), ("int", ""), ("float", ""), ("timestamp", "x"))

REFUSED = [
    ("no YAML", "nonMasqueradeCIDRs: [", "expected"),
    ("no map", "- 10.0.0.0/8", "object"),
    ("a text", "10.0.0.0/8", "object"),
    ("no list", "nonMasqueradeCIDRs: 10.0.0.0/8", "nonMasqueradeCIDRs"),
    ("a number", "nonMasqueradeCIDRs: [10]", "nonMasqueradeCIDRs"),
    ("no CIDR", "nonMasqueradeCIDRs: [10.0.0.0]", "10.0.0.0"),
    ("nothing", "nonMasqueradeCIDRs: ['']", "CIDR"),
    ("host bits", "nonMasqueradeCIDRs: [10.0.0.1/8]", "host bits"),
    ("host bits in IPv6", "nonMasqueradeCIDRs: ['2001:db8::1/32']", "host bits"),
    ("one of two", "nonMasqueradeCIDRs: [10.0.0.0/8, nowhere/8]", "nowhere"),
    ("too many", f"nonMasqueradeCIDRs: {cidrs(65)}", "65"),
    ("a limit", "cidrLimit: 1\nnonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8]", "cidrLimit is 1"),
    ("no bool", "masqLinkLocal: 'true'", "masqLinkLocal"),
    ("no bool in IPv6", "masqLinkLocalIPv6: 1", "masqLinkLocalIPv6"),
    ("an interval without a unit", "resyncInterval: '60'", "resyncInterval"),
    ("an interval as a number", "resyncInterval: 60", "resyncInterval"),
    ("an empty interval", "resyncInterval: ''", "resyncInterval"),
    ("more than an interval", "resyncInterval: 30sx", "resyncInterval"),
    ("no date", "nonMasqueradeCIDRs: [2001-99-99]", "month"),
    ("deep", "[" * 30_000, "deep"),
    *((f"a {kind} that is none", f"masqLinkLocal: !!{kind} '{text}'", "tag") for kind, text in TAGGED),
    ("merge keys", "a: &a {b: c}\nd: {<<: [*a, *a]}", "merge keys"),
    ("long", "#" * 40_000, "characters"),
    ("cut JSON with tabs", '{\n\t"nonMasqueradeCIDRs": ["192.0.2.0/24"]\n', "truncated"),
]


@pytest.mark.parametrize(("why", "text", "word"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused(why: str, text: str, word: str) -> None:
    with pytest.raises(ObjectError, match=word) as refused:
        masquerade_record({"config": text})
    assert str(refused.value).startswith("data.config: ")
    assert "\n" not in str(refused.value)


def now(world: World) -> set[str] | None:
    record = world.records(Masquerade).get(("masquerade",))
    return None if record is None else ranges(record)


def config(text: str) -> Object:
    return config_map(WHERE, config=text)


async def test_a_life() -> None:
    world = World()
    async with world.running(policy=False):
        assert now(world) == DEFAULTS | LINK
        assert await world.written(config("nonMasqueradeCIDRs: [192.0.2.0/24]")) == {"config/masquerade"}
        assert now(world) == {"192.0.2.0/24"} | LINK
        assert await world.written(config("nonMasqueradeCIDRs: [192.0.2.0/24]\nresyncInterval: 5s")) == set()
        world.delete("ConfigMap", *WHERE.split("/"))
        await world.settle()
        assert now(world) == DEFAULTS | LINK


async def test_one_that_is_not_understood_leaves_the_last() -> None:
    """Also over a restart, and until it is understood, or gone."""
    world = World()
    world.put(config("nonMasqueradeCIDRs: []"))
    async with world.running(policy=False):
        world.put(config("nonMasqueradeCIDRs: [10.0.0.1/8]"))
        await world.settle()
        assert now(world) == LINK
        assert "host bits" in world.problems()[f"ConfigMap {WHERE}"]
    async with world.running(policy=False):
        assert now(world) == LINK
        assert list(world.problems()) == [f"ConfigMap {WHERE}"]
        world.put(config_map(WHERE, config="masqLinkLocal: true"))
        await world.settle()
        assert now(world) == DEFAULTS | {"fe80::/10"}
        assert world.problems() == {}
        world.put({**config(""), "data": {"config": 5}})
        await world.settle()
        assert now(world) == DEFAULTS | {"fe80::/10"}
        assert list(world.problems()) == [f"ConfigMap {WHERE}"]
        world.delete("ConfigMap", *WHERE.split("/"))
        await world.settle()
        assert now(world) == DEFAULTS | LINK
        assert world.problems() == {}


async def test_one_that_has_become_no_config_map_while_nobody_watched() -> None:
    """What was in force stays so over a restart that finds it."""
    world = World()
    world.put(config("nonMasqueradeCIDRs: []"))
    async with world.running(policy=False):
        assert now(world) == LINK
    world.put({**config(""), "data": {"config": 5}})
    async with world.running(policy=False):
        assert now(world) == LINK
        assert list(world.problems()) == [f"ConfigMap {WHERE}"]


async def test_one_that_was_never_understood_masquerades_nothing() -> None:
    """As with ip-masq-agent, which then makes no rules."""
    world = World()
    world.put(config("masqLinkLocal: perhaps"))
    async with world.running(policy=False):
        assert now(world) is None
        assert KEYS.prefix + "meta/synced/endpoint-sync" in world.store.values()
        assert list(world.problems()) == [f"ConfigMap {WHERE}"]


async def test_other_config_maps_are_not_read() -> None:
    world = World()
    world.put(config_map("kube-system/other", config="nonMasqueradeCIDRs: []"))
    async with world.running(policy=False):
        assert now(world) == DEFAULTS | LINK
        world.put(config_map("kube-system/other", config="nonMasqueradeCIDRs: [192.0.2.0/24]"))
        await world.settle()
        assert now(world) == DEFAULTS | LINK
