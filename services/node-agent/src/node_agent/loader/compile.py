"""The source's parts, each compiled in a process of its own, beside each other. Free of BCC."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from node_agent.loader.objects import Object
from node_agent.loader.part import Job
from node_agent.loader.source import COMPILED_ENTRIES, BuildError, Source

# How many of the last lines of a compiler's output an error shows.
SHOWN_LINES = 25


def compile_source(source: Source, directory: Path) -> Object:
    """All programs of the source. Raises BuildError."""
    flags = tuple(f"-DSIZE_{name}={COMPILED_ENTRIES}" for name in source.sizes)
    stubs = str(directory / "stubs")
    jobs = [Job(text, names, source.maps, source.private_maps, flags, stubs) for text, names in source.parts]
    with ThreadPoolExecutor(len(jobs)) as pool:
        parts = list(pool.map(lambda job: _compile_part(job, directory), jobs))
    maps = parts[0].maps
    for part in parts[1:]:
        if differing := [name for name in maps if part.maps[name] != maps[name]]:
            raise BuildError(f"{directory}: not the same in all parts: map {', map '.join(differing)}")
    return Object(maps, {name: program for part in parts for name, program in part.programs.items()})


def _compile_part(job: Job, directory: Path) -> Object:
    command = [sys.executable, "-m", "node_agent.loader.part"]
    done = subprocess.run(command, input=msgspec.msgpack.encode(job), capture_output=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        end = f"ended by signal {-done.returncode}\n" if done.returncode < 0 else ""
        raise BuildError(f"{directory}: does not compile\n{end}" + "\n".join(lines[-SHOWN_LINES:]))
    return msgspec.msgpack.decode(done.stdout, type=Object)
