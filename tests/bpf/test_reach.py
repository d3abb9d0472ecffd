"""Who reaches whom where no policy isolates anybody."""

import pytest
from tests.bpf.families import either
from tests.bpf.topology import Cluster, outside_address
from tests.bpf.traffic import PAIRS, exchange_tcp, exchange_udp, no_drops, ping, pod

pytestmark = pytest.mark.root


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_pods_reach_each_other(world: Cluster, source: str, target: str) -> None:
    one, other = pod(world, source), pod(world, target)
    assert exchange_tcp(one, other, other.address, 8080)[0] == one.address
    exchange_udp(one, other, other.address, 8080)
    ping(one, other.address)
    ping(other, one.address)
    no_drops(world)
    assert one.node.programs.counter("FORWARDED") > 10


def test_pod_and_its_own_node_reach_each_other(world: Cluster) -> None:
    node = world.nodes[0]
    a = pod(world, "a")
    node.namespace.run("ping", "-c", "1", "-n", "-W", "5", a.address)
    ping(a, node.address)
    ping(a, either("10.201.1.1", "fd00:201:1::1"))
    no_drops(world)


def test_pod_and_the_outside_world_reach_each_other(world: Cluster) -> None:
    a = pod(world, "a")
    ping(a, outside_address())
    world.outside.run("ping", "-c", "1", "-n", "-W", "5", a.address)
    no_drops(world)
