"""Programs on devices and on the cgroup: attached, found again, put back, replaced."""

import ctypes
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.bpf.conftest import run_loader
from tests.bpf.kernel import Loaded
from tests.node_agent.conftest import SIZES
from tests.node_agent.netns import PATIENCE, Namespace, Network

from node_agent import links
from node_agent.attach import HANDLE, POD_PROGRAMS, PRIORITY, UPLINK_PROGRAMS, Attachments, Devices
from node_agent.loader import Manifest, read_manifest
from node_agent.loader.programs import ATTACH_NUMBERS
from node_agent.loader.source import find_source
from node_agent.syscall import bpf

pytestmark = pytest.mark.root

Open = Callable[..., Attachments]

PROG_QUERY = 16  # a command of bpf(2)


@pytest.fixture
def attachments(loaded: Loaded, cgroup: Path) -> Iterator[Open]:
    """Opens what an agent would, closed at the end of the test."""
    with ExitStack() as stack:

        def open_one(mode: str, manifest: Manifest = loaded.manifest) -> Attachments:
            opened = Attachments(manifest, loaded.bpffs, cgroup, mode)
            stack.callback(opened.close)
            return opened

        yield open_one


@pytest.fixture
def next_version(all_loaded: Loaded, tmp_path: Path) -> Manifest:
    """The same programs, as another version of them that uses the same maps."""
    source, state = tmp_path / "bpf", tmp_path / "next"
    shutil.copytree(find_source(), source)
    state.mkdir()
    with (source / "include/types.h").open("a") as file:
        file.write("/* the next version */\n")
    sizes = [f"--size={name}={size}" for name, size in SIZES.items()]
    result = run_loader(all_loaded.bpffs, state, f"--source={source}", *sizes)
    assert result.returncode == 0, result.stderr
    manifest = read_manifest(state)
    assert manifest is not None
    assert manifest.digest != all_loaded.manifest.digest
    return manifest


def link_of(bpffs: Path, name: str) -> tuple[int, int, int]:
    """Number of the pinned link, of its program, and what it is attached to."""
    link = links.open_pin(bpffs / "links" / name)
    try:
        kind = "tcx" if name.startswith("tcx") else "cgroup"
        info = links.link_info(link, kind)
        return struct.unpack_from("=I", links._info(link, 64), 4)[0], info.program, info.target
    finally:
        os.close(link)


def number_of(manifest: Manifest, program: str) -> int:
    fd = links.open_pin(Path(manifest.programs[program].path))
    try:
        return links.program_id(fd)
    finally:
        os.close(fd)


def in_order(network: Network, index: int) -> list[int]:
    """Numbers of the programs at a device's ingress, the first to run first."""
    numbers = (ctypes.c_uint32 * 8)()
    query = struct.pack("=IIIIQI", index, ATTACH_NUMBERS["tcx_ingress"], 0, 0, ctypes.addressof(numbers), len(numbers))
    with network.node.entered():
        bpf(PROG_QUERY, query, "ask for the programs of a hook")
    return [number for number in numbers if number]


def filters(namespace: Namespace, device: str, hook: str) -> list[dict[str, int | str]]:
    """Ours and others' clsact filters of a hook: name and number of the program."""
    listed = json.loads(namespace.run("tc", "-j", "filter", "show", "dev", device, hook))
    options = [item["options"] for item in listed if "options" in item]
    return [{"name": option["bpf_name"], "id": option["prog"]["id"]} for option in options]


def tcx_names(index: int) -> set[str]:
    return {f"tcx_{index}_{program}" for program in POD_PROGRAMS}


def pins(bpffs: Path) -> set[str]:
    return {path.name for path in (bpffs / "links").iterdir()}


def detach(path: Path) -> None:
    """BPF_LINK_DETACH: the pin stays, attached to nothing."""
    link = links.open_pin(path)
    bpf(34, struct.pack("=I", link), "detach a link")
    os.close(link)


