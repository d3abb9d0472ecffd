"""The CNI configuration: what is in it, when it is there, and that no reboot leaves one behind."""

import json
import os
from pathlib import Path

import pytest
from tests.bpf.topology import Namespace

from node_agent.cni import CniConfiguration, configuration, smallest_mtu
from tidegate.records import Node
from tidegate.records.addresses import pack_cidr

NODE = Node(pod_cidrs=(pack_cidr("10.1.2.0/24"), pack_cidr("fd00:1:2::/64")))


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "net.d" / "05-tidegate.conflist"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def cni(link: Path, state: Path) -> CniConfiguration:
    return CniConfiguration(link, state, [])


def test_a_node_of_two_families() -> None:
    [plugin] = configuration(["10.1.2.0/24", "fd00:1:2::/64"], 1450)["plugins"]
    assert (plugin["type"], plugin["mtu"], plugin["ipMasq"]) == ("ptp", 1450, False)
    assert plugin["ipam"] == {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1:2::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }


def test_a_node_of_one_family_has_no_way_in_the_other() -> None:
    [plugin] = configuration(["fd00:1:2::/64"], None)["plugins"]
    assert plugin["ipam"]["routes"] == [{"dst": "::/0"}]
    assert "mtu" not in plugin


@pytest.mark.root
def test_the_mtu_is_the_smallest_of_the_uplinks_that_are_there() -> None:
    namespace = Namespace("cni")
    try:
        for name, mtu in {"eth0": "1500", "eth1": "1450", "veth7": "1300"}.items():
            namespace.run("ip", "link", "add", name, "mtu", mtu, "type", "veth", "peer", "name", f"{name}p")
        with namespace.entered():
            assert smallest_mtu(["eth0", "eth1", "eth2"]) == 1450
            assert smallest_mtu(["eth2"]) is None
    finally:
        namespace.remove()


def test_until_pods_can_be_judged_the_link_leads_nowhere(cni: CniConfiguration, link: Path) -> None:
    cni.begin()
    assert link.is_symlink()
    assert not link.exists()
    cni.write(NODE)
    assert json.loads(link.read_text())["plugins"][0]["ipam"]["ranges"][0] == [{"subnet": "10.1.2.0/24"}]


def test_what_lies_there_after_a_reboot_is_no_configuration(cni: CniConfiguration, link: Path, state: Path) -> None:
    cni.begin()
    cni.write(NODE)
    for file in state.iterdir():  # as /run after a reboot
        file.unlink()
    assert not link.exists()


def test_a_file_of_somebody_else_does_not_start_pods_either(cni: CniConfiguration, link: Path) -> None:
    link.parent.mkdir()
    link.write_text("{}")
    cni.begin()
    assert not link.exists()


def test_a_restarted_agent_keeps_what_is_there(cni: CniConfiguration, link: Path, state: Path) -> None:
    cni.begin()
    cni.write(NODE)
    text = link.read_text()
    CniConfiguration(link, state, []).begin()
    assert link.read_text() == text


def test_runtimes_watch_the_directory_so_a_change_makes_the_link_anew(cni: CniConfiguration, link: Path) -> None:
    cni.write(NODE)
    before = os.lstat(link).st_ino
    cni.write(NODE)
    assert os.lstat(link).st_ino == before
    cni.write(Node(pod_cidrs=NODE.pod_cidrs[:1]))
    assert os.lstat(link).st_ino != before
    assert [path.name for path in link.parent.iterdir()] == [link.name]


def test_what_somebody_removes_comes_back(cni: CniConfiguration, link: Path) -> None:
    cni.write(NODE)
    link.unlink()
    cni.look_again()
    cni.write(NODE)
    assert link.exists()


def test_without_a_look_nothing_is_done_for_the_same_record(
    cni: CniConfiguration, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for with each change in the cluster."""
    asked: list[None] = []
    monkeypatch.setattr("node_agent.cni.smallest_mtu", lambda _: asked.append(None))
    for _ in range(5):
        cni.write(NODE)
    assert len(asked) == 1
    cni.look_again()
    cni.write(NODE)
    assert len(asked) == 2


@pytest.mark.parametrize("node", [None, Node()])
def test_a_node_without_pod_cidr_is_told(cni: CniConfiguration, link: Path, node: Node | None) -> None:
    cni.write(node)
    assert "--allocate-node-cidrs" in cni.problems[f"CNI configuration {link}"]
    assert not link.exists()
    cni.write(NODE)
    assert cni.problems == {}


def test_a_directory_that_cannot_be_written_is_told(link: Path, state: Path) -> None:
    link.parent.write_text("no directory")
    cni = CniConfiguration(link, state, [])
    cni.begin()
    assert f"CNI configuration {link}" in cni.problems
    cni.write(NODE)
    assert f"CNI configuration {link}" in cni.problems


def test_without_the_option_nothing_is_written(state: Path) -> None:
    cni = CniConfiguration(None, state, [])
    cni.begin()
    cni.write(NODE)
    assert list(state.iterdir()) == []
