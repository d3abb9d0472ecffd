"""The processes that make the load: `load.c` and `flood.c`, compiled when it is needed, each end in a place of its own.

Both ends of a pair run on one CPU, so that a rate says what an exchange costs in all; and in the real-time class, so
that other processes of the machine do not count.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bpf.topology import Namespace

Kind = Literal["connections", "requests"]

SOCKETS, FLOOD = (Path(__file__).with_name(name) for name in ("load.c", "flood.c"))
PRIORITY = 1
# $0 is the cgroup.
JOIN = 'echo 0 > "$0/cgroup.procs" && exec "$@"'


class LoadError(Exception):
    """An end of the load failed; the text says where and why."""


def compile_load(directory: Path, source: Path = SOCKETS) -> Path:
    """Raises LoadError."""
    program = directory / source.stem
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LoadError("gcc not found: install the packages gcc and libc6-dev") from error
    if done.returncode:
        raise LoadError(f"{source.name} does not compile:\n{done.stderr}")
    return program


def quiet_cpu() -> int:
    """The CPU that measured processes share: the last of those that this process may use."""
    return max(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Place:
    """Where an end of the load runs. Without a cgroup it is in that of this process."""

    namespace: Namespace
    cgroup: Path | None = None


@dataclass(frozen=True, slots=True)
class Load:
    program: Path
    cpu: int

    @contextmanager
    def serving(self, place: Place, address: str, port: int) -> Iterator[None]:
        """A server that accepts connections. Raises LoadError."""
        process = self._start(place, "serve", address, str(port))
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise LoadError(f"{place.namespace.name}: no server at {address} port {port}: {_end(process)}")
            yield
        finally:
            process.kill()
            process.communicate()

    def rate(self, kind: Kind, place: Place, address: str, port: int, milliseconds: int) -> float:
        """How many a second, in one run of about that long. Raises LoadError."""
        count, nanoseconds = self.counts(place, kind, address, str(port), str(milliseconds))
        return count / nanoseconds * 1e9

    def counts(self, place: Place, *words: str) -> tuple[int, int]:
        """The two numbers that the program prints at its end. Raises LoadError."""
        process = self._start(place, *words)
        try:
            output, trouble = process.communicate()
        finally:
            process.kill()
        if process.returncode:
            raise LoadError(f"{place.namespace.name}: {' '.join(words)}: {trouble.strip()}")
        count, nanoseconds = map(int, output.split())
        return count, nanoseconds

    def _start(self, place: Place, *words: str) -> subprocess.Popen[str]:
        command = ["taskset", "-c", str(self.cpu), "chrt", "-f", str(PRIORITY), str(self.program), *words]
        if place.cgroup is not None:
            command = ["sh", "-c", JOIN, str(place.cgroup), *command]
        with place.namespace.entered():
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> str:
    _, trouble = process.communicate()
    return trouble.strip()
