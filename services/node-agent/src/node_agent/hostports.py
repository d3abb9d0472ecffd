"""hostPort of this node's pods: ports of the node that lead to one pod, as the CNI plugin `portmap` does it. Pure."""

from collections.abc import Iterator

from node_agent.frontends import HOST_PORT, Frontend, is_served
from node_agent.selections import FrontendTable, SelectionTable
from tidegate.records import Endpoint, HostPort
from tidegate.records.addresses import is_ipv4
from tidegate.records.ids import SERVICE_SPACE, Numbering

Key = tuple[str, str]


class HostPortView:
    """Each port of each pod is a selection of its own, with the pod as its only backend."""

    def __init__(self, node: str, selections: SelectionTable, leading: FrontendTable) -> None:
        self._node = node
        self._selections = selections
        self._leading = leading
        self._own: frozenset[bytes] = frozenset()
        self._pods: dict[Key, Endpoint] = {}
        self._numbers: dict[Key, dict[HostPort, int]] = {}
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

    def _program(self, key: Key) -> None:
        pod = self._pods.get(key)
        address = next(filter(is_ipv4, pod.addresses), None) if pod else None
        wanted = pod.host_ports if pod and address else ()
        numbers = self._numbers.setdefault(key, {})
        for item in wanted:
            if item not in numbers:
                numbers[item] = self._numbering.take(repr((key, item)).encode()) | HOST_PORT
            if address:
                self._selections.fill(numbers[item], {(address, item.target)})
        self._leading.set(("host port", *key), self._frontends(numbers, wanted))
        for item in numbers.keys() - set(wanted):
            number = numbers.pop(item)
            self._numbering.release(number ^ HOST_PORT)
            self._selections.empty(number)
        if not numbers:
            del self._numbers[key]

    def _frontends(self, numbers: dict[HostPort, int], wanted: tuple[HostPort, ...]) -> Iterator[Frontend]:
        for item in wanted:
            for address in self._own:
                if is_served(address) and item.address in (b"", address):
                    yield Frontend(address, item.port, item.protocol, numbers[item], numbers[item])
