"""The agent's access to pinned maps, on real ones."""

import struct
from collections.abc import Iterator

import pytest
from tests.bpf.kernel import Loaded
from tests.node_agent.conftest import SIZES
from tests.node_agent.world import MAPS

from node_agent.entries import FRONTEND_OPEN, PRESENT, Entries
from node_agent.loader import MapEntry
from node_agent.loader.carry import BATCH
from node_agent.loader.pins import possible_cpus
from node_agent.maps import Map, MapError, MapFullError, Maps
from node_agent.table import ORDER
from tidegate.records.addresses import pack_address

pytestmark = pytest.mark.root


@pytest.fixture
def maps(loaded: Loaded) -> Iterator[Maps]:
    opened = Maps(loaded.manifest.maps)
    yield opened
    opened.close()


@pytest.fixture
def entries(loaded: Loaded) -> Entries:
    return Entries(loaded.manifest.maps)


def some_members(entries: Entries, count: int) -> list[tuple[bytes, bytes]]:
    return [(entries.member_key(300, 1000 + number), b"\1\0\0\0") for number in range(count)]


def endpoint(entries: Entries, number: int) -> tuple[bytes, bytes]:
    return pack_address(f"10.0.{number // 250}.{number % 250}"), entries.pod(1000 + number, 0)


def test_the_layouts_of_the_pure_tests_are_those_of_the_c_types(loaded: Loaded) -> None:
    for name, entry in MAPS.items():
        real = loaded.manifest.maps[name]
        for ours, theirs in ((entry.key, real.key), (entry.value, real.value)):
            plain = [field for field in ours.fields if not field.name.startswith("pad")]
            assert plain == [field for field in theirs.fields if not field.name.startswith("pad")], name
            assert ours.size == theirs.size, name


def test_all_maps_but_the_rings_are_opened(maps: Maps, loaded: Loaded) -> None:
    assert set(ORDER) < set(maps)
    assert {*maps, "events_drops", "events_verdicts", "log_allowed"} == set(loaded.manifest.maps)
    assert len(maps) == len(set(maps))


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 100])
def test_what_was_written_is_read(maps: Maps, entries: Entries, count: int) -> None:
    listed = some_members(entries, count)
    assert maps["members"].update_all(dict(listed)) == count
    assert maps["members"].items() == dict(listed)


def test_what_the_agent_writes_is_what_the_programs_see(maps: Maps, entries: Entries, loaded: Loaded) -> None:
    maps["endpoints"].update(pack_address("10.0.0.1"), entries.pod(1001, 7))
    key, value = entries.backend_key(5, 2), entries.backend(pack_address("10.0.0.9"), 8080)
    maps["backends"].update(key, value)
    maps["frontends"].update(
        entries.frontend_key(pack_address("10.96.0.1"), 443, 6), entries.frontend(5, 6, is_open=True, has_ranges=False)
    )
    assert loaded.maps["endpoints"].get({"addr": "10.0.0.1"}) == {"identity": 1001, "ifindex": 7, "flags": 1}
    backend = loaded.maps["backends"].get({"service": 5, "slot": 2})
    assert backend is not None
    assert (backend["addr"], backend["port"]) == ("10.0.0.9", 8080)
    frontend = loaded.maps["frontends"].get({"addr": "10.96.0.1", "port": 443, "protocol": 6})
    assert frontend is not None
    assert (frontend["service"], frontend["outside"], frontend["flags"]) == (5, 6, FRONTEND_OPEN)


def test_ranges_are_read_as_they_were_written(maps: Maps, entries: Entries) -> None:
    written = {entries.source_range(5, pack_address("10.0.0.0"), prefix): PRESENT for prefix in (96, 104, 128)}
    assert maps["source_ranges"].update_all(written) == 3
    assert maps["source_ranges"].items() == written
    maps["source_ranges"].delete_all(list(written)[:1])
    assert maps["source_ranges"].items() == dict(list(written.items())[1:])


def test_an_entry_is_replaced_and_removed(maps: Maps, entries: Entries) -> None:
    endpoints = maps["endpoints"]
    key, value = endpoint(entries, 1)
    assert endpoints.lookup(key) is None
    endpoints.update(key, value)
    endpoints.update(key, entries.pod(7, 7))
    assert endpoints.lookup(key) == entries.pod(7, 7)
    assert endpoints.delete(key)
    assert not endpoints.delete(key)
    assert endpoints.lookup(key) is None


def test_many_are_removed_whether_they_are_there_or_not(maps: Maps, entries: Entries) -> None:
    listed = some_members(entries, BATCH + 10)
    maps["members"].update_all(dict(listed[:-5]))
    maps["members"].delete_all([key for key, _ in listed[3:]])
    assert maps["members"].items() == dict(listed[:3])


def test_a_batch_replaces_what_is_there(maps: Maps, entries: Entries) -> None:
    keys = [endpoint(entries, number)[0] for number in range(10)]
    maps["endpoints"].update_all(dict.fromkeys(keys, entries.pod(1, 0)))
    maps["endpoints"].update_all(dict.fromkeys(keys, entries.pod(2, 0)))
    assert set(maps["endpoints"].items().values()) == {entries.pod(2, 0)}


@pytest.mark.parametrize("before", [0, 10])
def test_a_full_map_says_how_many_were_written(maps: Maps, entries: Entries, before: int) -> None:
    size = SIZES["endpoints"]
    endpoints = maps["endpoints"]
    listed = [endpoint(entries, number) for number in range(size + 20)]
    assert endpoints.update_all(dict(listed[:before])) == before
    assert endpoints.update_all(dict(listed[before:])) == size - before
    assert endpoints.items() == dict(listed[:size])
    # What is there already is replaced also in a full map.
    assert endpoints.update_all({key: entries.pod(9, 0) for key, _ in listed[:size]}) == size


def test_a_map_that_becomes_full_in_a_later_batch(maps: Maps, entries: Entries) -> None:
    size = SIZES["members"]
    assert size > 2 * BATCH
    listed = some_members(entries, size + 1)
    assert maps["members"].update_all(dict(listed)) == size
    assert maps["members"].items() == dict(listed[:size])


def test_a_single_entry_into_a_full_map_is_an_error_that_names_it(maps: Maps, entries: Entries) -> None:
    size = SIZES["endpoints"]
    maps["endpoints"].update_all(dict(endpoint(entries, number) for number in range(size)))
    with pytest.raises(MapFullError, match=f"endpoints.*full.*{size}"):
        maps["endpoints"].update(*endpoint(entries, size))


def test_values_of_every_cpu(maps: Maps) -> None:
    values = maps["counters"].per_cpu_values(struct.pack("=I", 1))
    assert len(values) == possible_cpus()
    assert {len(value) for value in values} == {maps["counters"].value.size}


def test_a_pin_that_is_not_there_is_an_error_that_names_it(loaded: Loaded) -> None:
    entry = loaded.manifest.maps["members"]
    gone = MapEntry(
        **{name: getattr(entry, name) for name in entry.__struct_fields__} | {"path": f"{loaded.bpffs}/none"}
    )
    with pytest.raises(MapError, match=r"map members: cannot open its pin .*/none: No such file"):
        Map("members", gone)
