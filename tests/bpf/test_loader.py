"""The loader: what it leaves behind, above all when something goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.bpf.conftest import run_loader
from tests.bpf.kernel import Loaded

from node_agent.loader import Manifest, catch_up, mark_filled, prune, read_manifest, unfilled
from node_agent.loader.carry import begin
from node_agent.loader.layout import parse_layout
from node_agent.loader.objects import KEPT, Object, read_object, write_object
from node_agent.loader.pins import possible_cpus
from node_agent.loader.source import find_source, read_source

MAPS_H = """
#pragma once
#ifndef SIZE_ours
#define SIZE_ours 16
#endif
#ifndef SIZE_theirs
#define SIZE_theirs 16
#endif
#define OWNED_BY_PROGRAMS theirs
#define REASONS(REASON) REASON(0, FORWARDED, "forwarded") \\
	REASON(1, OTHER, "another one")
#define MAP_HASH(name, key, value) BPF_F_TABLE("hash", key, value, name, SIZE_##name, BPF_F_NO_PREALLOC)
#define MAP_LRU(name, key, value) BPF_F_TABLE("lru_hash", key, value, name, SIZE_##name, 0)
struct addr { u32 w[4]; };
struct key { struct addr addr; __be16 port; u8 pad[2]; };
struct value { u64 number; u32 flags; };
MAP_HASH(ours, struct key, struct value);
MAP_LRU(theirs, u32, struct value);
"""
POD_C = """
#include "maps.h"
#if FAMILY == 6
#define PROGRAM(name) name##6
#else
#define PROGRAM(name) name
#endif
int PROGRAM(from_pod)(struct __sk_buff *skb) { u32 key = 1; return theirs.lookup(&key) ? 0 : -1; }
int PROGRAM(to_pod)(struct __sk_buff *skb) { struct key key = {}; return ours.lookup(&key) ? 0 : -1; }
"""
NETWORK_C = '#include "maps.h"\n' + "".join(
    f"int PROGRAM({name})(struct __sk_buff *skb) {{ return -1; }}\n" for name in ("from_network", "to_network")
)
SOCKET_C = "".join(
    f"int {name}(struct bpf_sock_addr *ctx) {{ return 1; }}\n"
    for kind in ("connect", "sendmsg", "recvmsg", "getpeername")
    for name in (f"{kind}4", f"{kind}6")
)
SOCKET_C += "int sock_release(struct bpf_sock *ctx) { return 1; }\n"


@dataclass
class Place:
    """A source of two maps, and where it is loaded."""

    source: Path
    bpffs: Path
    state: Path
    cache: Path

    def load(self, *options: str) -> subprocess.CompletedProcess[str]:
        return run_loader(self.bpffs, self.state, "--cache", str(self.cache), "--source", str(self.source), *options)

    def loaded(self, *options: str) -> Manifest:
        result = self.load(*options)
        assert result.returncode == 0, result.stderr
        return self.manifest()

    def manifest(self) -> Manifest:
        manifest = read_manifest(self.state)
        assert manifest is not None
        return manifest

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.source / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def pins(self) -> set[str]:
        return {str(path.relative_to(self.bpffs)) for path in self.bpffs.rglob("*") if not path.is_dir()}

    def map_ids(self) -> dict[str, int]:
        return {name: _map_id(Path(entry.path)) for name, entry in self.manifest().maps.items()}


def _map_id(path: Path) -> int:
    shown = subprocess.run(["bpftool", "-j", "map", "show", "pinned", path], check=True, capture_output=True)
    return int(json.loads(shown.stdout)["id"])


@pytest.fixture
def place(bpffs: Path, tmp_path: Path) -> Iterator[Place]:
    source = tmp_path / "source"
    source.mkdir()
    for name, text in (("maps.h", MAPS_H), ("pod.c", POD_C), ("network.c", NETWORK_C), ("socket.c", SOCKET_C)):
        (source / name).write_text(text)
    shutil.copytree(find_source() / "stubs", source / "stubs")
    directory = bpffs / "loader"
    yield Place(source, directory, tmp_path / "state", tmp_path / "cache")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.root
def test_manifest_names_what_is_pinned(place: Place) -> None:
    manifest = place.loaded()
    assert set(manifest.maps) == {"ours", "theirs"}
    assert len(manifest.programs) == 17
    paths = [entry.path for entry in manifest.maps.values()] + [entry.path for entry in manifest.programs.values()]
    assert all(Path(path).exists() for path in paths)
    assert manifest.reasons == {"0": ("FORWARDED", "forwarded"), "1": ("OTHER", "another one")}
    ours = manifest.maps["ours"]
    assert (ours.type, ours.max_entries, ours.key_size, ours.value_size) == ("hash", 16, 20, 16)
    assert [tuple(field) for field in ours.key.fields] == [
        ("addr", 0, 16, "addr"),
        ("port", 16, 2, "be16"),
        ("pad", 18, 2, "bytes"),
    ]
    assert [tuple(field) for field in ours.value.fields[:2]] == [("number", 0, 8, "u64"), ("flags", 8, 4, "u32")]
    assert manifest.programs["connect4"].attach_type == "cgroup_inet4_connect"
    assert manifest.programs["from_pod"].type == "sched_cls"


@pytest.mark.root
def test_nothing_is_compiled_twice(place: Place) -> None:
    before = place.loaded()
    ids = place.map_ids()
    # Without a compiler's input: were it needed, this would fail.
    shutil.rmtree(place.source / "stubs")
    assert "already loaded" in place.load().stdout
    assert (place.manifest(), place.map_ids()) == (before, ids)


@pytest.mark.root
def test_after_a_reboot_what_was_compiled_is_loaded_again(place: Place) -> None:
    assert "compiled and loaded" in place.load().stdout
    before = place.manifest()
    shutil.rmtree(place.bpffs)
    shutil.rmtree(place.state)
    shutil.rmtree(place.source / "stubs")
    shown = place.load("--size", "ours=32").stdout
    assert "loaded" in shown
    assert "compiled" not in shown
    after = place.manifest()
    assert after.programs.keys() == before.programs.keys()
    assert after.digest != before.digest
    assert after.maps["ours"].max_entries == 32
    assert after.maps["theirs"].max_entries == 16


@pytest.mark.root
def test_what_is_no_object_is_compiled_again(place: Place) -> None:
    place.loaded()
    (found,) = place.cache.glob("[!.]*")
    found.write_bytes(b"\x93\x01")
    shutil.rmtree(place.bpffs)
    assert "compiled and loaded" in place.load().stdout
    shutil.rmtree(place.bpffs)
    assert "compiled" not in place.load().stdout


def test_a_cache_keeps_the_latest(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        write_object(tmp_path, str(number), Object({}, {}))
        os.utime(tmp_path / str(number), (number, number))
    assert {path.name for path in tmp_path.iterdir()} == {str(number) for number in range(2, KEPT + 2)}
    assert read_object(tmp_path, "0") is None
    assert read_object(tmp_path, "2") == Object({}, {})


@pytest.mark.root
def test_changed_source_gets_new_programs_and_the_same_maps(place: Place) -> None:
    before = place.loaded()
    ids = place.map_ids()
    place.edit("network.c", "return -1", "return 0")
    after = place.loaded()
    assert after.digest != before.digest
    assert place.map_ids() == ids
    # The old ones are in use until the agent has moved its links.
    assert Path(before.programs["from_pod"].path).exists()
    assert prune(place.bpffs, after.digest, after.maps) == [before.digest]
    assert place.pins() == {"maps/ours", "maps/theirs"} | {f"programs/{after.digest}/{name}" for name in after.programs}


@pytest.mark.root
def test_lost_pins_are_made_again(place: Place) -> None:
    manifest = place.loaded()
    Path(manifest.programs["to_pod"].path).unlink()
    assert "already" not in place.load().stdout
    assert Path(manifest.programs["to_pod"].path).exists()
    Path(manifest.maps["ours"].path).unlink()
    assert "already" not in place.load().stdout
    assert Path(manifest.maps["ours"].path).exists()


@pytest.fixture
def filled(place: Place) -> Iterator[Loaded]:
    """Both maps with twelve entries."""
    loaded = Loaded(place.loaded(), place.bpffs, place.state)
    for number in range(12):
        loaded.maps["ours"].set({"addr": f"10.0.0.{number}", "port": number}, {"number": number, "flags": 7})
        loaded.maps["theirs"].set({"value": number}, {"number": number})
    yield loaded
    loaded.close()


def content(place: Place) -> dict[str, list[str]]:
    now = Loaded(place.manifest(), place.bpffs, place.state)
    found = {name: sorted(map(str, opened.items())) for name, opened in now.maps.items()}
    now.close()
    return found


@pytest.mark.root
@pytest.mark.parametrize("size", [12, 32])
def test_another_size_keeps_what_the_maps_hold(place: Place, filled: Loaded, size: int) -> None:
    before, ids = content(place), place.map_ids()
    shown = place.load("--size", f"ours={size}", "--size", f"theirs={4 * size}").stdout
    assert "with what they held: ours, theirs" in shown
    assert [place.manifest().maps[name].max_entries for name in ("ours", "theirs")] == [size, 4 * size]
    assert content(place) == before
    assert all(place.map_ids()[name] != ids[name] for name in ids)
    assert "already loaded" in place.load("--size", f"ours={size}", "--size", f"theirs={4 * size}").stdout


@pytest.mark.root
def test_an_array_that_grows_keeps_its_values(place: Place) -> None:
    """As `settings` does, when the programs learn another one."""
    few = 'BPF_F_TABLE("array", u32, value, name, FEW, 0)'
    place.edit("maps.h", "#define OWNED", f"#define FEW 2\n#define MAP_FEW(name, value) {few}\n#define OWNED")
    place.edit("maps.h", "MAP_HASH(ours,", "MAP_FEW(few, u64);\nMAP_HASH(ours,")
    loaded = Loaded(place.loaded(), place.bpffs, place.state)
    loaded.maps["few"].set({"value": 1}, {"value": 77})
    loaded.close()
    place.edit("maps.h", "FEW 2", "FEW 3")
    place.loaded()
    assert content(place)["few"] == [str(({"value": n}, {"value": v})) for n, v in ((0, 0), (1, 77), (2, 0))]


@pytest.mark.root
@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_a_size_below_what_a_map_holds_is_refused(place: Place, filled: Loaded, name: str) -> None:
    before, pins, ids = content(place), place.pins(), place.map_ids()
    result = place.load("--size", f"{name}=11")
    assert result.returncode == 3
    assert f"map {name}: it holds 12 entries and is to have room for 11" in result.stderr
    assert (content(place), place.pins(), place.map_ids()) == (before, pins, ids)
    place.loaded("--size", f"{name}=11", "--recreate")
    assert content(place)[name] == []


@pytest.mark.root
def test_until_a_link_is_moved_a_new_map_becomes_what_the_replaced_one_is(place: Place, filled: Loaded) -> None:
    place.loaded("--size", "theirs=64")
    theirs = filled.maps["theirs"]  # of programs that are still attached
    theirs.set({"value": 50}, {"number": 50})
    theirs.set({"value": 3}, {"number": 999})
    theirs.delete({"value": 4})
    catch_up(place.bpffs, place.state)
    assert content(place)["theirs"] == sorted(map(str, theirs.items()))


@pytest.mark.root
def test_what_programs_write_to_a_replaced_map_is_caught_up_with(place: Place, filled: Loaded) -> None:
    place.loaded("--size", "theirs=64")
    begin(place.bpffs)
    filled.maps["theirs"].set({"value": 50}, {"number": 50})  # by a program that is still attached
    filled.maps["theirs"].set({"value": 3}, {"number": 999})
    now = Loaded(place.manifest(), place.bpffs, place.state)
    now.maps["theirs"].set({"value": 3}, {"number": 33})  # by one that is attached already
    assert catch_up(place.bpffs, place.state) == 1
    assert now.maps["theirs"].get({"value": 50}) == {"number": 50, "flags": 0}
    assert now.maps["theirs"].get({"value": 3}) == {"number": 33, "flags": 0}
    filled.maps["theirs"].set({"value": 51}, {"number": 51})
    assert catch_up(place.bpffs, place.state, last=True) == 1
    assert not any((place.bpffs / name).exists() for name in ("replaced", "moving"))
    assert catch_up(place.bpffs, place.state) == 0
    now.close()


@pytest.mark.root
def test_two_sizes_in_a_row_catch_up_with_what_is_attached(place: Place, filled: Loaded) -> None:
    """No agent has moved a link in between: the first map is still the one that programs use."""
    place.loaded("--size", "theirs=64")
    place.loaded("--size", "theirs=128")
    filled.maps["theirs"].set({"value": 50}, {"number": 50})
    catch_up(place.bpffs, place.state, last=True)
    assert len(content(place)["theirs"]) == 13


def sized(name: str) -> str:
    """Another map in maps.h."""
    return f"#ifndef SIZE_{name}\n#define SIZE_{name} 16\n#endif\nMAP_HASH({name}, u32, u32);\n"


# In maps.h: fields in another order, with another between them, and of other widths.
OTHER_VALUE = (
    "struct value { u64 number; u32 flags; };",
    "struct value { u16 flags; u16 more; u32 number; u64 later; };",
)
OTHER_KEY = ("__be16 port; u8 pad[2]", "u8 pad[2]; __be16 port; u32 zone")


@pytest.mark.root
def test_another_layout_keeps_what_the_maps_hold_by_the_names_of_fields(place: Place, filled: Loaded) -> None:
    """And back again, with what came in between."""
    before, roomy = content(place), ("--size", "theirs=64")  # a small LRU map evicts long before it is full
    filled.maps["ours"].set({"addr": "10.0.1.1"}, {"number": 1 << 40})  # more than there will be room for
    for change in (OTHER_VALUE, OTHER_KEY):
        place.edit("maps.h", *change)
    assert "other maps, with what they held: ours, theirs" in place.load(*roomy).stdout
    now = Loaded(place.manifest(), place.bpffs, place.state)
    assert len(now.maps["ours"].items()) == len(now.maps["theirs"].items()) == 12
    for number in range(12):
        value = now.maps["ours"].get({"addr": f"10.0.0.{number}", "port": number, "zone": 0})
        assert value == {"number": number, "flags": 7, "more": 0, "later": 0}
        assert now.maps["theirs"].get({"value": number}) == {"number": number, "flags": 0, "more": 0, "later": 0}
    filled.maps["theirs"].set({"value": 50}, {"number": 50, "flags": 5})
    catch_up(place.bpffs, place.state, last=True)
    assert now.maps["theirs"].get({"value": 50}) == {"number": 50, "flags": 5, "more": 0, "later": 0}
    now.maps["theirs"].delete({"value": 50})
    now.close()
    for old, new in (OTHER_VALUE, OTHER_KEY):
        place.edit("maps.h", new, old)
    place.loaded(*roomy)
    assert content(place) == before


@pytest.mark.root
def test_programs_wait_for_maps_of_the_agent_that_it_has_not_filled(place: Place) -> None:
    """Those with another layout, and those that are new; not at the first start, and not those of programs."""
    assert unfilled(place.state, place.loaded().maps) == []
    place.loaded("--size", "ours=32", "--size", "theirs=32")
    assert unfilled(place.state, place.manifest().maps) == []
    place.edit("maps.h", *OTHER_VALUE)
    place.edit("maps.h", "MAP_HASH(ours,", f"{sized('fresh')}MAP_HASH(ours,")
    place.loaded("--size", "theirs=32")
    assert set(unfilled(place.state, place.manifest().maps)) == {"ours", "fresh"}
    # Another loader in between, as the agent was killed: nobody has filled them yet.
    place.loaded("--size", "theirs=64", "--size", "ours=64")
    assert set(unfilled(place.state, place.manifest().maps)) == {"ours", "fresh"}
    mark_filled(place.state)
    place.loaded("--size", "theirs=128", "--size", "ours=128")
    assert unfilled(place.state, place.manifest().maps) == []


@pytest.mark.root
def test_what_has_no_place_in_the_new_layout_begins_anew(place: Place, filled: Loaded) -> None:
    place.loaded("--size", "theirs=64")
    place.edit("maps.h", "struct value { u64 number; u32 flags; }", "struct value { u64 count; u32 several[2]; }")
    assert "other maps, empty: ours, theirs" in place.load("--size", "theirs=64").stdout
    filled.maps["theirs"].set({"value": 50}, {"number": 50})
    assert catch_up(place.bpffs, place.state, last=True) == 0
    assert content(place) == {"ours": [], "theirs": []}
    assert unfilled(place.state, place.manifest().maps) == ["ours"]


@pytest.mark.root
def test_maps_that_the_source_does_not_have_any_more_go_with_the_programs(place: Place) -> None:
    place.edit("maps.h", "MAP_HASH(ours,", f"{sized('more')}MAP_HASH(ours,")
    place.loaded()
    place.edit("maps.h", sized("more"), "")
    after = place.loaded()
    assert "maps/more" in place.pins(), "programs that use it are attached"
    prune(place.bpffs, after.digest, after.maps)
    assert {pin for pin in place.pins() if pin.startswith("maps/")} == {"maps/ours", "maps/theirs"}


@pytest.mark.root
def test_an_array_of_each_cpu_keeps_its_values_and_gets_shorter(place: Place) -> None:
    """As `counters` does, when there are more reasons, and back again."""
    counters = 'BPF_F_TABLE("percpu_array", u32, value, name, COUNTED, 0)'
    place.edit("maps.h", "#define OWNED", f"#define COUNTED 2\n#define MAP_OF(name, value) {counters}\n#define OWNED")
    place.edit("maps.h", "_PROGRAMS theirs", "_PROGRAMS theirs counted")
    place.edit(
        "maps.h", "MAP_HASH(ours,", "struct count { u32 packets; };\nMAP_OF(counted, struct count);\nMAP_HASH(ours,"
    )
    loaded = Loaded(place.loaded(), place.bpffs, place.state)
    counted = loaded.maps["counted"]
    every_cpu = b"".join((number + 1).to_bytes(8, "little") for number in range(possible_cpus()))
    counted.set_raw({"value": 1}, every_cpu)
    loaded.close()
    total = sum(range(1, possible_cpus() + 1))
    for change in (
        ("COUNTED 2", "COUNTED 3"),
        ("{ u32 packets; }", "{ u64 bytes; u64 packets; }"),
        ("COUNTED 3", "COUNTED 2"),
    ):
        place.edit("maps.h", *change)
        place.loaded()
        now = Loaded(place.manifest(), place.bpffs, place.state)
        value = now.maps["counted"].get({"value": 1})
        now.close()
        assert value is not None
        assert value["packets"] == total


# The call at which the loader is killed. Of the renames, the second: one map has its new size, the other has not.
DEATHS = [("load.Transfer.copy", 2), ("load.load_program", 1), ("load.retain", 1), ("load._note", 1), ("load._pin", 1)]
DEATHS += [("Path.rename", 2), ("shutil.rmtree", 1), ("load.write_manifest", 1)]


@pytest.mark.root
@pytest.mark.parametrize(("where", "calls"), DEATHS, ids=[where for where, _ in DEATHS])
def test_a_loader_killed_anywhere_leaves_what_works(place: Place, filled: Loaded, where: str, calls: int) -> None:
    """With other sizes, and other fields in as many bytes, which nothing but what is noted of a map tells apart."""
    before = content(place)
    options = ("--size", "ours=32", "--size", "theirs=64")
    place.edit("maps.h", "struct value { u64 number; u32 flags; }", "struct value { u32 flags; u32 more; u64 number; }")
    dies = f"""
