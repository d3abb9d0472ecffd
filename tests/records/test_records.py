"""What lies in etcd: every record comes back as it went in, and nothing that is read can do harm."""

import contextlib
import ipaddress
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.records import (
    FIRST_IDENTITY,
    BackendShard,
    Capacity,
    Endpoint,
    Identity,
    IdentityKeys,
    Keyspace,
    LastWrite,
    Logging,
    Masquerade,
    NamespaceAudit,
    NamespaceLogging,
    Node,
    PeerSet,
    PeerShard,
    Problem,
    Record,
    RecordError,
    Rules,
    Service,
    Subject,
    Synced,
    decode,
    encode,
)
from tidegate.records.addresses import is_ipv4, pack_address, pack_cidr, unpack_address, unpack_cidr
from tidegate.records.codec import unpack
from tidegate.records.ids import SPACE, Numbering, candidate, identity_content, rules_content
from tidegate.records.shards import shard_count, spread

KINDS: list[type[Record]] = [
    BackendShard, Capacity, Endpoint, Identity, IdentityKeys, LastWrite, Logging, Masquerade, NamespaceAudit,
    NamespaceLogging, Node, PeerSet, PeerShard, Problem, Rules, Service, Subject, Synced,
]  # fmt: skip

upper = st.text("ABC", min_size=1)  # no field is named so
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Instances of a Struct, from its own field types."""
    strategies = {}
    for field in msgspec.structs.fields(kind):
        if field.name != "v":
            strategies[field.name] = value(field.type)
    return st.builds(kind, **strategies)


def value(kind: Any) -> st.SearchStrategy[Any]:
    known = {
        int: st.integers(0, 2**32 - 1),
        str: text,
        bytes: st.binary(max_size=16),
        bool: st.booleans(),
    }
    if kind in known:
        return known[kind]
    if hasattr(kind, "__metadata__"):
        (limits,) = kind.__metadata__
        return within(kind.__origin__, limits)
    origin: Any = getattr(kind, "__origin__", None)
    arguments: Any = getattr(kind, "__args__", ())
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(value(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(value, arguments))
    if origin is dict:
        return st.dictionaries(value(arguments[0]), value(arguments[1]), max_size=3)
    return values(kind)


def within(kind: Any, limits: msgspec.Meta) -> st.SearchStrategy[Any]:
    if kind is int:
        return st.integers(int(limits.ge or 0), int(limits.le or 0))
    if kind is bytes:
        return st.binary(min_size=limits.min_length or 0, max_size=limits.max_length)
    return value(kind).filter(lambda found: len(found) <= (limits.max_length or 0))


records = st.sampled_from(KINDS).flatmap(values)


@given(records)
def test_a_record_comes_back_as_it_went_in(record: Record) -> None:
    encoded = encode(record)
    assert decode(type(record), encoded) == record
    assert encode(decode(type(record), encoded)) == encoded
    assert next(iter(unpack(encoded))) == "v"


@given(records)
def test_what_a_newer_version_wrote_is_written_as_what_this_one_knows(record: Record) -> None:
    assert encode(msgspec.structs.replace(record, v=(1, 9))) == encode(record)


@given(values(Identity), st.randoms())
def test_equal_records_give_equal_bytes(identity: Identity, random: Any) -> None:
    items = list(identity.labels.items())
    random.shuffle(items)
    again = msgspec.structs.replace(identity, labels=dict(items))
    assert encode(again) == encode(identity)
    assert identity_content(again) == identity_content(identity)


@given(records, st.integers(0, 200), st.dictionaries(upper, st.integers(0, 9)))
def test_newer_minor_versions_and_unknown_fields_are_read(record: Record, minor: int, more: dict[str, int]) -> None:
    plain = unpack(encode(record)) | more | {"v": [1, minor]}
    assert decode(type(record), msgpack.packb(plain)) == msgspec.structs.replace(record, v=(1, minor))


def grown(kind: Any, plain: Any, more: dict[str, int]) -> Any:
    """What was written, with fields that nobody here knows in it and in every part of it that has fields."""
    if hasattr(kind, "__metadata__"):
        return grown(kind.__origin__, plain, more)
    arguments: Any = getattr(kind, "__args__", ())
    if isinstance(plain, list) and arguments:
        kinds = [arguments[0]] * len(plain) if arguments[-1] is Ellipsis else arguments
        return [grown(each, item, more) for each, item in zip(kinds, plain, strict=True)]
    if isinstance(plain, dict) and arguments:
        return {key: grown(arguments[1], item, more) for key, item in plain.items()}
    if not isinstance(plain, dict):
        return plain
    types = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    return {name: grown(types[name], item, more) for name, item in plain.items()} | more


@given(records, st.dictionaries(upper, st.integers(0, 9), min_size=1))
def test_unknown_fields_are_skipped_in_every_part_of_a_record(record: Record, more: dict[str, int]) -> None:
    newer = grown(type(record), unpack(encode(record)), more) | {"v": [1, 7]}
    assert decode(type(record), msgpack.packb(newer)) == msgspec.structs.replace(record, v=(1, 7))


@given(records, st.data())
def test_fields_that_an_older_writer_did_not_send_have_defaults(record: Record, data: st.DataObject) -> None:
    """As long as later versions give new fields a default: of a record itself every field has one."""
    plain = unpack(encode(record))
    kept = data.draw(st.sets(st.sampled_from(sorted(plain)))) | {"v"}
    older = decode(type(record), msgpack.packb({name: plain[name] for name in plain if name in kept}))
    defaults = type(record)()
    for name in plain.keys() - kept:
        assert getattr(older, name) == getattr(defaults, name)


@pytest.mark.parametrize("version", [None, 1, [1], [2, 0], [0, 9], ["1", "0"], [1, 0, 0], [1, None], {"1": 0}])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(RecordError, match="version"):
        decode(Subject, msgpack.packb({"v": version, "policy": 1}))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Service, {"ports": [{"id": 1, "port": 70000}]}),
        (Service, {"ports": [{"id": 2**32}]}),
        (Service, {"cluster_ips": [b"1234"]}),
        (Rules, {"rules": [{"direction": 0, "protocol": 300}]}),
        (Rules, {"rules": [{"direction": 2}]}),
        (Rules, {"rules": [{"direction": 0, "prefix": 17}]}),
        (Rules, {"rules": [{"direction": 0, "sets": list(range(9))}]}),
        (PeerShard, {"members": [-1]}),
        (Endpoint, {"addresses": [bytes(17)]}),
        (Node, {"pod_cidrs": [[bytes(16), 129]]}),
        (BackendShard, {"backends": [{"address": bytes(16), "ports": {"a": -1}}]}),
    ],
)
def test_what_no_map_entry_can_hold_is_refused(kind: type[Record], fields: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        decode(kind, msgpack.packb({"v": [1, 0], **fields}))


@given(st.binary(max_size=64) | st.binary(max_size=32).map(lambda tail: msgpack.packb({"v": [1, 0]})[:-1] + tail))
def test_arbitrary_bytes_are_a_record_or_a_record_error(raw: bytes) -> None:
    for kind in KINDS:
        with contextlib.suppress(RecordError):
            decode(kind, raw)


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.binary(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(KINDS), st.data())
def test_fields_of_another_type_are_a_record_error(kind: type[Record], data: st.DataObject) -> None:
    names = [field.name for field in msgspec.structs.fields(kind) if field.name != "v"]
    plain = {name: data.draw(json) for name in data.draw(st.sets(st.sampled_from(names), min_size=1))}
    with contextlib.suppress(RecordError):
        decode(kind, msgpack.packb({"v": [1, 0], **plain}))


def test_a_nesting_bomb_is_a_record_error() -> None:
    bomb = b"\x81\xa1v" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(RecordError):
        decode(Subject, bomb)


# Addresses


@given(st.ip_addresses())
def test_addresses(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    packed = pack_address(str(address))
    assert len(packed) == 16
    assert pack_address(unpack_address(packed)) == packed
    if address.version == 4:
        assert is_ipv4(packed)
        assert unpack_address(packed) == str(address)
        assert packed == pack_address(f"::ffff:{address}")
    else:
        assert packed == address.packed


@pytest.mark.parametrize(
    "bad",
    ["", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.256", "::g", "fe80::1%eth0", "1.2.3.4\0", "localhost", "١.1.1.1"],
)
def test_what_is_no_address(bad: str) -> None:
    with pytest.raises(ValueError, match="no IP address"):
        pack_address(bad)


@pytest.mark.parametrize("length", [0, 4, 15, 17])
def test_packed_addresses_have_16_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        unpack_address(bytes(length))


@given(st.ip_addresses(), st.integers(0, 128))
def test_cidrs(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int) -> None:
    network = ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)
    packed, prefix = pack_cidr(str(network))
    assert prefix == network.prefixlen + (96 if network.version == 4 else 0)
    assert pack_cidr(unpack_cidr(packed, prefix)) == (packed, prefix)
    if network.version == 4:
        assert unpack_cidr(packed, prefix) == str(network)


@pytest.mark.parametrize(
    "bad",
    [
        "", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "10.0.0.0/0.0.0.255",
        "10.0.0.0/255.0.0.0", "fd00::/129", "fd00::1/64", "fe80::%1/64", "x/8", "10.0.0.0/8/8",
    ],
)  # fmt: skip
def test_what_is_no_cidr(bad: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        pack_cidr(bad)


def test_host_bits_and_zeros_mean_nothing_where_kubernetes_takes_them() -> None:
    assert pack_cidr("10.0.0.77/24", legacy=True) == pack_cidr("10.0.0.0/24")
    assert pack_cidr("fd00::77/64", legacy=True) == pack_cidr("fd00::/64")
    assert pack_cidr("010.000.00.0/08", legacy=True) == pack_cidr("10.0.0.0/8")
    for bad in ("10.0.0.77", "10..0.0/8", "10.0.0.0/٨", "10.0.0/8"):
        with pytest.raises(ValueError, match=r".+"):
            pack_cidr(bad, legacy=True)


# Numbers


@given(st.lists(st.binary(max_size=6)))
def test_numbers_follow_from_content_and_do_not_clash(contents: list[bytes]) -> None:
    numbering = Numbering()
    numbers = {content: numbering.take(content) for content in contents}
    assert len(set(numbers.values())) == len(numbers) == len(numbering)
    assert all(FIRST_IDENTITY <= number < SPACE for number in numbers.values())
    assert {content: Numbering().take(content) for content in contents} == numbers
    for content, number in numbers.items():
        numbering.release(number)
        assert numbering.take(content) == number


def test_a_clash_takes_the_next_number_of_the_chain() -> None:
    content = b"content"
    taken = {candidate(content, 0): b"x", candidate(content, 1): b"y"}
    numbering = Numbering(taken)
    assert numbering.take(content) == candidate(content, 2)
    assert numbering.take(b"x") == candidate(content, 0)
    with pytest.raises(KeyError):
        numbering.release(candidate(content, 3))


@given(values(Identity), values(Identity))
def test_contents_are_equal_only_for_equal_identities(one: Identity, other: Identity) -> None:
    assert (identity_content(one) == identity_content(other)) == (one == other)


def test_contents_do_not_run_into_one_another() -> None:
    pairs = [
        (Identity(namespace="a", labels={"b": "c"}), Identity(namespace="ab", labels={"": "c"})),
        (Identity(labels={"ports": "x", "1": "2"}), Identity(labels={}, ports={"x": (1, 2)})),
    ]
    for one, other in pairs:
        assert identity_content(one) != identity_content(other)


@given(values(Rules), values(Rules))
def test_contents_are_equal_only_for_equal_rules(one: Rules, other: Rules) -> None:
    assert (rules_content(one) == rules_content(other)) == (one == other)


# Keys

segment = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=6)
number = st.integers(0, 2**32 - 1)


@given(st.data())
def test_keys_are_parsed_back(data: st.DataObject) -> None:
    keys = Keyspace("c.1")
    a, b, c, d = (data.draw(segment) for _ in range(4))
    n, m = data.draw(number), data.draw(number)
    made: list[tuple[str, type[Record], tuple[str, ...]]] = [
        (keys.synced(a), Synced, (a,)),
        (keys.identities_synced(), Synced, ("endpoint-sync",)),
        (keys.last_write(a), LastWrite, (a,)),
        (keys.problem(a, b, c, d), Problem, (a, b, c, d)),
        (keys.problem(a, b, "", d), Problem, (a, b, "-", d)),
        (keys.capacity(), Capacity, ("capacity",)),
        (keys.node(a), Node, (a,)),
        (keys.identity(n), Identity, (str(n),)),
        (keys.endpoint(a, b), Endpoint, (a, b)),
        (keys.service(a, b), Service, (a, b)),
        (keys.backends(a, b, n), BackendShard, (a, b, str(n))),
        (keys.identity_keys(), IdentityKeys, ("identity-keys",)),
        (keys.masquerade(), Masquerade, ("masquerade",)),
        (keys.logging(), Logging, ("logging",)),
        (keys.namespace_logging(a), NamespaceLogging, (a,)),
        (keys.namespace_audit(a), NamespaceAudit, (a,)),
        (keys.peer_set(n), PeerSet, (str(n),)),
        (keys.peers(n, m), PeerShard, (str(n), str(m))),
        (keys.rules(n), Rules, (str(n),)),
        (keys.subject(n), Subject, (str(n),)),
    ]
    assert {kind for _, kind, _ in made} == set(KINDS)
    for key, kind, name in made:
        parsed = keys.parse(key)
        assert parsed is not None
        assert (parsed.kind, parsed.name) == (kind, name)
        assert Keyspace("other").parse(key) is None


@given(st.text(max_size=30))
def test_unknown_keys_are_no_error(path: str) -> None:
    keys = Keyspace("c")
    keys.parse(path)
    keys.parse(keys.prefix + path)
    assert keys.parse(keys.leader("x")) is None
    assert not keys.leader("x").startswith(keys.prefix), "agents watch all of v1"


@pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a-", "a b", "ä", "a\n"])
def test_cluster_names(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        Keyspace(name)


# Shards


@given(st.integers(0, 10**6), st.integers(1, 1000), st.integers(0, 20))
def test_shards_hold_about_the_target(size: int, target: int, power: int) -> None:
    current = 2**power
    count = shard_count(size, target, current)
    assert count >= 1
    assert count & (count - 1) == 0
    assert size <= 2 * target * count
    assert count == 1 or size * 4 >= target * count
    assert shard_count(size, target, count) == count, "settled"
    if size <= 2 * target * current and size * 4 >= target * current:
        assert count == current, "kept while it will do"


@given(st.sets(st.integers(0, 2**31)), st.integers(0, 6))
def test_every_member_is_in_one_shard(members: set[int], power: int) -> None:
    shards = spread(members, 2**power, lambda member: member)
    assert sorted(member for shard in shards.values() for member in shard) == sorted(members)
    assert all(0 <= index < 2**power and shard for index, shard in shards.items())
