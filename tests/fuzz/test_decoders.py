"""Everything that is read from the API server, from etcd and from files, with what nobody meant to write.

Each decoder gives what it is for or raises the one error that it names; what it gives can be written again, and comes
back as it was.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.endpoint_sync.test_any_object import GOOD
from tests.endpoint_sync.world import PATHS
from tests.fuzz.limits import fuzzing
from tests.mutations import Mutator
from tests.records.test_records import KINDS, records

from endpoint_sync.masquerade import CONFIG, masquerade_record
from endpoint_sync.normalise import ObjectError
from node_agent.loader.manifest import MANIFEST, Field, Layout, Manifest, MapEntry, read_manifest, write_manifest
from node_agent.loader.shapes import SHAPES, Shape, read_shapes, write_shapes
from node_agent.masquerade import parse_ports
from policy_sync.compile import compile_policy
from policy_sync.logging import LoggingError, logging_record
from policy_sync.selectors import PolicyError
from tidegate.kube import watch
from tidegate.kube.objects import Object
from tidegate.kube.track import Tracker
from tidegate.kube.watch import GoneError, Invalid, Resource, Unreachable
from tidegate.records import Keyspace, RecordError, decode, encode
from tidegate.records.schema import VERSION, Masquerade, Record
from tidegate.runtime.settings import parse_listen

pytestmark = pytest.mark.fuzz

KEYS = Keyspace("c.1")
# All resources by the kinds of objects that tests write.
RESOURCES: dict[str, Resource[Any]] = {
    resource.kind: resource
    for resource in (
        watch.NAMESPACES, watch.NODES, watch.PODS, watch.SERVICES, watch.ENDPOINT_SLICES, watch.NETWORK_POLICIES,
        watch.NETWORK_LOGGING, CONFIG,
    )
}  # fmt: skip
LOGGING = {
    "kind": "NetworkLogging",
    "metadata": {"name": "default"},
    "spec": {"cluster": {"allow": {"log": True, "delegate": True}, "deny": {"log": False}}},
}
CONFIG_MAP = {"kind": "ConfigMap", "metadata": {"name": "ip-masq-agent"}, "data": {"config": "masqLinkLocal: true"}}
OBJECTS = [*GOOD, LOGGING, CONFIG_MAP]


def nested(depth: int) -> Any:
    value: Any = "x"
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 2**31, 2**32, 2**63, 2**64 - 1, 65536, 1e308),
    *("", "x", "0", "-", "a/b", "\0", "é", "‮", "\U0001f600", "𝟙", "١", "x" * 70_000, "10.0.0.1", "::1/129"),
    *([], {}, [[]], {"": None}, {"\0": 1}, [1] * 300, nested(30), nested(600)),
]


# What begins something longer, in msgpack and in JSON.
OPENING = (b"\x91", b"\xdf\xff\xff\xff\xff", b"\xc9", b"[", b'"', b"{", b"\\u")


def too_deep(choice: random.Random) -> bytes:
    """JSON that no decoder of objects goes through to its end."""
    depth = choice.choice((2000, 100_000))
    return b'{"metadata":{"name":"deep","resourceVersion":"8"},"x":' + b"[" * depth + b"]" * depth + b"}"


def damaged(choice: random.Random, raw: bytes) -> bytes:
    """Bits turned, bytes cut out, put in, or off at the end."""
    made = bytearray(raw)
    for _ in range(choice.randrange(3)):
        place = choice.randrange(len(made) + 1)
        match choice.randrange(5):
            case 0 if place < len(made):
                made[place] ^= 1 << choice.randrange(8)
            case 1:
                del made[place : place + choice.choice((1, 2, 16))]
            case 2:
                made[place:place] = choice.randbytes(choice.choice((1, 2, 5)))
            case 3:
                made[place:place] = (
                    choice.choice((b"\x91", b"\xdf\xff\xff\xff\xff", b"\xc9", b"[", b'"', b"{", b"\\u")) * 5
                )
            case 4:
                del made[place:]
    return bytes(made)


# ---- etcd ----------------------------------------------------------------------------------------------------------


@fuzzing(400)
@given(records, st.integers(0, 2**64))
def test_values_in_etcd(record: Record, seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311  # to be repeated, not to be secret
    plain = msgpack.unpackb(encode(record), strict_map_key=False)
    raw = damaged(choice, msgpack.packb(Mutator(choice, ODD, keep=("v",))(plain), use_bin_type=True))
    for kind in {type(record), choice.choice(KINDS)}:
        try:
            found = decode(kind, raw)
        except RecordError:
            continue
        assert found.v[0] == VERSION[0]
        assert decode(kind, encode(found)) == msgspec.structs.replace(found, v=VERSION)
        assert encode(decode(kind, encode(found))) == encode(found)


@fuzzing(300)
@given(
    st.lists(st.sampled_from(["meta", "peers", "config", "synced", "1", "-1", "", "x", "\0", "é", "1e3", "0x1", "١"]))
)
def test_keys_in_etcd(segments: list[str]) -> None:
    for key in ("/".join(segments), KEYS.prefix + "/".join(segments)):
        parsed = KEYS.parse(key)
        if parsed is not None:
            assert parsed.kind in KINDS
            assert key.endswith(("/".join(parsed.name), "/synced"))


# ---- the API server ------------------------------------------------------------------------------------------------


class Served:
    """An API server that says these bytes."""

    def __init__(self, *pages: bytes) -> None:
        self._pages = pages

    async def pages(self, _path: str, _fields: str) -> AsyncGenerator[bytes, None]:
        for page in self._pages:
            yield page

    def watch(self, _path: str, _fields: str, _version: str) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError


class Known:
    """What a reader knows: name → the object's state, or that it is not understood."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object | Invalid] = {}

    def changed(self, item: Object) -> None:
        self.objects[item.key] = item

    def deleted(self, key: tuple[str, str]) -> None:
        self.objects.pop(key, None)

    def invalid(self, item: Invalid) -> None:
        self.objects[item.namespace, item.name] = item