def attach(opened: Attachments, network: Network, device: str = "vethpod") -> int:
    index = network.node.ifindex(device)
    with network.node.entered():
        opened.attach_device(index, device, POD_PROGRAMS)
    return index


def until_done(work: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(FileExistsError):
            work()
            return
        time.sleep(0.01)
    raise AssertionError("the kernel does not let go of the old link")


def test_which_devices_are_ours() -> None:
    devices = Devices("veth*", ("eth0", "vethup"))
    assert devices.programs("vethabc") is POD_PROGRAMS
    assert devices.programs("eth0") is UPLINK_PROGRAMS
    assert devices.programs("vethup") is UPLINK_PROGRAMS
    assert devices.programs("docker0") is None


def test_tcx_links_stand_on_the_device(attachments: Open, network: Network, loaded: Loaded) -> None:
    index = attach(attachments("tcx"), network)
    for program in POD_PROGRAMS:
        _, number, target = link_of(loaded.bpffs, f"tcx_{index}_{program}")
        assert (number, target) == (number_of(loaded.manifest, program), index)


def test_the_programs_for_ipv4_are_first(attachments: Open, network: Network, loaded: Loaded) -> None:
    """Also one that is put back, and of others' programs none changes its place."""
    opened = attachments("tcx")
    index = network.node.ifindex("vethpod")
    with network.node.entered():
        foreign = links.create(opened._fds["from_network"], index, "tcx_ingress")
    expected = [number_of(loaded.manifest, name) for name in ("from_network", "from_pod", "from_pod6")]
    try:
        attach(opened, network)
        assert in_order(network, index) == expected
        (loaded.bpffs / "links" / f"tcx_{index}_from_pod").unlink()
        until_done(lambda: attach(opened, network))
        assert in_order(network, index) == expected
    finally:
        os.close(foreign)


def test_tcx_attached_again_changes_nothing(attachments: Open, network: Network, loaded: Loaded) -> None:
    first = attachments("tcx")
    index = attach(first, network)
    before = [link_of(loaded.bpffs, name) for name in sorted(tcx_names(index))]
    attach(first, network)
    # Another agent that finds them.
    second = attachments("tcx")
    attach(second, network)
    assert [link_of(loaded.bpffs, name) for name in sorted(tcx_names(index))] == before
    assert first.repairs == second.repairs == 0


def test_a_tcx_link_without_its_pin_is_put_back(attachments: Open, network: Network, loaded: Loaded) -> None:
    """It is the same one: as long as the agent lives it never was away."""
    opened = attachments("tcx")
    index = attach(opened, network)
    name = f"tcx_{index}_to_pod"
    before = link_of(loaded.bpffs, name)
    (loaded.bpffs / "links" / name).unlink()
    assert opened.are_whole()
    attach(opened, network)
    assert link_of(loaded.bpffs, name) == before
    assert opened.repairs == 1


def test_a_tcx_link_that_lost_its_pin_while_no_agent_ran(attachments: Open, network: Network, loaded: Loaded) -> None:
    index = attach(first := attachments("tcx"), network)
    (loaded.bpffs / "links" / f"tcx_{index}_to_pod").unlink()
    first.close()
    # The kernel lets go of the old link a little later; until then the program stands there already (EEXIST), and the
    # agent tries again at its next look.
    again = attachments("tcx")
    until_done(lambda: attach(again, network))
    assert link_of(loaded.bpffs, f"tcx_{index}_to_pod")[1:] == (number_of(loaded.manifest, "to_pod"), index)


def test_a_detached_tcx_link_is_put_back(attachments: Open, network: Network, loaded: Loaded) -> None:
    opened = attachments("tcx")
    index = attach(opened, network)
    name = f"tcx_{index}_to_pod"
    detach(loaded.bpffs / "links" / name)
    assert link_of(loaded.bpffs, name)[2] == 0
    assert not opened.are_whole()
    attach(opened, network)
    assert opened.are_whole()
    assert link_of(loaded.bpffs, name)[1:] == (number_of(loaded.manifest, "to_pod"), index)
    assert opened.repairs == 1


def test_a_new_version_takes_the_place_in_the_same_tcx_link(
    attachments: Open, network: Network, loaded: Loaded, next_version: Manifest
) -> None:
    index = attach(attachments("tcx"), network)
    before = link_of(loaded.bpffs, f"tcx_{index}_from_pod")
    attach(attachments("tcx", next_version), network)
    # The link was never let go, so there was no moment without a program.
    expected = (before[0], number_of(next_version, "from_pod"), index)
    assert link_of(loaded.bpffs, f"tcx_{index}_from_pod") == expected != before


def test_a_device_that_took_the_number_of_another(attachments: Open, network: Network, loaded: Loaded) -> None:
    opened = attachments("tcx")
    network.node.ip("link", "add", "vethx", "index", "900", "type", "veth", "peer", "name", "vethy")
    assert attach(opened, network, "vethx") == 900
    network.node.ip("link", "del", "vethx")
    network.node.ip("link", "add", "vethz", "index", "900", "type", "veth", "peer", "name", "vethy")
    attach(opened, network, "vethz")
    assert link_of(loaded.bpffs, "tcx_900_from_pod")[1:] == (number_of(loaded.manifest, "from_pod"), 900)


def test_a_device_that_is_gone_is_an_error(attachments: Open, network: Network) -> None:
    for mode in ("tcx", "clsact"):
        with network.node.entered(), pytest.raises(OSError, match=r"(?i)tcx|clsact"):
            attachments(mode).attach_device(31337, "vethgone", POD_PROGRAMS)


def test_the_links_of_a_device_that_is_gone_are_forgotten(attachments: Open, network: Network, loaded: Loaded) -> None:
    opened = attachments("tcx")
    index = attach(opened, network)
    assert pins(loaded.bpffs) == tcx_names(index)
    opened.devices.clear()  # as before a look at everything
    opened.forget_absent({index: "vethpod"})
    assert pins(loaded.bpffs) == tcx_names(index)
    opened.forget_absent({})
    assert pins(loaded.bpffs) == set()
    assert opened.devices == {}
    assert opened.are_whole()


def test_after_a_start_links_of_absent_devices_and_old_versions_go(
    attachments: Open, network: Network, loaded: Loaded, next_version: Manifest
) -> None:
    index = attach(attachments("tcx", next_version), network)
    again = attachments("tcx")
    again.attach_cgroup()
    kept = pins(loaded.bpffs) - tcx_names(index)
    attach(again, network)
    assert again.finish({index: "vethpod"}) == [next_version.digest]
    assert pins(loaded.bpffs) == kept | tcx_names(index)
    again.finish({})
    assert pins(loaded.bpffs) == kept


def test_clsact_filters_stand_once_on_each_hook(attachments: Open, network: Network, loaded: Loaded) -> None:
    opened = attachments("clsact")
    for _ in range(2):
        attach(opened, network)
        attach(attachments("clsact"), network)
        for hook in ("ingress", "egress"):
            programs = [program for program, at in POD_PROGRAMS.items() if at == hook]
            expected = [{"name": f"tidegate_{name}", "id": number_of(loaded.manifest, name)} for name in programs]
            found = filters(network.node, "vethpod", hook)
            assert sorted(found, key=str) == sorted(expected, key=str)


def test_a_removed_clsact_filter_is_put_back(attachments: Open, network: Network, loaded: Loaded) -> None:
    """Also where only one of them is gone, or another program stands in its place."""
    opened = attachments("clsact")
    attach(opened, network)
    expected = filters(network.node, "vethpod", "egress")
    assert len(expected) == 2
    one = ["dev", "vethpod", "egress", "prio", str(PRIORITY), "handle", hex(HANDLE), "bpf"]
    other = ["da", "pinned", loaded.manifest.programs["from_network"].path]
    steps = (["qdisc", "del", "dev", "vethpod", "clsact"], ["filter", "del", *one], ["filter", "replace", *one, *other])
    for repairs, command in zip((4, 5, 6), steps, strict=True):
        network.node.run("tc", *command)
        assert filters(network.node, "vethpod", "egress") != expected
        attach(opened, network)
        assert filters(network.node, "vethpod", "egress") == expected
        attach(opened, network)
        assert opened.repairs == repairs


def test_filters_of_others_stay(attachments: Open, network: Network, loaded: Loaded) -> None:
    add = ["tc", "filter", "add", "dev", "vethpod", "ingress", "prio", "7", "bpf", "da", "pinned"]
    network.node.run("tc", "qdisc", "add", "dev", "vethpod", "clsact")
    network.node.run(*add, loaded.manifest.programs["from_network"].path)
    attach(attachments("clsact"), network)
    numbers = [entry["id"] for entry in filters(network.node, "vethpod", "ingress")]
    ours = {number_of(loaded.manifest, "from_pod"), number_of(loaded.manifest, "from_pod6")}
    assert set(numbers[:2]) == ours
    assert numbers[2:] == [number_of(loaded.manifest, "from_network")]


def test_a_filter_of_another_kind_in_our_place_is_told(attachments: Open, network: Network, loaded: Loaded) -> None:
    network.node.run("tc", "qdisc", "add", "dev", "vethpod", "clsact")
    place = ["dev", "vethpod", "ingress", "prio", str(PRIORITY), "protocol", "ip", "bpf", "da", "pinned"]
    network.node.run("tc", "filter", "add", *place, loaded.manifest.programs["from_network"].path)
    with pytest.raises(OSError, match=f"ingress of device .* priority {PRIORITY}, where others"):
        attach(attachments("clsact"), network)


def test_a_new_version_takes_the_place_of_the_clsact_filter(
    attachments: Open, network: Network, next_version: Manifest
) -> None:
    attach(attachments("clsact"), network)
    attach(attachments("clsact", next_version), network)
    numbers = {entry["id"] for entry in filters(network.node, "vethpod", "egress")}
    assert numbers == {number_of(next_version, "to_pod"), number_of(next_version, "to_pod6")}


def test_the_socket_programs_stand_on_the_cgroup(attachments: Open, loaded: Loaded, cgroup: Path) -> None:
    opened = attachments("tcx")
    opened.attach_cgroup()
    programs = {name for name, entry in loaded.manifest.programs.items() if entry.attach_type}
    assert programs
    assert pins(loaded.bpffs) == {f"cgroup_{name}" for name in programs}
    for name in programs:
        _, number, target = link_of(loaded.bpffs, f"cgroup_{name}")
        assert (number, target) == (number_of(loaded.manifest, name), cgroup.stat().st_ino)


def test_the_cgroup_again_and_after_it_was_made_anew(attachments: Open, loaded: Loaded, cgroup: Path) -> None:
    opened = attachments("tcx")
    opened.attach_cgroup()
    before = link_of(loaded.bpffs, "cgroup_connect4")
    attachments("tcx").attach_cgroup()
    assert link_of(loaded.bpffs, "cgroup_connect4") == before
    cgroup.rmdir()
    cgroup.mkdir()
    opened.attach_cgroup()
    after = link_of(loaded.bpffs, "cgroup_connect4")
    assert opened.are_whole()
    assert after[0] != before[0]
    assert after[2] == cgroup.stat().st_ino
    assert opened.repairs == len(pins(loaded.bpffs))


def test_a_cgroup_that_is_no_cgroup(loaded: Loaded, tmp_path: Path) -> None:
    opened = Attachments(loaded.manifest, loaded.bpffs, tmp_path, "tcx")
    with pytest.raises(OSError, match="attach to cgroup"):
        opened.attach_cgroup()
    opened.close()


def test_the_way_is_found_out(attachments: Open) -> None:
    assert attachments("clsact").tcx is False
    assert attachments("auto").tcx is links.has_tcx(attachments("tcx")._fds["to_pod"])
