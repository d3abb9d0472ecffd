"""hostPort of this node's pods: ports of the node that lead to one pod, as the CNI plugin `portmap` does it. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from node_agent.frontends import HOST_PORT, IPV6, Frontend, family, is_served
from node_agent.room import Owner, Room
from node_agent.selections import FrontendTable, SelectionTable
from tidegate.records import Endpoint, HostPort
from tidegate.records.addresses import write_end
from tidegate.records.ids import SERVICE_SPACE, Numbering

Key = tuple[str, str]
Port = tuple[HostPort, int]  # and the family's bit
OWNER = "host port"


class HostPortView:
    """Each port of each pod is a selection of its own, with the pod as its only backend."""

    def __init__(self, node: str, selections: SelectionTable, leading: FrontendTable, room: Room) -> None:
        self._node = node
        self._selections = selections
        self._leading = leading
        self._room = room
        self._own: frozenset[bytes] = frozenset()
        self._pods: dict[Key, Endpoint] = {}
        self._numbers: dict[Key, dict[Port, int]] = {}
        self._numbering = Numbering(space=SERVICE_SPACE)

    def set_addresses(self, own: frozenset[bytes]) -> None:
        """The node's own addresses."""
        if own != self._own:
            self._own = own
            for key in list(self._pods):
                self._program(key)

    def set_endpoint(self, key: Key, record: Endpoint | None) -> None:
        if record is not None and record.node == self._node and record.host_ports:
            self._pods[key] = record
        elif self._pods.pop(key, None) is None:
            return
        self._program(key)

    def again(self, owners: Iterable[Owner]) -> None:
        """Those of these that are ours found no room before; there may be some now."""
        for owner in sorted(owners):
            if owner[0] == OWNER and len(owner) == 3:
                self._program((owner[1], owner[2]))

    def _program(self, key: Key) -> None:
        pod = self._pods.get(key)
        backends = self._backends(pod) if pod else {}
        wanted = {(item, bit): address for bit, address in backends.items() for item in pod.host_ports} if pod else {}
        known = self._numbers.get(key, {})
        numbers = {each: known[each] if each in known else self._number(key, each) for each in wanted}
        leading = list(self._frontends(numbers, wanted))
        cost = Counter(backends=len(wanted), services=len(wanted), frontends=len(leading))
        if not self._room.take((OWNER, *key), cost, numbers.values()):
            for each in numbers.keys() - known.keys():
                self._numbering.release(numbers[each] & ~(HOST_PORT | IPV6))
            return
        for (item, bit), address in wanted.items():
            self._selections.fill(numbers[item, bit], {(address, item.target)})
        self._leading.set((OWNER, *key), leading)
        self._numbers[key] = numbers = {**known, **numbers}
        for each in numbers.keys() - wanted.keys():
            number = numbers.pop(each)
            self._numbering.release(number & ~(HOST_PORT | IPV6))
            self._selections.empty(number)
        if not numbers:
            del self._numbers[key]

    def _number(self, key: Key, port: Port) -> int:
        return self._numbering.take(repr((key, *port)).encode()) | HOST_PORT | port[1]

    def explain(self) -> Iterator[dict[str, Any]]:
        """For people: rows of the form of those of Services (node_agent.explain)."""
        for key, numbers in sorted(self._numbers.items()):
            backends = self._backends(self._pods[key])
            for (item, bit), number in sorted(numbers.items(), key=lambda each: (each[0][0].port, each[1])):
                leading = self._frontends(numbers, [(item, bit)])
                yield {
                    "namespace": key[0],
                    "name": key[1],
                    "type": "hostPort",
                    "selection": number,
                    "port": item.port,
                    "protocol": item.protocol,
                    "family": "IPv6" if bit else "IPv4",
                    "traffic_policy": "",
                    "affinity_seconds": 0,
                    "source_ranges": [],
                    "frontends": sorted(write_end(frontend.address, frontend.port) for frontend in leading),
                    "backends": [write_end(backends[bit], item.target)],
                    "left_out": {},
                    "refusal": "",
                }

    @staticmethod
    def _backends(pod: Endpoint) -> dict[int, bytes]:
        """Of each family the pod's first address."""
        return {family(address): address for address in reversed(pod.addresses)}

    def _frontends(self, numbers: dict[Port, int], wanted: Iterable[Port]) -> Iterator[Frontend]:
        for item, bit in wanted:
            for address in self._own:
                if is_served(address) and family(address) == bit and item.address in (b"", address):
                    number = numbers[item, bit]
                    yield Frontend(address, item.port, item.protocol, number, number)
