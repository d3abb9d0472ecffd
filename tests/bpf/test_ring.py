"""Clients outside get backends by consistent hashing: alike at all nodes, evenly, and moving as few as can be."""

import pytest
from scapy.layers.inet import IP, TCP
from tests.bpf.kernel import Loaded, address, run_program
from tests.bpf.packets import IFINDEX, NODE, WORLD, frame, set_state
from tests.chi_square import is_even

from node_agent.entries import Entries
from node_agent.maps import Maps
from node_agent.ring import Address
from node_agent.selections import SelectionTable
from node_agent.table import ORDER, Tables

pytestmark = pytest.mark.root

NUMBER, PORT = 5, 30080
PORTS = range(20_000, 22_000)


class Place:
    """A node where the Service has these backends, as an agent would write them."""

    def __init__(self, loaded: Loaded, affinity: int = 0) -> None:
        self.loaded, self.affinity = loaded, affinity
        self.maps = Maps(loaded.manifest.maps)
        set_state(loaded)
        frontend = {"addr": NODE, "port": PORT, "protocol": 6}
        loaded.maps["frontends"].set(frontend, {"service": NUMBER, "outside": NUMBER})
        loaded.maps["devices"].set({"value": IFINDEX}, {"flags": 1, "addr": NODE})
        self.tables = Tables({name: {} for name in ORDER})
        self.selections = SelectionTable(self.tables, Entries(loaded.manifest.maps))

    def serve(self, backends: set[Address]) -> None:
        self.selections.fill(NUMBER, backends, affinity=self.affinity, consistent=True)
        for step in self.tables.plan():
            if step.deletes:
                self.maps[step.map].delete_all(step.deletes)
            else:
                assert self.maps[step.map].update_all(step.puts) == len(step.puts)
            self.tables.done(step.map, step.puts, step.deletes)

    def connect(self) -> dict[int, str]:
        """Port of the client → backend that it gets; what was known of the connections is lost before."""
        for name in ("translations", "masquerades", "masqueraded", "affinities"):
            self.loaded.maps[name].clear()
        program = self.loaded.open_program("from_network")
        for port in PORTS:
            run_program(program, bytes(frame(IP(src=WORLD, dst=NODE), TCP(sport=port, dport=PORT, flags="S"))))
        return {key["client_port"]: value["backend"] for key, value in self.loaded.maps["translations"].items()}


def some(count: int) -> list[Address]:
    return [(address(f"10.9.7.{number}"), 8080) for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [2, 5, 40])
def test_spread_evenly_and_alike_on_all_nodes(both_loaded: list[Loaded], count: int) -> None:
    """Also where backends came in another order, and so stand in other slots."""
    one, other = (Place(loaded) for loaded in both_loaded)
    one.serve(set(some(count)))
    other.serve(set(some(count + 3)[3:]))
    other.serve(set(some(count)))
    chosen = one.connect()
    assert len(chosen) == len(PORTS)
    assert other.connect() == chosen
    assert one.connect() == chosen
    assert is_even(list(chosen.values()), count)


@pytest.mark.parametrize("count", [3, 8, 40])
def test_a_backend_that_goes_and_comes_moves_few(both_loaded: list[Loaded], count: int) -> None:
    place = Place(both_loaded[0])
    place.serve(set(some(count)))
    before = place.connect()
    place.serve(set(some(count)[1:]))
    after = place.connect()
    staying = [port for port, backend in before.items() if backend != "10.9.7.1"]
    assert sum(after[port] != before[port] for port in staying) <= 2 * len(PORTS) / count
    assert "10.9.7.1" not in after.values()
    place.serve(set(some(count)))
    assert place.connect() == before


def test_with_affinity_all_of_a_client_is_one_connection(both_loaded: list[Loaded]) -> None:
    """So it finds its backend again at another node."""
    chosen = []
    for loaded in both_loaded:
        place = Place(loaded, affinity=60)
        place.serve(set(some(5)))
        chosen.append(set(place.connect().values()))
    assert len(chosen[0]) == 1
    assert chosen[0] == chosen[1]
