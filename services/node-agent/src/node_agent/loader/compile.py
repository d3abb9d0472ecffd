"""Compiling with BCC: the only module that imports it."""

import ctypes
import multiprocessing
import os
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from node_agent.loader.layout import parse_layout
from node_agent.loader.objects import MapShape, Object, Program
from node_agent.loader.pins import definition
from node_agent.loader.source import COMPILED_ENTRIES, BuildError, Source

_LOAD_IMMEDIATE = 0x18  # BPF_LD | BPF_IMM | BPF_DW
_MAP_DESCRIPTOR = 1  # BPF_PSEUDO_MAP_FD, in the place of the source register
# How many of the last lines of a compiler's output an error shows.
SHOWN_LINES = 25


def compile_source(source: Source, directory: Path) -> Object:
    """All programs of the source. Raises BuildError, ImportError."""
    # Beside each other, in processes of their own: BCC holds the interpreter while it compiles.
    with ProcessPoolExecutor(len(source.parts), mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_compile_part, source, text, programs, directory) for text, programs in source.parts]
        try:
            parts = [job.result() for job in jobs]
        except BrokenProcessPool as error:
            raise BuildError(f"{directory}: the compiler was killed, as the kernel does it where memory is short") from error
    maps = parts[0].maps
    for part in parts[1:]:
        if differing := [name for name in maps if part.maps[name] != maps[name]]:
            raise BuildError(f"{directory}: not the same in all parts: map {', map '.join(differing)}")
    return Object(maps, {name: program for part in parts for name, program in part.programs.items()})


def _compile_part(source: Source, text: str, programs: tuple[str, ...], directory: Path) -> Object:
    os.environ["BCC_KERNEL_SOURCE"] = str(directory / "stubs")
    from bcc import BPF, lib

    flags = ["-Werror", "-idirafter", "/usr/include"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        flags += ["-idirafter", f"/usr/include/{multiarch}"]
    flags += [f"-DSIZE_{name}={COMPILED_ENTRIES}" for name in source.sizes]
    with _diagnostics() as said:
        try:
            compiled = BPF(text=text, cflags=flags)
        except Exception as error:
            raise BuildError(f"{directory}: does not compile\n{said()}") from error
    module = compiled.module
    names = (*source.maps, *source.private_maps)
    fds = {lib.bpf_table_fd(module, name.encode()): name for name in names}
    shapes = {name: _shape(lib, module, name, name in source.private_maps) for name in names}
    code = {}
    for program in programs:
        code[program] = _program(compiled.dump_func(program), fds)
    return Object(shapes, code)


def _shape(lib: ctypes.CDLL, module: int, name: str, private: bool) -> MapShape:
    raw = name.encode()
    return MapShape(
        created=definition(lib.bpf_table_fd(module, raw)),
        key=None if private else parse_layout(lib.bpf_table_key_desc(module, raw).decode()),
        value=None if private else parse_layout(lib.bpf_table_leaf_desc(module, raw).decode()),
    )


def _program(raw: bytes, fds: dict[int, str]) -> Program:
    code = bytearray(raw)
    maps: dict[str, list[int]] = {}
    for place in range(len(code) // 8):
        operation, registers, _, immediate = struct.unpack_from("<BBhi", code, place * 8)
        if operation == _LOAD_IMMEDIATE and registers >> 4 == _MAP_DESCRIPTOR:
            maps.setdefault(fds[immediate], []).append(place)
            struct.pack_into("<i", code, place * 8 + 4, 0)
    return Program(bytes(code), {name: tuple(places) for name, places in maps.items()})


@contextmanager
def _diagnostics() -> Iterator["_Said"]:
    """Catches what LLVM and BCC write to descriptor 2; shows it only where the block fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield _Said(file.fileno())
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(saved, 2)
            os.close(saved)


class _Said:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self) -> str:
        ctypes.CDLL(None).fflush(None)
        size = os.fstat(self._fd).st_size
        raw = os.pread(self._fd, size, 0)
        lines = [line for line in raw.decode(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-SHOWN_LINES:])
