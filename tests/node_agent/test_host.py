"""The node's side that is no eBPF: the guard, what netlink tells, routes to other nodes."""

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from tests.node_agent.netns import PATIENCE, Namespace, Network, until

from node_agent import nft
from node_agent.netlink import HostWatch
from node_agent.routes import METRICS, PROTOCOL, Routes, metric, wanted
from node_agent.sysctl import SYSCTL
from node_agent.upkeep import Upkeep
from tidegate.records import Node
from tidegate.records.addresses import pack_address, pack_cidr

pytestmark = pytest.mark.root

WAYS = [
    pytest.param(socket.AF_INET, Network.POD, Network.OUTSIDE, id="IPv4"),
    pytest.param(socket.AF_INET6, Network.POD6, Network.OUTSIDE6, id="IPv6"),
]

# ---- the guard --------------------------------------------------------------------------------------------------


def mark_everything(node: Namespace, mark: int) -> None:
    """As if a program had marked all that comes in."""
    rules = (
        f"table inet marker {{ chain c {{ type filter hook prerouting priority -300; meta mark set {mark:#x}; }}; }}"
    )
    node.run("nft", rules)


def send(network: Network, family: int, source: Namespace, target: Namespace, address: str) -> socket.socket:
    """Datagrams from one namespace to the other; the socket on which they arrive, if they do."""
    receiver = target.udp(family)
    receiver.bind((address, 4444))
    receiver.setblocking(False)
    with source.udp(family) as sender:
        sender.sendto(b"hello", (address, 4444))
    return receiver


async def arrived(receiver: socket.socket) -> None:
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.get_running_loop().sock_recv(receiver, 100) == b"hello"


async def dropped_one() -> None:
    async with asyncio.timeout(PATIENCE):
        while (await nft.dropped())[0] == 0:  # noqa: ASYNC110  # the counter is the kernel's
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("family", "pod", "outside"), WAYS)
@pytest.mark.parametrize("to_pod", [True, False], ids=["to the pod", "from the pod"])
def test_forwarded_pod_traffic_without_the_mark_is_dropped_and_counted(
    network: Network, family: int, pod: str, outside: str, to_pod: bool
) -> None:
    ends = (network.outside, network.pod, pod) if to_pod else (network.pod, network.outside, outside)

    async def before() -> None:
        with send(network, family, *ends) as receiver:
            await arrived(receiver)

    async def behind_the_guard() -> None:
        await nft.install("veth*")
        assert await nft.dropped() == (0, 0)
        with send(network, family, *ends) as receiver:
            await dropped_one()
            with pytest.raises(BlockingIOError):
                receiver.recv(100)

    network.node.runs(before)
    network.node.runs(behind_the_guard)


@pytest.mark.parametrize(("family", "pod", "outside"), WAYS)
@pytest.mark.parametrize(
    ("mark", "passes"),
    [
        (nft.MARK_JUDGED, True),
        (nft.MARK_JUDGED | 0xFF, True),  # the other bits are others' business
        (nft.MARK_JUDGED | 0x00200000, False),
        (0x00200000, False),
    ],
)
def test_what_bears_the_mark_passes_the_guard(
    network: Network, family: int, pod: str, outside: str, mark: int, passes: bool
) -> None:
    async def work() -> None:
        await nft.install("veth*")
        mark_everything(network.node, mark)
        with send(network, family, network.outside, network.pod, pod) as receiver:
            await (arrived(receiver) if passes else dropped_one())
        assert (await nft.dropped())[0] == 0 or not passes

    network.node.runs(work)


def test_the_node_itself_reaches_its_pods(network: Network) -> None:
    async def work() -> None:
        await nft.install("veth*")
        for family, pod in ((socket.AF_INET, network.POD), (socket.AF_INET6, network.POD6)):
            with send(network, family, network.node, network.pod, pod) as receiver:
                await arrived(receiver)
        assert await nft.dropped() == (0, 0)

    network.node.runs(work)


def test_forwarding_between_other_devices_is_not_ours(network: Network) -> None:
    async def work() -> None:
        await nft.install("cali*")
        with send(network, socket.AF_INET, network.pod, network.outside, network.OUTSIDE) as receiver:
            await arrived(receiver)

    network.node.runs(work)


def test_the_guard_applied_twice_is_the_same(network: Network) -> None:
    def listed() -> str:
        return re.sub(r"packets \d+ bytes \d+", "", network.node.run("nft", "list", "ruleset"))

    async def work() -> None:
        await nft.install("veth*")

    network.node.runs(work)
    once = listed()
    assert once.count("drop") == 2
    network.node.runs(work)
    assert listed() == once


