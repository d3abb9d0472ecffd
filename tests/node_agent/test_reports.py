"""What the agent says: of the machine that it cannot run on, and of events from the programs."""

import os
import struct
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from tests.bpf.kernel import Loaded
from tests.leftovers import cgroup2
from tests.node_agent.world import OWN

from node_agent import machine
from node_agent.__main__ import main
from node_agent.loader import Field, Layout, Manifest, MapEntry
from node_agent.monitor import DIRECTIONS, HOOKS, MONITOR_DROPS, MONITOR_VERDICTS, QUEUE, Listener, Monitor
from tidegate.records.addresses import pack_address
from tidegate.runtime.errors import SettingsError

BPFFS = Path("/sys/fs/bpf/tidegate-nowhere/n1")

# ---- the machine ------------------------------------------------------------------------------------------------


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that has everything; a directory for the pods' cgroup in it."""
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    kinds = {cgroup: machine.CGROUP2_MAGIC, BPFFS: machine.BPFFS_MAGIC}
    monkeypatch.setattr(machine, "file_system", lambda path: kinds.get(path, 0xEF53))
    monkeypatch.setattr(machine, "libbpf", Mock())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/sbin/{name}")
    capabilities(monkeypatch, machine.CAP_BPF, machine.CAP_NET_ADMIN)
    return cgroup


def capabilities(monkeypatch: pytest.MonkeyPatch, *held: int) -> None:
    mask = sum(1 << number for number in held)
    real = Path.read_text

    def read(path: Path, *arguments: str) -> str:
        status = f"Name:\tagent\nCapEff:\t{mask:016x}\nCapBnd:\t0\n"
        return status if str(path) == "/proc/self/status" else real(path, *arguments)

    monkeypatch.setattr(Path, "read_text", read)


def complaint(cgroup: Path, bpffs: Path = BPFFS) -> str:
    with pytest.raises(SettingsError) as caught:
        machine.check(bpffs, cgroup)
    return str(caught.value)


def test_a_machine_that_has_everything(fitting: Path) -> None:
    machine.check(BPFFS, fitting)


@pytest.mark.parametrize("held", [(), (machine.CAP_BPF,), (machine.CAP_NET_ADMIN,), (machine.CAP_SYS_ADMIN,)])
def test_too_few_capabilities(fitting: Path, monkeypatch: pytest.MonkeyPatch, held: tuple[int, ...]) -> None:
    capabilities(monkeypatch, *held)
    assert complaint(fitting) == "the agent needs CAP_BPF and CAP_NET_ADMIN: run it as root, or give it both"