import os, shutil, sys
from pathlib import Path
from node_agent.loader import __main__ as command, load
called, left = {where}, [{calls}]
def dying(*arguments, **more):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), 9)
    return called(*arguments, **more)
{where} = dying
command.main()
"""
    command = ["--bpffs", place.bpffs, "--state", place.state, "--cache", place.cache, "--source", place.source]
    died = subprocess.run([sys.executable, "-c", dies, *map(str, command), *options], check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    # What programs that are attached look into, and what the next loader finds: nothing is missing.
    assert sorted(map(str, filled.maps["theirs"].items())) == before["theirs"]
    filled.maps["theirs"].set({"value": 50}, {"number": 50})
    place.loaded(*options)
    assert unfilled(place.state, place.manifest().maps) == ["ours"]
    catch_up(place.bpffs, place.state, last=True)
    now = Loaded(place.manifest(), place.bpffs, place.state)
    for name, numbers in (("ours", {*range(12)}), ("theirs", {*range(12), 50})):
        values = [value for _, value in now.maps[name].items()]
        assert {value["number"] for value in values} == numbers
        assert {value["flags"] for value in values} == {7 if name == "ours" else 0}
    now.close()
    assert [place.manifest().maps[name].max_entries for name in ("ours", "theirs")] == [32, 64]


@pytest.mark.root
def test_verifier_refusal_is_told_and_changes_nothing(place: Place) -> None:
    before = place.loaded()
    pins, ids = place.pins(), place.map_ids()
    place.edit("network.c", "return -1", "return *(volatile u32 *)(long)skb->data")
    place.edit("maps.h", "SIZE_theirs 16", "SIZE_theirs 64")
    result = place.load()
    assert result.returncode == 1
    assert "program from_network" in result.stderr
    assert "invalid access to packet" in result.stderr
    assert (place.manifest(), place.pins(), place.map_ids()) == (before, pins, ids)


@pytest.mark.root
def test_compiler_errors_are_told_with_file_and_line(place: Place) -> None:
    before = place.loaded()
    place.edit("maps.h", "struct addr {", "strukt addr {")
    result = place.load()
    assert result.returncode == 1
    assert "maps.h:14" in result.stderr
    assert place.manifest() == before


@pytest.mark.root
def test_bad_settings(place: Place, tmp_path: Path) -> None:
    assert "no such map" in place.load("--size", "nobody=5").stderr
    assert place.load("--size", "ours=many").returncode == 2
    result = run_loader(tmp_path / "not-bpffs", place.state, "--source", str(place.source))
    assert result.returncode == 2
    assert "mount -t bpf" in result.stderr


def test_digest_follows_text_and_sizes(tmp_path: Path) -> None:
    source = find_source()
    plain = read_source(source, {})
    copy = tmp_path / "bpf"
    shutil.copytree(source, copy)
    assert read_source(copy, {}).digest == plain.digest
    assert read_source(source, {"endpoints": 5}).digest != plain.digest
    with (copy / "include" / "nat.h").open("a") as file:
        file.write("/* more */\n")
    assert read_source(copy, {}).digest != plain.digest


def test_every_map_and_reason_of_the_source_is_found() -> None:
    source = read_source(find_source(), {})
    assert {"endpoints", "connections", "settings", "counters", "events_drops"} <= set(source.maps)
    assert source.owned_by_programs < set(source.maps)
    assert source.reasons[0][0] == "FORWARDED"
    assert max(source.reasons) < 64  # COUNTERS
    assert len({name for name, _ in source.reasons.values()}) == len(source.reasons)
    assert len({name for name, _ in source.reasons.values()}) == len(source.reasons)


def test_layouts_that_no_map_may_have() -> None:
    with pytest.raises(ValueError, match="union"):
        parse_layout('["u", [["a","unsigned int"]], "union"]')
    with pytest.raises(ValueError, match="is a struct"):
        parse_layout('["s", [["a",["t",[["b","char"]],"struct_packed"]]], "struct_packed"]')


def test_what_the_agent_imports_is_free_of_bcc() -> None:
    code = "import sys, node_agent.loader; sys.exit('bcc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