def test_tables_of_others_stay(network: Network) -> None:
    network.node.run("nft", "table inet other { chain c { }; }")

    async def work() -> None:
        await nft.install("veth*")

    network.node.runs(work)
    assert "table inet other" in network.node.run("nft", "list", "tables")


def test_a_guard_that_is_gone_is_an_error(network: Network) -> None:
    async def work() -> None:
        with pytest.raises(nft.GuardError, match="nft: "):
            await nft.dropped()
        with pytest.raises(nft.GuardError, match="nft: "):
            await nft.install('"nonsense')

    network.node.runs(work)


def test_a_guard_that_others_took_away_is_put_back(network: Network) -> None:
    async def work() -> None:
        upkeep = Upkeep("veth*", ["eth0"])
        await nft.install("veth*")
        whole = network.node.run("nft", "list", "ruleset")
        await upkeep.look()
        assert upkeep.repairs == 0
        for damage in ("flush ruleset", "flush chain inet tidegate forward"):
            network.node.run("nft", damage)
            repairs = upkeep.repairs
            await upkeep.look()
            assert upkeep.repairs == repairs + 1
            assert network.node.run("nft", "list", "ruleset") == whole
        assert upkeep.problems == {}

    network.node.runs(work)


def test_a_guard_that_cannot_be_put_back_is_a_problem(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        upkeep = Upkeep("veth*", ["eth0"])
        with monkeypatch.context() as context:
            context.setenv("PATH", "")
            await upkeep.look()
            assert upkeep.problems == {"guard": "nft not found: install the package nftables"}
        await upkeep.look()
        assert upkeep.problems == {}

    network.node.runs(work)


def test_forwarding_that_others_turned_off_is_turned_on(network: Network) -> None:
    async def work() -> None:
        upkeep = Upkeep("veth*", ["eth0"])
        await upkeep.look()
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            (SYSCTL / name).write_text("0\n")
            repairs = upkeep.repairs
            await upkeep.look()
            assert (SYSCTL / name).read_text() == "1\n"
            assert upkeep.repairs == repairs + 1

    network.node.runs(work)


# ---- what netlink tells -----------------------------------------------------------------------------------------


def watched(node: Namespace, work: Callable[[HostWatch, list[None]], Awaitable[None]]) -> None:
    """Runs `work` with a watch that has read all that is there, and the changes that it told."""

    async def main() -> None:
        changes: list[None] = []
        watch, ready = HostWatch(lambda: changes.append(None)), asyncio.Event()
        task = asyncio.create_task(watch.run(ready.set))
        try:
            async with asyncio.timeout(PATIENCE):
                await ready.wait()
            await work(watch, changes)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    node.runs(main)


def test_what_is_there_is_read_before_anything_is_told(network: Network) -> None:
    async def work(watch: HostWatch, changes: list[None]) -> None:
        host = watch.host
        assert {"lo", "eth0", "vethpod"} <= set(host.devices.values())
        assert host.pods[pack_address(network.POD)] == network.node.ifindex("vethpod")
        assert {pack_address(a) for a in ("127.0.0.1", "::1", network.NODE, network.NODE6)} <= host.addresses

    watched(network.node, work)


def test_devices_come_are_renamed_and_go(network: Network) -> None:
    async def work(watch: HostWatch, changes: list[None]) -> None:
        node, devices = network.node, watch.host.devices
        node.ip("link", "add", "vethnew", "type", "veth", "peer", "name", "other")
        index = node.ifindex("vethnew")
        await until("the new device", lambda: devices.get(index) == "vethnew")
        assert changes
        changes.clear()
        node.ip("link", "set", "vethnew", "name", "vethold")
        await until("its new name", lambda: devices.get(index) == "vethold")
        assert changes
        changes.clear()
        node.ip("link", "del", "vethold")
        await until("its end", lambda: index not in devices)
        assert changes

    watched(network.node, work)


@pytest.mark.parametrize("address", ["10.202.1.77", "fd00:1::77"])
def test_host_routes_come_move_and_go(network: Network, address: str) -> None:
    async def work(watch: HostWatch, changes: list[None]) -> None:
        node, host, key = network.node, watch.host, pack_address(address)
        node.ip("link", "add", "vethnew", "up", "type", "veth", "peer", "name", "other")
        node.ip("link", "set", "other", "up")
        node.ip("route", "add", address, "dev", "vethpod")
        await until("the route", lambda: host.pods.get(key) == node.ifindex("vethpod"))
        node.ip("route", "replace", address, "dev", "vethnew")
        await until("its new device", lambda: host.pods.get(key) == node.ifindex("vethnew"))
        changes.clear()
        node.ip("route", "del", address)
        await until("its end", lambda: key not in host.pods)
        assert changes

    watched(network.node, work)


def test_routes_go_with_their_device(network: Network) -> None:
    async def work(watch: HostWatch, changes: list[None]) -> None:
        assert pack_address(network.POD) in watch.host.pods
        network.node.ip("link", "del", "vethpod")
        await until("the end of the routes", lambda: pack_address(network.POD) not in watch.host.pods)

    watched(network.node, work)


def test_routes_go_with_a_device_that_is_set_down(network: Network) -> None:
    async def work(watch: HostWatch, changes: list[None]) -> None:
        network.node.ip("link", "set", "vethpod", "down")
        await until("the end of the routes", lambda: pack_address(network.POD) not in watch.host.pods)
        assert changes

    watched(network.node, work)


def test_other_routes_are_none_of_pods(network: Network) -> None:
    async def work(watch: HostWatch, changes: list[None]) -> None:
        node, before = network.node, dict(watch.host.pods)
        node.ip("route", "add", "10.203.0.0/24", "dev", "vethpod")
        node.ip("route", "add", "10.203.1.1", "via", network.OUTSIDE)
        node.ip("route", "add", "10.203.1.2", "dev", "vethpod", "table", "77")
        node.ip("route", "add", "blackhole", "10.203.1.3")
        node.ip("route", "add", "10.203.1.4", "dev", "vethpod")
        await until("the only one that counts", lambda: pack_address("10.203.1.4") in watch.host.pods)
        assert set(watch.host.pods) - set(before) == {pack_address("10.203.1.4")}

    watched(network.node, work)


def test_addresses_come_and_go(network: Network) -> None:
    async def work(watch: HostWatch, changes: list[None]) -> None:
        for text, length in (("192.0.2.7", 32), ("fd00:9::7", 128)):
            network.node.ip("addr", "add", f"{text}/{length}", "dev", "lo")
            await until("the address", lambda text=text: pack_address(text) in watch.host.addresses)  # type: ignore[misc]
            changes.clear()
            network.node.ip("addr", "del", f"{text}/{length}", "dev", "lo")
            await until("its end", lambda text=text: pack_address(text) not in watch.host.addresses)  # type: ignore[misc]
            assert changes

    watched(network.node, work)


def test_an_address_that_another_device_has_too_stays(network: Network) -> None:
    gateway = pack_address("192.0.2.9")

    async def work(watch: HostWatch, changes: list[None]) -> None:
        node, host = network.node, watch.host
        for name in ("vethone", "vethtwo"):
            node.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
            node.ip("addr", "add", "192.0.2.9/32", "dev", name)
        await until("the address, twice", lambda: len([a for a, _ in host.assigned if a == gateway]) == 2)
        gone = node.ifindex("vethone")
        node.ip("link", "del", "vethone")
        await until("the end of the device", lambda: gone not in host.devices)
        assert gateway in host.addresses
        node.ip("link", "del", "vethtwo")
        await until("the end of the address", lambda: gateway not in host.addresses)

    watched(network.node, work)


# ---- routes to other nodes --------------------------------------------------------------------------------------


def a_node(*addresses: str, cidrs: tuple[str, ...]) -> Node:
    return Node(addresses=tuple(map(pack_address, addresses)), pod_cidrs=tuple(map(pack_cidr, cidrs)))


def shown(node: Namespace) -> dict[str, str]:
    """Our routes, CIDR → gateway."""
    lines = [line for v in ("-4", "-6") for line in node.ip(v, "route", "show", "proto", str(PROTOCOL)).splitlines()]
    return {words[0]: words[words.index("via") + 1] for words in map(str.split, lines)}


def apply(network: Network, routes: Routes, *wants: dict[str, str]) -> list[int]:
    async def work() -> list[int]:
        return [await routes.apply(want) for want in wants]

    return network.node.runs(work)


def test_which_routes_are_wanted() -> None:
    nodes = {
        "own": a_node("172.31.2.11", cidrs=("10.202.1.0/24",)),
        "both": a_node("fd00:2::12", "172.31.2.12", "172.31.2.99", cidrs=("10.202.2.0/24", "fd00:a::/64")),
        "without an address of the family": a_node("172.31.2.13", cidrs=("fd00:b::/64",)),
        "without anything": Node(),
    }
    assert wanted(nodes, "own") == {"10.202.2.0/24": "172.31.2.12", "fd00:a::/64": "fd00:2::12"}


def test_routes_are_set_changed_and_removed(network: Network) -> None:
    routes = Routes()
    first = {"10.202.2.0/24": "172.31.2.12", "10.202.3.0/24": "172.31.2.13", "fd00:a::/64": "fd00:2::12"}
    assert apply(network, routes, first, first) == [3, 0]
    assert shown(network.node) == first
    second = {"10.202.2.0/24": "172.31.2.99", "fd00:a::/64": "fd00:2::12"}
    assert apply(network, routes, second) == [2]
    assert shown(network.node) == second
    assert routes.problems == {}


def test_after_a_restart_routes_are_found_and_those_of_gone_nodes_removed(network: Network) -> None:
    before = {"10.202.2.0/24": "172.31.2.12", "10.202.3.0/24": "172.31.2.13", "fd00:a::/64": "fd00:2::12"}
    apply(network, Routes(), before)
    assert apply(network, Routes(), before) == [0]
    del before["10.202.3.0/24"]
    assert apply(network, Routes(), before) == [1]
    assert shown(network.node) == before


def test_many_routes_are_set_and_nobody_tells_us_of_our_own(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    want = {f"10.{96 + n // 256}.{n % 256}.0/24": network.OUTSIDE for n in range(1050)}
    want["10.202.9.0/24"] = "198.51.100.1"  # refused, among the others
    told: list[object] = []
    apply_message = HostWatch._apply

    def listen(watch: HostWatch, message: object) -> bool:
        told.append(message)
        return apply_message(watch, message)

    monkeypatch.setattr(HostWatch, "_apply", listen)

    async def work(watch: HostWatch, changes: list[None]) -> None:
        routes = Routes()
        told.clear()
        assert await routes.apply(want) == 1050
        assert routes.problems.keys() == {"10.202.9.0/24"}
        network.node.ip("route", "add", "10.203.1.4", "dev", "vethpod")
        await until("another's route", lambda: pack_address("10.203.1.4") in watch.host.pods)
        assert len(told) < 10
        changes.clear()
        network.node.ip("route", "del", "10.96.7.0/24")
        await until("the loss of one of ours", lambda: changes)
        assert watch.take_losses()[0] == {("10.96.7.0/24", network.OUTSIDE)}

    watched(network.node, work)
    assert shown(network.node).keys() == want.keys() - {"10.202.9.0/24", "10.96.7.0/24"}


def test_routes_of_an_earlier_version_are_replaced(network: Network) -> None:
    for cidr in ("10.202.2.0/24", "10.202.3.0/24"):
        network.node.ip("route", "add", cidr, "via", "172.31.2.12", "proto", str(PROTOCOL))
    want = {"10.202.2.0/24": "172.31.2.12"}
    routes = Routes()
    assert apply(network, routes, want) == [3]
    lines = network.node.ip("route", "show", "proto", str(PROTOCOL)).splitlines()
    assert [line.split()[0] for line in lines] == ["10.202.2.0/24"]
    assert f"metric {metric(socket.inet_aton('10.202.2.0'))}" in lines[0]
    assert apply(network, Routes(), want) == [0]
    assert routes.problems == {}


def test_routes_share_no_metric_with_most_others() -> None:
    """The kernel compares each new one with all those of its metric."""
    count = 7500
    metrics = Counter(metric(bytes((10, 128 + n // 256, n % 256, 0))) for n in range(count))
    assert max(metrics.values()) < 3 * count / METRICS


def test_routes_of_others_stay(network: Network) -> None:
    network.node.ip("route", "add", "10.99.0.0/24", "via", network.OUTSIDE)
    apply(network, Routes(), {"10.202.2.0/24": "172.31.2.12"}, {})
    assert "10.99.0.0/24" in network.node.ip("route", "show")
    assert shown(network.node) == {}


def test_a_route_that_cannot_be_set_is_its_own_problem_and_tried_again(network: Network) -> None:
    routes = Routes()
    want = {"10.202.2.0/24": "198.51.100.1", "10.202.3.0/24": "172.31.2.13"}
    assert apply(network, routes, want) == [1]
    assert shown(network.node) == {"10.202.3.0/24": "172.31.2.13"}
    assert routes.problems.keys() == {"10.202.2.0/24"}
    assert "route to 10.202.2.0/24 via 198.51.100.1" in routes.problems["10.202.2.0/24"]
    network.node.ip("addr", "add", "198.51.100.2/24", "dev", "eth0")
    assert apply(network, routes, want) == [1]
    assert routes.problems == {}
    assert shown(network.node) == want


def test_a_route_that_somebody_removed_already(network: Network) -> None:
    routes = Routes()
    apply(network, routes, {"10.202.2.0/24": "172.31.2.12"})
    network.node.ip("route", "del", "10.202.2.0/24")
    assert apply(network, routes, {}) == [0]
    assert routes.problems == {}
