"""How full the maps of the agents are, and how much of the capacity of all Services is taken. Pure."""

from typing import Any

from tidegate.cli.cluster import Cluster, backends
from tidegate.records import Capacity, Service
from tidegate.records.capacity import DIMENSIONS, NOTHING, cost

WARN = 0.8  # of what fits


def share(state: dict[str, Any]) -> float:
    return float(state["entries"] / state["capacity"]) if state["capacity"] else 1.0


def percent(state: dict[str, Any]) -> str:
    return f"{100 * share(state):.1f}%"


def services(cluster: Cluster) -> dict[str, dict[str, int]]:
    """Dimension → what all Services take of it, and the capacity that endpoint-sync was told; empty without that."""
    capacity = cluster.all(Capacity).get(("capacity",))
    if capacity is None:
        return {}
    found = cluster.all(Service).items()
    used = sum((cost(record, backends(cluster, name).backends) for name, record in found), NOTHING)
    return {name: {"entries": getattr(used, name), "capacity": getattr(capacity, name)} for name in DIMENSIONS}


def warnings(capacity: dict[str, dict[str, int]], nodes: list[dict[str, Any]]) -> list[str]:
    """What is nearly full. Maps whose oldest entries make room (`evicts`) are full after a while, and do not count."""
    found = [
        f"all Services together have {_words(state)} {name.replace('_', ' ')}: raise --{name.replace('_', '-')} of "
        f"endpoint-sync, and the agents' maps with it"
        for name, state in capacity.items()
        if share(state) >= WARN
    ]
    for node in nodes:
        for name, state in node.get("maps", {}).items():
            if share(state) >= WARN and not state.get("evicts"):
                text = f"map {name} holds {_words(state)} entries: raise --map-size {name}=N of the agent"
                found.append(f"{node['node']}: {text}")
    return found


def _words(state: dict[str, Any]) -> str:
    return f"{state['entries']} of {state['capacity']} ({percent(state)})"


def columns(nodes: list[dict[str, Any]]) -> list[str]:
    return ["map", "entries of", *(node["node"] for node in nodes)]


def rows(nodes: list[dict[str, Any]]) -> list[list[Any]]:
    """A map a row: its size, and how full it is on each node. Nodes with other sizes tell theirs."""
    names = list(dict.fromkeys(name for node in nodes for name in node["maps"]))
    found = []
    for name in names:
        states = [node["maps"].get(name) for node in nodes]
        size = next(state["capacity"] for state in states if state)
        cells = [_cell(state, size) for state in states]
        evicts = any(state and state.get("evicts") for state in states)
        found.append([name, f"{size} (the oldest go)" if evicts else size, *cells])
    return found


def _cell(state: dict[str, Any] | None, size: int) -> str:
    if state is None:
        return ""
    other = f" of {state['capacity']}" if state["capacity"] != size else ""
    return f"{state['entries']} {percent(state)}{other}"
