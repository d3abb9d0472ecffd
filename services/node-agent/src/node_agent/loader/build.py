"""Compiling and loading with BCC: the only module that imports it."""

import ctypes
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node_agent.loader.layout import parse_layout
from node_agent.loader.manifest import Layout
from node_agent.loader.pins import MAP_TYPES, Definition, definition
from node_agent.loader.source import Source

# Program -> (type, attach type) by the kernel's names; the numbers are the user API's (enum bpf_prog_type,
# enum bpf_attach_type).
_SCHED_CLS = 3
_CGROUP_SOCK_ADDR = 18
PROGRAMS: dict[str, tuple[str, str | None]] = {
    "from_pod": ("sched_cls", None),
    "to_pod": ("sched_cls", None),
    "from_network": ("sched_cls", None),
    "connect4": ("cgroup_sock_addr", "cgroup_inet4_connect"),
    "connect6": ("cgroup_sock_addr", "cgroup_inet6_connect"),
    "sendmsg4": ("cgroup_sock_addr", "cgroup_udp4_sendmsg"),
    "sendmsg6": ("cgroup_sock_addr", "cgroup_udp6_sendmsg"),
    "recvmsg4": ("cgroup_sock_addr", "cgroup_udp4_recvmsg"),
    "recvmsg6": ("cgroup_sock_addr", "cgroup_udp6_recvmsg"),
    "getpeername4": ("cgroup_sock_addr", "cgroup_inet4_getpeername"),
    "getpeername6": ("cgroup_sock_addr", "cgroup_inet6_getpeername"),
}
_ATTACH_NUMBERS = {
    "cgroup_inet4_connect": 10,
    "cgroup_inet6_connect": 11,
    "cgroup_udp4_sendmsg": 14,
    "cgroup_udp6_sendmsg": 15,
    "cgroup_udp4_recvmsg": 19,
    "cgroup_udp6_recvmsg": 20,
    "cgroup_inet4_getpeername": 29,
    "cgroup_inet6_getpeername": 30,
}
_UNSIGNED_MINUS_ONE = 0xFFFFFFFF

# How many of the last lines of a compiler's or verifier's output an error shows.
_SHOWN_LINES = 25


class BuildError(Exception):
    """The source does not compile, or the kernel refuses a program; the text ends with the reason."""


@dataclass(frozen=True)
class BuiltMap:
    fd: int
    wanted: Definition
    key: Layout
    value: Layout


class Module:
    """The compiled source with its maps, which exist from here on. Lives as long as the process."""

    def __init__(self, source: Source, directory: Path, reuse: Mapping[str, Path]) -> None:
        """Compiles; takes the maps in `reuse` from their pins and creates the others. Raises BuildError."""
        os.environ["BCC_KERNEL_SOURCE"] = str(directory / "stubs")
        from bcc import BPF, lib

        self._lib = lib
        self._source = source
        flags = ["-Werror", "-idirafter", "/usr/include"]
        multiarch = sysconfig.get_config_var("MULTIARCH")
        if multiarch:
            flags += ["-idirafter", f"/usr/include/{multiarch}"]
        for name in source.maps:
            path = reuse.get(name)
            flags.append(f'-DPIN_{name}="{f":{path}" if path else ""}"')
        with _diagnostics() as said:
            try:
                self._bpf = BPF(text=source.text, cflags=flags)
            except Exception as error:
                raise BuildError(f"{directory}: does not compile\n{said()}") from error

    def maps(self) -> dict[str, BuiltMap]:
        """All maps of the source, whatever they are pinned as: compare `wanted` with `definition(fd)`."""
        lib, module = self._lib, self._bpf.module
        built: dict[str, BuiltMap] = {}
        for name in self._source.maps:
            raw = name.encode()
            number = lib.bpf_table_id(module, raw)
            kind = MAP_TYPES[lib.bpf_table_type_id(module, number)]
            key = parse_layout(lib.bpf_table_key_desc(module, raw).decode())
            value = parse_layout(lib.bpf_table_leaf_desc(module, raw).decode())
            ring = kind == "ringbuf"
            wanted = Definition(
                type=kind,
                key_size=0 if ring else key.size,
                value_size=0 if ring else value.size,
                max_entries=lib.bpf_table_max_entries_id(module, number),
                flags=lib.bpf_table_flags_id(module, number),
            )
            built[name] = BuiltMap(lib.bpf_table_fd(module, raw), wanted, key, value)
        return built

    def load(self, program: str) -> int:
        """Has the kernel verify a program; returns its descriptor. Raises BuildError with the verifier's reason."""
        kind, attach = PROGRAMS[program]
        number = _SCHED_CLS if kind == "sched_cls" else _CGROUP_SOCK_ADDR
        # The binding takes an unsigned number; -1 is "none".
        expected = _ATTACH_NUMBERS[attach] if attach else _UNSIGNED_MINUS_ONE
        with _diagnostics() as said:
            try:
                function = self._bpf.load_func(program, number, attach_type=expected)
            except Exception as error:
                raise BuildError(f"program {program}: {error}\n{said()}") from error
        return int(function.fd)


def definition_of(built: BuiltMap) -> Definition:
    """What the kernel has behind a map of the module."""
    return definition(built.fd)


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
        return "\n".join(lines[-_SHOWN_LINES:])
