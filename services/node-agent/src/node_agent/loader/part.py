"""Compiling one part with BCC, in a process of its own: the only module that imports BCC.

A Job comes by standard input, the Object goes to standard output; diagnostics are on standard error, also those with
which LLVM ends the process.
"""

import ctypes
import os
import struct
import sys
import sysconfig

import msgspec

from node_agent.loader.layout import parse_layout
from node_agent.loader.objects import MapShape, Object, Program
from node_agent.loader.pins import definition

_LOAD_IMMEDIATE = 0x18  # BPF_LD | BPF_IMM | BPF_DW
_MAP_DESCRIPTOR = 1  # BPF_PSEUDO_MAP_FD, in the place of the source register


class Job(msgspec.Struct, frozen=True):
    text: str
    programs: tuple[str, ...]
    maps: tuple[str, ...]
    private_maps: tuple[str, ...]
    flags: tuple[str, ...]  # of the compiler
    stubs: str  # directory of the kernel headers' stand-ins


def main() -> None:
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    os.environ["BCC_KERNEL_SOURCE"] = job.stubs
    from bcc import BPF, lib

    flags = ["-Werror", "-idirafter", "/usr/include", *job.flags]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        flags += ["-idirafter", f"/usr/include/{multiarch}"]
    try:
        compiled = BPF(text=job.text, cflags=flags)
    except Exception as error:  # BCC raises no other; the compiler has said why
        sys.exit(str(error))
    module = compiled.module
    names = (*job.maps, *job.private_maps)
    fds = {lib.bpf_table_fd(module, name.encode()): name for name in names}
    shapes = {name: _shape(lib, module, name, name in job.private_maps) for name in names}
    code = {program: _program(compiled.dump_func(program), fds) for program in job.programs}
    sys.stdout.buffer.write(msgspec.msgpack.encode(Object(shapes, code)))


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


if __name__ == "__main__":
    main()
