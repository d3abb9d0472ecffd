"""What the maps that are pinned mean, by the kernel's numbers of them: `<state>/maps.json`.

The kernel knows sizes of keys and values, not what lies in them. It is noted before a map is pinned, so that it holds
wherever a loader may die; the manifest says the same of the maps that the agent is to use, once they are all there.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from node_agent.loader.manifest import Layout, MapEntry, write_file
from node_agent.loader.pins import map_number, opened

SHAPES = "maps.json"


class Shape(msgspec.Struct, frozen=True):
    """`unfilled`: a map of the agent that came in the place of one with another layout, or beside maps that are in use:
    programs that look into it must wait until the agent has written all that it is to hold."""

    name: str
    key: Layout
    value: Layout
    unfilled: bool = False


def read_shapes(state: Path) -> dict[int, Shape]:
    """By number of the map; empty where nothing is noted. Raises ValueError for what is none of it."""
    path = state / SHAPES
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[int, Shape])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} does not say what maps mean ({error}): remove it and load again") from error


def write_shapes(state: Path, shapes: Mapping[int, Shape], present: Collection[int]) -> None:
    """In the place of what was noted, of the maps that are `present`. As one step."""
    write_file(state / SHAPES, {str(number): shape for number, shape in shapes.items() if number in present})


def unfilled(state: Path, maps: Mapping[str, MapEntry]) -> list[str]:
    """Which of these maps programs may not look into yet. Raises OSError, ValueError."""
    shapes = read_shapes(state)
    found = []
    for name, entry in maps.items():
        with opened(Path(entry.path)) as fd:
            shape = shapes.get(map_number(fd))
        if shape is not None and shape.unfilled:
            found.append(name)
    return found


def mark_filled(state: Path) -> None:
    """The agent has written all that its maps are to hold. Raises OSError, ValueError."""
    shapes = read_shapes(state)
    write_shapes(state, {number: replace(shape, unfilled=False) for number, shape in shapes.items()}, shapes.keys())