def some_object(choice: random.Random) -> tuple[Resource[Any], dict[str, Any], Any]:
    """One as it should be, and with parts of it replaced."""
    good = choice.choice(OBJECTS)
    bad = Mutator(choice, ODD, keep=("kind",))(good)
    return RESOURCES[good["kind"]], good, bad


@fuzzing(400)
@given(st.integers(0, 2**64))
def test_lines_of_a_watch(seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311
    resource, good, bad = some_object(choice)
    decoder = watch._Decoder(resource)
    known = Known()
    tracker: Tracker[Any] = Tracker(known)
    other = {**good, "metadata": {**good["metadata"], "name": "another", "resourceVersion": "6"}}
    event, version = watch._event(msgspec.json.encode({"type": "ADDED", "object": other}), decoder, "5")
    assert event is not None
    tracker.apply(event)
    before = dict(known.objects)
    for _ in range(5):
        what = choice.choice(("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "", None, 5))
        line = damaged(choice, msgspec.json.encode({"type": what, "object": choice.choice((bad, good, ODD))}))
        if choice.random() < 0.1:
            line = b'{"type":"ADDED","object":' + too_deep(choice) + b"}"
        try:
            event, version = watch._event(line, decoder, version)
        except GoneError:
            continue
        assert isinstance(version, str)
        assert version
        if event is None or getattr(event, "name", None) == "another":
            continue
        tracker.apply(event)
    # A line about one object says nothing of another.
    assert {key: known.objects.get(key) for key in before} == before


@fuzzing(300)
@given(st.integers(0, 2**64))
def test_pages_of_a_list(seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311
    resource, good, bad = some_object(choice)
    page = {"metadata": {"resourceVersion": "7"}, "items": [good, bad, good]}
    whole = msgspec.json.encode(page)
    broken = damaged(choice, msgspec.json.encode(Mutator(choice, ODD)(page)))
    if choice.random() < 0.1:
        broken = b'{"metadata":{"resourceVersion":"7"},"items":[' + too_deep(choice) + b"]}"

    async def read(*pages: bytes) -> list[watch.Page[Any]]:
        served = watch._list(Served(*pages), resource, watch._Decoder(resource))
        return [found async for found in served]

    (found,) = asyncio.run(read(whole))
    assert len(found.items) >= 2, "one that is not understood costs itself alone"
    assert len(found.items) + len(found.invalid) == 3
    with contextlib.suppress(Unreachable):
        for found in asyncio.run(read(broken)):
            assert found.version
            assert all(isinstance(item, resource.type) for item in found.items)


@fuzzing(400)
@given(st.integers(0, 2**64))
def test_what_records_follow_from_objects(seed: int) -> None:
    """Policies and logging: what is accepted gives a record that can be written; all else is refused by name."""
    choice = random.Random(seed)  # noqa: S311
    for good in (LOGGING, *(item for item in GOOD if item["kind"] == "NetworkPolicy")):
        item = watch._Decoder(RESOURCES[good["kind"]])(msgspec.json.encode(Mutator(choice, ODD, keep=("kind",))(good)))
        if isinstance(item, Invalid):
            continue
        if good is LOGGING:
            with contextlib.suppress(LoggingError):
                record = logging_record(item)
                assert decode(type(record), encode(record)) == record
        else:
            with contextlib.suppress(PolicyError):
                policy = compile_policy(item)
                assert msgspec.json.decode(msgspec.json.encode(policy), type=type(policy)) == policy


CONFIGURATION = {
    "nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8"],
    "masqLinkLocal": True,
    "masqLinkLocalIPv6": False,
    "cidrLimit": 64,
    "resyncInterval": "1m30s",
}
YAML = ["!!bool x", "!!int ''", "!!timestamp x", "!!binary é", "!!set {a}", "!!python/object:os.system x"]
YAML += [
    "&a [*a]",
    "<<: {a: b}",
    "*a",
    "? [a]",
    "1_0:60",
    "2001-99-99",
    ".inf",
    "- " * 500,
    "%YAML 9.9",
    "--- a\n--- b",
]
YAML += ["\t", "\x85", "|+\n", "\0", "\ufeff"]


@fuzzing(400)
@given(st.integers(0, 2**64))
def test_the_config_map_of_masquerading(seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311
    plain = Mutator(choice, ODD)(CONFIGURATION)
    text = choice.choice((lambda: yaml.safe_dump(plain), lambda: msgspec.json.encode(plain).decode()))()
    for _ in range(choice.randrange(4)):
        place = choice.randrange(len(text) + 1)
        text = text[:place] + choice.choice(YAML) + text[place + choice.randrange(3) :]
    with contextlib.suppress(ObjectError):
        record = masquerade_record({"config": text})
        assert decode(Masquerade, encode(record)) == record


# ---- files and settings --------------------------------------------------------------------------------------------

LAYOUT = Layout(20, (Field("addr", 0, 16, "addr"), Field("port", 16, 2, "be16"), Field("pad", 18, 2, "bytes")))
MANIFEST_ONE = Manifest("d", {}, {"m": MapEntry("/m", "hash", 5, 20, 20, LAYOUT, LAYOUT)}, {"0": ("A", "a")})


@fuzzing(200)
@given(st.integers(0, 2**64))
def test_what_the_loader_has_written(tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311
    write_manifest(tmp_path, MANIFEST_ONE)
    write_shapes(tmp_path, {7: Shape("m", LAYOUT, LAYOUT)}, {7})
    for name, read in ((MANIFEST, read_manifest), (SHAPES, read_shapes)):
        path = tmp_path / name
        plain = Mutator(choice, ODD)(msgspec.json.decode(path.read_bytes()))
        path.write_bytes(damaged(choice, msgspec.json.encode(plain)))
        with contextlib.suppress(ValueError):
            assert read(tmp_path) is not None


@fuzzing(300)
@given(st.text("0123456789-:[]. \0é١x", max_size=20))
def test_settings_of_words(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 < len(parse_ports(text)) <= 65535
    with contextlib.suppress(ValueError):
        assert parse_listen(text) is None or 0 <= (parse_listen(text) or ("", 0))[1] <= 65535


def test_every_kind_of_object_is_tried() -> None:
    assert {item["kind"] for item in OBJECTS} == set(PATHS)
