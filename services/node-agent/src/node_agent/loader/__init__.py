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

A map that is pinned with another number of entries than the source wants gets a new one with all that it holds, unless
that would not fit: then it is an error (exit code 3). `carry` says how nothing is lost on the way.

A map that is pinned with another definition (type, sizes of key or value, flags, layout of key or value):

- maps that only programs fill (OWNED_BY_PROGRAMS in maps.h) are replaced by fresh ones; running programs keep the old
  map until their links are moved;
- maps that the agent fills are an error (exit code 3, naming map, have and want) unless `--recreate` is given. With it
  they are replaced in the same way, and the agent fills the new ones before it moves the links.
"""

from node_agent.loader.carry import catch_up
from node_agent.loader.manifest import Field, Layout, Manifest, MapEntry, ProgramEntry, read_manifest
from node_agent.loader.objects import CACHE
from node_agent.loader.pins import prune

__all__ = [
    "CACHE",
    "Field",
    "Layout",
    "Manifest",
    "MapEntry",
    "ProgramEntry",
    "catch_up",
    "prune",
    "read_manifest",
]
