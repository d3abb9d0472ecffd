"""Uplinks that nobody has named, by the kernel's own tables."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.topology import Namespace

from node_agent.uplinks import default_route_devices


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace("uplinks")
    yield made
    made.remove()


def ip(namespace: Namespace, text: str) -> None:
    namespace.run("ip", *text.split())


@pytest.mark.root
def test_devices_of_default_routes_of_both_families(namespace: Namespace) -> None:
    for name in ("up0", "up1", "other"):
        ip(namespace, f"link add {name} type veth peer name {name}p")
        ip(namespace, f"link set {name} up")
        ip(namespace, f"link set {name}p up")
    with namespace.entered():
        assert default_route_devices() == ()
    ip(namespace, "address add 192.0.2.1/24 dev up0")
    ip(namespace, "address add 2001:db8::1/64 dev up1 nodad")
    ip(namespace, "address add 198.51.100.1/24 dev other")
    ip(namespace, "route add default via 192.0.2.2")
    ip(namespace, "route add default via 192.0.2.3 metric 100")
    ip(namespace, "route add 203.0.113.0/24 via 198.51.100.2")
    ip(namespace, "route add 0.0.0.0/1 via 198.51.100.2")
    ip(namespace, "-6 route add default via 2001:db8::2")
    with namespace.entered():
        assert default_route_devices() == ("up0", "up1")
    ip(namespace, "route del default")
    ip(namespace, "route del default")
    ip(namespace, "route add unreachable default")
    with namespace.entered():
        assert default_route_devices() == ("up1",)


def test_a_kernel_without_ipv6(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "ens3\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\n"
    )
    assert os.listdir(tmp_path) == ["route"]  # noqa: PTH208
    assert default_route_devices(tmp_path) == ("ens3",)
