"""All rows at once, from objects to each node's map entries, without an API server, a store or a kernel of its own."""

from collections.abc import Mapping
from functools import cache

import msgspec
from tests.choice.rows import NUMBERS, ROWS
from tests.choice.table import (
    BOTH,
    IPV4,
    NAMESPACE,
    NODES,
    PODS,
    ZONES,
    Addresses,
    Object,
    service,
    service_status,
    slices,
)
from tests.endpoint_sync.world import KEYS, World, namespace
from tests.node_agent.world import ENTRIES, Agent

from node_agent.table import ORDER, Tables
from node_agent.view import View
from playground import endpointslices
from playground.layout import EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6, NodeAddresses
from tidegate.kube import objects
from tidegate.records.addresses import pack_address

OUTSIDE = dict(zip(BOTH, (EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6), strict=True))
_PLACES = {node: NodeAddresses(index) for index, node in enumerate(NODES, 1)}
_NUMBERED = {name: number for number, name in enumerate(PODS, 2)}
ADDRESSES = Addresses(
    pods={
        name: dict(
            zip(BOTH, (_PLACES[pod.node].pod(_NUMBERED[name]), _PLACES[pod.node].pod6(_NUMBERED[name])), strict=True)
        )
        for name, pod in PODS.items()
    },
    nodes={node: dict(zip(BOTH, (place.address, place.address6), strict=True)) for node, place in _PLACES.items()},
)


def node(name: str) -> Object:
    reported = [{"type": "InternalIP", "address": address} for address in ADDRESSES.nodes[name].values()]
    labels = {"topology.kubernetes.io/zone": ZONES[name]} if ZONES[name] else {}
    spec = {"podCIDRs": [_PLACES[name].pod_cidr, _PLACES[name].pod_cidr6]}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {"addresses": reported},
    }


def pod(name: str) -> Object:
    one, addresses = PODS[name], ADDRESSES.pods[name]
    return {
        "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": name, "labels": dict(one.labels)},
        "spec": {"nodeName": one.node, "containers": [{"name": "responder", "ports": list(one.ports)}]},
        "status": {
            "phase": "Running",
            "podIP": addresses[IPV4],
            "podIPs": [{"ip": address} for address in addresses.values()],
            "conditions": [{"type": "Ready", "status": "True" if one.ready else "False"}],
        },
    }


def selected(item: Object) -> list[Object]:
    """What the playground's controller makes of a Service with a selector."""
    known = msgspec.convert(item, objects.Service)
    pods = [msgspec.convert(pod(name), objects.Pod) for name in PODS]
    chosen = [one for one in pods if endpointslices.selects(known, one)]
    return list(endpointslices.slices(known, chosen, ZONES).values())


def applied() -> list[Object]:
    found = [namespace(NAMESPACE), *map(node, NODES), *map(pod, PODS)]
    for name, row in ROWS.items():
        item = service(NUMBERS[name], row, ADDRESSES)
        found += [{**item, "status": service_status(NUMBERS[name], row, ADDRESSES)}]
        found += selected(item) if row.selector else slices(NUMBERS[name], row, ADDRESSES)
    return found


async def records() -> dict[str, bytes]:
    """Everything that both sync services write for all rows."""
    world = World()
    world.put(*applied())
    async with world.running():
        assert world.problems() == {}
        return world.store.values(KEYS.prefix)


class NodeAgent(Agent):
    """The pure part of the agent of one of the nodes; its pods have the devices that `ifindex` gives them."""

    def __init__(self, name: str, ifindex: Mapping[str, int]) -> None:
        self.kernel = {map_name: {} for map_name in ORDER}
        self.tables = Tables(self.kernel)
        self.view = View(name, KEYS, self.tables, ENTRIES)
        here = [pod for pod, one in PODS.items() if one.node == name]
        devices = {pack_address(a): ifindex[pod] for pod in here for a in ADDRESSES.pods[pod].values()}
        own = [*ADDRESSES.nodes[name].values(), "127.0.0.1", "::1"]
        self.view.set_host(devices, frozenset(map(pack_address, own)))


@cache
def pods_by_address() -> dict[str, str]:
    return {address: name for name, addresses in ADDRESSES.pods.items() for address in addresses.values()}


def source(client: str, node_name: str, family: str) -> str:
    """The address of a class of client at, or by way of, a node."""
    if client == "outside":
        return OUTSIDE[family]
    if client == "nodes":
        return ADDRESSES.nodes[node_name][family]
    at = node_name if client == "pods" else neighbour(node_name)
    return ADDRESSES.pods[f"c{at[-1]}"][family]


def neighbour(node_name: str) -> str:
    """Another node: where the clients `elsewhere` are."""
    return NODES[NODES.index(node_name) - 1]
