"""ipBlock: what is understood, and the prefixes that the kernel gets."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.endpoint_sync.world import KEYS, Object, World, namespace, pod, policy

from policy_sync.ipblocks import NO_NEED, Block, BlockSpec, Cidr, Need, ip_block, is_within, prefixes
from policy_sync.selectors import PolicyError
from tidegate.kube.objects import IPBlock
from tidegate.records import PeerShard, Rules
from tidegate.records.addresses import pack_cidr, unpack_cidr

HTTP: Need = ("http", (6, 80))


def block(cidr: str, *excepts: str) -> Block:
    return ip_block(IPBlock(cidr=cidr, except_=excepts), "peer")


def words(spec: BlockSpec) -> dict[str, str]:
    """CIDR → `yes`, `no`, or the names of ports."""
    return {
        unpack_cidr(*cidr): "no" if not needs else ", ".join(name or "yes" for name, _ in needs)
        for cidr, needs in prefixes(spec)
    }


REFUSED = [
    ("10.0.0.0", ()), ("10.0.0.0/33", ()), ("10.0.0/8", ()), ("", ()), ("10.0.0.0/8/8", ()), ("fd00::%eth0/64", ()),
    ("fd00::/129", ()), ("x/8", ()), ("10.0.0.0/8", ("10.0.0.0",)), ("10.0.0.0/8", ("10.0.0.0/8",)),
    ("10.0.0.0/8", ("10.0.0.0/7",)), ("10.0.0.0/8", ("11.0.0.0/16",)), ("10.0.0.0/8", ("fd00::/16",)),
    ("::/0", ("10.0.0.0/8",)), ("::/0", ("::ffff:10.0.0.0/104",)), ("fd00::/8", ("fe00::/16",)),
]  # fmt: skip


@pytest.mark.parametrize(("cidr", "excepts"), REFUSED)
def test_what_the_api_refuses(cidr: str, excepts: tuple[str, ...]) -> None:
    with pytest.raises(PolicyError, match=r"^peer\.(cidr|except\[0\]): "):
        block(cidr, *excepts)


def test_what_the_api_takes_in_several_writings() -> None:
    plain = block("10.0.0.0/8", "10.1.0.0/16")
    assert block("10.9.9.9/8", "10.1.2.3/16") == plain
    assert block("010.000.0.0/8", "10.01.0.0/16") == plain
    assert block("::ffff:10.0.0.0/104", "10.1.0.0/16", "10.1.7.0/24", "10.1.0.0/16") == plain
    assert str(plain) == "10.0.0.0/8 except 10.1.0.0/16"


def test_prefixes_are_as_few_as_possible() -> None:
    assert words((block("10.0.0.0/8"), block("10.1.0.0/16"), block("10.1.2.0/24"))) == {"10.0.0.0/8": "yes"}
    spec = (block("10.0.0.0/8", "10.1.0.0/16"), block("10.0.0.0/7", "10.1.0.0/16", "10.1.4.0/24"))
    assert words(spec) == {"10.0.0.0/7": "yes", "10.1.0.0/16": "no"}
    assert words((block("10.0.0.0/8", "10.1.0.0/16"), block("10.1.0.0/16"))) == {"10.0.0.0/8": "yes"}


def test_ipv6_means_no_ipv4() -> None:
    assert words((block("::/0"),)) == {"::/0": "yes", "0.0.0.0/0": "no"}
    assert words((block("::/0"), block("10.0.0.0/8"))) == {"::/0": "yes", "0.0.0.0/0": "no", "10.0.0.0/8": "yes"}
    assert words((block("::/0"), block("0.0.0.0/0"))) == {"::/0": "yes"}
    assert words((block("::/0", "::/64"), block("0.0.0.0/0"))) == {"::/0": "yes", "::/64": "no", "0.0.0.0/0": "yes"}


def test_ports_that_are_needed_besides() -> None:
    wide, narrow = block("10.0.0.0/8").named(*HTTP), block("10.1.0.0/16")
    assert words((wide, narrow)) == {"10.0.0.0/8": "http", "10.1.0.0/16": "yes"}
    other = block("10.2.0.0/16", "10.2.2.0/24").named("web", (6, 80))
    assert words((wide, other)) == {"10.0.0.0/8": "http", "10.2.0.0/16": "http, web", "10.2.2.0/24": "http"}


@st.composite
def specs(draw: st.DrawFn) -> BlockSpec:
    found = []
    for _ in range(draw(st.integers(1, 5))):
        base = draw(st.sampled_from(["10.0.0.0/28", "0.0.0.0/0", "::/0", "::/90", "fd00::/124", "10.0.0.0/29"]))
        outer = ip_network(base)
        sizes = st.integers(outer.prefixlen + 1, outer.max_prefixlen)
        inner = draw(st.lists(st.tuples(st.integers(0, min(outer.num_addresses, 16) - 1), sizes), max_size=3))
        excepts = [str(ip_network((outer[offset], length), strict=False)) for offset, length in inner]
        one = block(base, *excepts)
        found.append(one.named(*HTTP) if draw(st.booleans()) else one)
    return tuple(sorted(set(found)))


PROBES = [
    *(f"10.0.0.{n}" for n in range(18)), *(f"fd00::{n:x}" for n in range(18)), "1.2.3.4", "255.255.255.255",
    "::", "::1", "::7", "::fffe:ffff:ffff", "::1:0:0:0", "2001:db8::1", "0.0.0.0", "0.0.0.9",
]  # fmt: skip


@given(specs())
def test_the_longest_prefix_says_what_the_blocks_say(spec: BlockSpec) -> None:
    table = dict(prefixes(spec))
    for text in PROBES:
        host = pack_cidr(f"{text}/{ip_address(text).max_prefixlen}")
        around: list[Cidr] = [cidr for cidr in table if is_within(host, cidr)]
        found = table[max(around, key=lambda cidr: cidr[1])] if around else ()
        holding = {(one.port_name, one.port) for one in spec if holds(one, text)}
        assert found == ((NO_NEED,) if NO_NEED in holding else tuple(sorted(holding))), text


def holds(one: Block, text: str) -> bool:
    def within(cidr: Cidr) -> bool:
        return ip_address(text) in ip_network(unpack_cidr(*cidr))

    return within(one.cidr) and not any(map(within, one.excepts))


async def test_a_thousand_blocks_are_a_sum() -> None:
    """Each prefix stands once, in records of about 1 KB; another policy's blocks touch none of them."""
    world = World()
    world.put(namespace("shop"), pod("shop/db", "10.0.0.9", {"app": "db"}), pod("shop/web", "10.0.0.8", {"app": "web"}))
    peers: list[Object] = [{"ipBlock": {"cidr": f"10.{n >> 8}.{n & 255}.0/24"}} for n in range(1000)]
    world.put(policy("shop/p", {"matchLabels": {"app": "db"}}, ingress=[{"from": peers}]))
    async with world.running():
        shards = world.records(PeerShard)
        assert sum(len(shard.blocks) for shard in shards.values()) == 1000
        assert len(shards) == 25
        assert all(len(value) < 1100 for key, value in world.values().items() if key.startswith("peers/"))
        around = {"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"10.{n}.128.0/17" for n in range(4)]}}
        written = await world.written(policy("shop/q", {"matchLabels": {"app": "web"}}, ingress=[{"from": [around]}]))
        new = {name for name in world.records(PeerShard) if name not in shards}
        assert {key for key in written if key.startswith("peers/")} == {
            *(f"peers/{set_}/{shard}" for set_, shard in new),
            *(f"peers/{set_}" for set_, _ in new),
        }
        assert sum(len(world.records(PeerShard)[name].blocks) for name in new) == 5
        world.delete("NetworkPolicy", "shop", "p")
        world.delete("NetworkPolicy", "shop", "q")
        await world.settle()
        assert world.records(PeerShard) == {}
        assert not [key for key in world.values() if key.startswith(KEYS.peer_set(0).removesuffix("0"))]


async def test_rules_tell_which_policies_allow() -> None:
    world = World()
    world.put(namespace("shop"), pod("shop/db", "10.0.0.9", {"app": "db"}), pod("shop/web", "10.0.0.8", {"app": "web"}))
    only, web = {"ipBlock": {"cidr": "10.0.0.0/8"}}, {"podSelector": {"matchLabels": {"app": "web"}}}
    subject = {"matchLabels": {"app": "db"}}
    world.put(policy("shop/a", subject, ingress=[{"from": [only]}]))
    async with world.running():
        assert all(rule.grounds == () for record in world.records(Rules).values() for rule in record.rules)
        world.put(policy("shop/b", subject, ingress=[{"from": [only, web]}]))
        world.put(policy("shop/c", subject, ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/16"}}]}]))
        world.put(policy("shop/d", subject, ingress=[{}]))
        await world.settle()
        (record,) = (record for record in world.records(Rules).values() if record.policies)
        (rule,) = record.rules
        names = [[record.policies[place] for place in ground.policies] for ground in rule.grounds]
        assert sorted(names) == [["shop/a", "shop/b"], ["shop/b"], ["shop/c"], ["shop/d"]]
        assert (rule.sets, rule.blocks) == ((1,), 0)
