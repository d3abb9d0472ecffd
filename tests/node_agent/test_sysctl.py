"""Forwarding of both families, without losing what routers tell."""

from pathlib import Path

import pytest

from node_agent.sysctl import enable_forwarding, forwards


def tree(root: Path, **accept_ra: str) -> Path:
    (root / "ipv4").mkdir()
    (root / "ipv4/ip_forward").write_text("0\n")
    for name, value in {"all": "1", **accept_ra}.items():
        (root / "ipv6/conf" / name).mkdir(parents=True)
        (root / "ipv6/conf" / name / "accept_ra").write_text(f"{value}\n")
        (root / "ipv6/conf" / name / "forwarding").write_text("0\n")
    return root


def test_uplinks_go_on_listening_to_routers(tmp_path: Path) -> None:
    root = tree(tmp_path, eth0="1", eth1="0", eth2="1")
    enable_forwarding(["eth0", "eth1", "gone"], root)
    assert (root / "ipv4/ip_forward").read_text() == "1\n"
    assert (root / "ipv6/conf/all/forwarding").read_text() == "1\n"
    listening = {
        name: (root / "ipv6/conf" / name / "accept_ra").read_text().strip() for name in ("eth0", "eth1", "eth2")
    }
    assert listening == {"eth0": "2", "eth1": "0", "eth2": "1"}


def test_what_is_so_already_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may not be able to."""
    root = tree(tmp_path)
    enable_forwarding([], root)
    monkeypatch.setattr(Path, "write_text", lambda path, text: pytest.fail(f"{path} written: {text}"))
    enable_forwarding([], root)


def test_a_kernel_without_ipv6(tmp_path: Path) -> None:
    (tmp_path / "ipv4").mkdir()
    (tmp_path / "ipv4/ip_forward").write_text("0\n")
    enable_forwarding(["eth0"], tmp_path)
    assert (tmp_path / "ipv4/ip_forward").read_text() == "1\n"


def test_whether_it_forwards(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert not forwards(root)
    enable_forwarding([], root)
    assert forwards(root)
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        (root / name).write_text("0\n")
        assert not forwards(root)
        (root / name).write_text("1\n")