def test_who_is_not_root_hears_of_that(fitting: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not of the first directory that cannot be read."""
    capabilities(monkeypatch)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    (tmp_path / "cache").mkdir()
    result = CliRunner().invoke(main, [f"--cgroup={fitting}", f"--cache={tmp_path}/cache", f"--bpffs={BPFFS}"])
    assert (result.exit_code, "the agent needs CAP_BPF" in result.output) == (2, True)


def test_the_older_capability_will_do(fitting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities(monkeypatch, machine.CAP_SYS_ADMIN, machine.CAP_NET_ADMIN)
    machine.check(BPFFS, fitting)


def test_no_bpf_file_system(fitting: Path, tmp_path: Path) -> None:
    text = complaint(fitting, tmp_path / "pins")
    assert text == f"--bpffs {tmp_path}/pins does not lie in a bpf file system: mount -t bpf bpf /sys/fs/bpf"


def test_no_such_cgroup(fitting: Path) -> None:
    assert complaint(fitting / "none").startswith(f"--cgroup {fitting}/none does not exist: name the cgroup v2")


def test_a_cgroup_of_version_1(fitting: Path, tmp_path: Path) -> None:
    text = complaint(tmp_path)
    assert text.startswith(f"--cgroup {tmp_path} is not in a cgroup v2 hierarchy")
    assert "mount | grep cgroup2" in text


def test_no_libbpf_and_no_nft(fitting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "libbpf", Mock(side_effect=OSError("libbpf.so.1: cannot open")))
    monkeypatch.setattr("shutil.which", lambda _: None)
    text = complaint(fitting)
    assert "libbpf.so.1 not found: install the package libbpf1" in text
    assert "nft not found: install the package nftables" in text


def test_everything_that_is_missing_is_said_at_once(fitting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities(monkeypatch)
    parts = complaint(fitting / "none", Path("/tmp/pins")).split("; ")  # noqa: S108  # a path that is only named
    assert len(parts) == 3


@pytest.mark.root
def test_file_systems_are_told_apart_also_by_paths_that_do_not_exist_yet(bpffs: Path, tmp_path: Path) -> None:
    assert machine.file_system(bpffs / "new" / "n1") == machine.BPFFS_MAGIC
    assert machine.file_system(cgroup2()) == machine.CGROUP2_MAGIC
    assert machine.file_system(tmp_path / "new") not in (machine.BPFFS_MAGIC, machine.CGROUP2_MAGIC)


# ---- events -----------------------------------------------------------------------------------------------------

# struct event of types.h, by hand: ports in network order, everything else in the machine's.
EVENT = struct.Struct("=Q16s16s2s2sBBBBIIIIII")
NAMES = (
    "time:u64 source:addr destination:addr source_port:be16 destination_port:be16 protocol:u8 direction:u8 reason:u8 "
    "hook:u8 source_identity:u32 destination_identity:u32 ifindex:u32 length:u32 policy:u32 pad:u32"
)
SIZES = {"u8": 1, "be16": 2, "u32": 4, "u64": 8, "addr": 16}


def event(reason: int, hook: int = 0, direction: int = 0, source: str = "10.0.0.1") -> bytes:
    addresses = pack_address(source), pack_address("10.0.0.2")
    ports = (40000).to_bytes(2, "big"), (443).to_bytes(2, "big")
    return EVENT.pack(123456789, *addresses, *ports, 6, direction, reason, hook, 1001, 1002, 7, 60, 5, 0)


@pytest.fixture
def manifest() -> Manifest:
    fields, offset = [], 0
    for name, kind in (part.split(":") for part in NAMES.split()):
        fields.append(Field(name, offset, SIZES[kind], kind))
        offset += SIZES[kind]
    layout = Layout(offset, tuple(fields))
    entry = MapEntry("/nowhere", "ringbuf", 4096, 0, 0, Layout(0, ()), layout)
    reasons = {"0": ("FORWARDED", "allowed"), "2": ("POLICY_EGRESS", "not allowed")}
    return Manifest("digest", {}, {"events_drops": entry, "events_verdicts": entry}, reasons)


@pytest.fixture
def monitor(manifest: Manifest) -> Monitor:
    return Monitor(manifest, OWN, lambda _: None)


def test_all_fields_of_an_event(monitor: Monitor) -> None:
    assert monitor.decode(event(2)) == {
        "node": OWN,
        "time": 123456789,
        "reason": "POLICY_EGRESS",
        "hook": "from-pod",
        "direction": "ingress",
        "protocol": 6,
        "source": "10.0.0.1",
        "source_port": 40000,
        "source_identity": 1001,
        "destination": "10.0.0.2",
        "destination_port": 443,
        "destination_identity": 1002,
        "ifindex": 7,
        "length": 60,
        "policy": 5,
    }


@pytest.mark.parametrize(("number", "name"), list(enumerate(HOOKS)))
def test_hooks(monitor: Monitor, number: int, name: str) -> None:
    assert monitor.decode(event(0, hook=number))["hook"] == name


@pytest.mark.parametrize(("number", "name"), list(enumerate(DIRECTIONS)))
def test_directions(monitor: Monitor, number: int, name: str) -> None:
    assert monitor.decode(event(0, direction=number))["direction"] == name


def test_an_ipv6_event(monitor: Monitor) -> None:
    assert monitor.decode(event(0, source="fd00::1"))["source"] == "fd00::1"


def test_a_reason_that_this_agent_does_not_know_is_its_number(monitor: Monitor) -> None:
    assert monitor.decode(event(99))["reason"] == "99"


def test_what_follows_an_event_in_its_record_is_padding(monitor: Monitor) -> None:
    assert monitor.decode(event(2) + os.urandom(8)) == monitor.decode(event(2))


def test_listeners_get_what_they_asked_for(monitor: Monitor) -> None:
    drops, both = Listener(MONITOR_DROPS), Listener(MONITOR_DROPS | MONITOR_VERDICTS)
    monitor._listeners |= {drops, both}
    monitor._event(event(2), MONITOR_DROPS)
    monitor._event(event(0), MONITOR_VERDICTS)
    assert [drops.queue.get_nowait()["reason"] for _ in range(drops.queue.qsize())] == ["POLICY_EGRESS"]
    assert [both.queue.get_nowait()["reason"] for _ in range(both.queue.qsize())] == ["POLICY_EGRESS", "FORWARDED"]


def test_a_slow_listener_loses_events_and_is_told_how_many() -> None:
    listener = Listener(MONITOR_DROPS)
    for number in range(QUEUE + 3):
        listener.offer({"number": number})
    assert listener.lost == 3
    assert listener.queue.get_nowait() == {"number": 0}


@pytest.mark.root
def test_events_here_look_like_those_of_the_programs(manifest: Manifest, all_loaded: Loaded) -> None:
    for name in ("events_drops", "events_verdicts"):
        real = all_loaded.manifest.maps[name].value
        assert [field for field in real.fields if field.name != "pad"] == list(manifest.maps[name].value.fields[:-1])
        assert real.size == EVENT.size
