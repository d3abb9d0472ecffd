"""Compiles the eBPF programs, pins them and their maps, writes the manifest, and is gone.

`python -m node_agent.loader --bpffs DIR --state DIR [--size map=N …]` is a process of its own, because BCC maps LLVM
(about 190 MB) into whoever imports it. Nothing else in this distribution imports `bcc`, and importing this package
does not either: what the agent needs of the loader (`Manifest`, `read_manifest`, `prune`, `catch_up` …) is free of it.

Steps, each in a module: the text (`source`), its instructions and the shapes of its maps (`compile`, the only one with
BCC), kept in a cache under a digest of text and BCC version (`objects`), given to the kernel with the descriptors of
maps (`programs`), and pinned (`pins`). So no source is compiled twice, not even after a reboot, which empties bpffs.

Under the bpffs directory:

- `maps/<name>`: one pin a map, shared by all generations of programs;
- `programs/<digest>/<program>`: the digest covers source, sizes, loader and BCC version.

`<state>/manifest.json` is written last and atomically, so it never names what is not pinned. If anything fails, the
previous manifest and its pins are as they were. Old `programs/<digest>` directories stay until the agent, having moved
its links to the new programs, calls `prune`.

A map that is pinned with another size or layout is replaced by a new one, which gets all that it holds, by the names of
fields (`convert`); `carry` says how nothing is lost on the way. What would not fit there is an error (exit code 3).
Where nothing can be carried over (a field of another kind, another kind of map), the new one is empty.

`<state>/maps.json` says what lies in each map that is pinned, and which of the agent's maps came beside others that are
in use: into these programs may not look before the agent has written all of them (`unfilled`, `mark_filled`).
"""

from node_agent.loader.carry import catch_up
from node_agent.loader.manifest import Field, Layout, Manifest, MapEntry, ProgramEntry, read_manifest
from node_agent.loader.objects import CACHE
from node_agent.loader.pins import prune
from node_agent.loader.shapes import mark_filled, unfilled

__all__ = [
    "CACHE",
    "Field",
    "Layout",
    "Manifest",
    "MapEntry",
    "ProgramEntry",
    "catch_up",
    "mark_filled",
    "prune",
    "read_manifest",
    "unfilled",
]
