"""Pinned maps and programs for the tests: fields by name, through the manifest, as the agent does it."""

import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from node_agent.loader import Layout, Manifest, MapEntry
from node_agent.namespaces import CLONE_NEWNET, enter, open_own, returning

_LIBBPF = ctypes.CDLL("libbpf.so.1", use_errno=True)
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_LINK_CREATE = 28
TCX_INGRESS, TCX_EGRESS = 46, 47

Fields = Mapping[str, Any]

SETTING_PORTS = 4  # enum setting of types.h
FIRST_PORT, LAST_PORT = 1024, 29999  # under which connections leave as the node, where a test says nothing else


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def address(text: str) -> bytes:
    """16 bytes, IPv4 mapped."""
    parsed = ipaddress.ip_address(text)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


def _text(packed: bytes) -> str:
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return socket.inet_ntoa(packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def pack(layout: Layout, fields: Fields) -> bytes:
    """Addresses and ports as people write them; fields left out are 0."""
    raw = bytearray(layout.size)
    unknown = set(fields) - {field.name for field in layout.fields}
    assert not unknown, f"no such fields: {unknown}"
    for field in layout.fields:
        value = fields.get(field.name)
        if value is None:
            continue
        if field.kind == "addr":
            packed = address(value)
        elif field.kind == "be16":
            packed = value.to_bytes(2, "big")
        elif field.kind == "u32[]":
            packed = b"".join(number.to_bytes(4, "little") for number in value).ljust(field.size, b"\0")
        else:
            packed = value.to_bytes(field.size, "little")
        raw[field.offset : field.offset + field.size] = packed
    return bytes(raw)


def unpack(layout: Layout, raw: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field in layout.fields:
        piece = raw[field.offset : field.offset + field.size]
        if field.kind == "addr":
            fields[field.name] = _text(piece)
        elif field.kind == "be16":
            fields[field.name] = int.from_bytes(piece, "big")
        elif field.kind == "u32[]":
            fields[field.name] = [number for (number,) in struct.iter_unpack("<I", piece)]
        elif not field.name.startswith(("pad", "__pad")):
            fields[field.name] = int.from_bytes(piece, "little")
    return fields


class Map:
    def __init__(self, entry: MapEntry) -> None:
        self.entry = entry
        self.fd = _check(_LIBBPF.bpf_obj_get(entry.path.encode()), entry.path)
        self._copies = len(_possible_cpus()) if entry.type.startswith("percpu") else 1
        self._slot = -(-entry.value_size // 8) * 8 if self._copies > 1 else entry.value_size

    def set(self, key: Fields, value: Fields) -> None:
        self.set_raw(key, pack(self.entry.value, value))

    def set_raw(self, key: Fields, raw: bytes) -> None:
        """Of per-CPU maps the values of all CPUs, each padded to 8 bytes."""
        result = _LIBBPF.bpf_map_update_elem(self.fd, pack(self.entry.key, key), raw, ctypes.c_ulonglong(0))
        _check(result, f"write {self.entry.path}")

    def get(self, key: Fields) -> dict[str, Any] | None:
        """The value; of per-CPU maps the sum over the CPUs."""
        buffer = ctypes.create_string_buffer(self._slot * self._copies)
        if _LIBBPF.bpf_map_lookup_elem(self.fd, pack(self.entry.key, key), buffer) < 0:
            return None
        copies = [
            unpack(self.entry.value, buffer.raw[i * self._slot :][: self.entry.value_size]) for i in range(self._copies)
        ]
        if len(copies) == 1:
            return copies[0]
        return {name: sum(copy[name] for copy in copies) for name in copies[0]}

    def delete(self, key: Fields) -> None:
        _check(_LIBBPF.bpf_map_delete_elem(self.fd, pack(self.entry.key, key)), f"{self.entry.path}: delete an entry")

    def _keys(self) -> Iterator[bytes]:
        following = ctypes.create_string_buffer(self.entry.key_size)
        key: bytes | None = None
        while _LIBBPF.bpf_map_get_next_key(self.fd, key, following) == 0:
            key = following.raw
            yield key

    def items(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        found = []
        for raw in list(self._keys()):
            key = unpack(self.entry.key, raw)
            value = self.get(key)
            if value is not None:
                found.append((key, value))
        return found

    def clear(self) -> None:
        for key in list(self._keys()):
            _LIBBPF.bpf_map_delete_elem(self.fd, key)

    def close(self) -> None:
        os.close(self.fd)


def _possible_cpus() -> list[int]:
    cpus: list[int] = []
    for part in Path("/sys/devices/system/cpu/possible").read_text().strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


class Loaded:
    """What one run of the loader has pinned."""

    def __init__(self, manifest: Manifest, bpffs: Path, state: Path) -> None:
        self.manifest = manifest
        self.bpffs = bpffs
        self.state = state
        self.maps = {name: Map(entry) for name, entry in manifest.maps.items() if entry.type != "ringbuf"}
        self.reasons = {name: int(number) for number, (name, _) in manifest.reasons.items()}

    def counter(self, reason: str) -> int:
        """How many packets had this reason."""
        value = self.maps["counters"].get({"value": self.reasons[reason]})
        assert value is not None
        return int(value["packets"])

    def drops(self) -> dict[str, int]:
        """All reasons that have dropped something."""
        counts = {name: self.counter(name) for name in self.reasons if name != "FORWARDED"}
        return {name: count for name, count in counts.items() if count}

    def clear(self) -> None:
        for name, entry in self.maps.items():
            if entry.entry.type in ("hash", "lru_hash", "lpm_trie"):
                entry.clear()
            elif name == "settings":
                for index in range(entry.entry.max_entries):
                    entry.set({"value": index}, {"value": 0})
        for index in self.reasons.values():
            self._zero_counter(index)

    def set_ports(self, *blocks: tuple[int, int]) -> None:
        """The source ports of what leaves as the node: first and last of each block."""
        numbers = [first << 16 | last - first + 1 for first, last in blocks]
        for index, value in enumerate((*numbers, 0, 0, 0)[:3], SETTING_PORTS):
            self.maps["settings"].set({"value": index}, {"value": value})

    def _zero_counter(self, index: int) -> None:
        counters = self.maps["counters"]
        zero = bytes(16 * len(_possible_cpus()))
        key = index.to_bytes(4, "little")
        _check(_LIBBPF.bpf_map_update_elem(counters.fd, key, zero, ctypes.c_ulonglong(0)), "zero a counter")

    def open_program(self, name: str) -> int:
        return _check(_LIBBPF.bpf_obj_get(self.manifest.programs[name].path.encode()), name)

    def close(self) -> None:
        for entry in self.maps.values():
            entry.close()


class _TestRun(ctypes.Structure):
    # struct bpf_test_run_opts of libbpf 1.1.
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


# Offsets in struct __sk_buff of the kernel's user API.
_SKB_SIZE = 192
_MARK_AT, _INGRESS_IFINDEX_AT, _IFINDEX_AT, _GSO_SEGS_AT, _GSO_SIZE_AT = 8, 36, 40, 164, 176


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """The calling thread, and what it starts, inside the namespace. /sys stays the machine's."""
    with returning():
        enter(namespace)
        yield


@cache
def _nowhere() -> int:
    """A network namespace without a way out, so that what programs find in it is the same on all machines."""
    with returning():
        _check(_LIBC.unshare(CLONE_NEWNET), "make a network namespace")
        for family in ("ipv4", "ipv6"):
            # A new namespace has these from the first one.
            Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("0")
        return open_own()


def _test_run(
    fd: int, frame: bytes, repeat: int, ingress_ifindex: int, ifindex: int, mark: int, gso_size: int
) -> tuple[_TestRun, bytes, bytes]:
    """What the kernel says, the packet and the context afterwards."""
    context = ctypes.create_string_buffer(_SKB_SIZE)
    struct.pack_into("<I", context, _MARK_AT, mark)
    struct.pack_into("<I", context, _INGRESS_IFINDEX_AT, ingress_ifindex)
    struct.pack_into("<I", context, _IFINDEX_AT, ifindex)
    if gso_size:
        struct.pack_into("<I", context, _GSO_SEGS_AT, len(frame) // gso_size + 1)
        struct.pack_into("<I", context, _GSO_SIZE_AT, gso_size)
    data = ctypes.create_string_buffer(frame, len(frame))
    out = ctypes.create_string_buffer(len(frame) + 256)
    options = _TestRun(
        sz=ctypes.sizeof(_TestRun),
        data_in=ctypes.addressof(data),
        data_out=ctypes.addressof(out),
        data_size_in=len(frame),
        data_size_out=len(out),
        ctx_in=ctypes.addressof(context),
        ctx_out=ctypes.addressof(context),
        ctx_size_in=_SKB_SIZE,
        ctx_size_out=_SKB_SIZE,
        repeat=repeat,
    )
    _check(_LIBBPF.bpf_prog_test_run_opts(fd, ctypes.byref(options)), "run a program")
    return options, out.raw[: options.data_size_out], context.raw


def run_program(
    fd: int,
    frame: bytes,
    *,
    namespace: int | None = None,
    ingress_ifindex: int = 0,
    ifindex: int = 1,
    mark: int = 0,
    gso_size: int = 0,
) -> tuple[int, bytes, int]:
    """One packet through a tc program: (action, packet afterwards, mark afterwards). `namespace`: the descriptor of the
    network namespace that it is in, by default one without a way out."""
    with entered(_nowhere() if namespace is None else namespace):
        options, out, context = _test_run(fd, frame, 1, ingress_ifindex, ifindex, mark, gso_size)
    return ctypes.c_int32(options.retval).value, out, struct.unpack_from("<I", context, _MARK_AT)[0]


@contextmanager
def run_pinned(path: str, ifindex: int) -> Iterator[Callable[[bytes], int]]:
    """A function that gives the action of a pinned tc program for a frame, in the caller's network namespace."""
    fd = _check(_LIBBPF.bpf_obj_get(path.encode()), path)
    try:
        yield lambda raw: ctypes.c_int32(_test_run(fd, raw, 1, 0, ifindex, 0, 0)[0].retval).value
    finally:
        os.close(fd)


def time_program(
    fd: int, frame: bytes, repeat: int, *, namespace: int, ingress_ifindex: int = 0, ifindex: int = 1
) -> int:
    """Nanoseconds a run, of so many with one packet, which each run gets as the one before has left it."""
    with entered(namespace):
        options, _, _ = _test_run(fd, frame, repeat, ingress_ifindex, ifindex, 0, 0)
    return int(options.duration)


def attach_tcx(program: int, ifindex: int, kind: int) -> int:
    """A tcx link; closing its descriptor detaches. The calling thread is in the device's namespace."""
    attributes = struct.pack("<IIII", program, ifindex, kind, 0).ljust(64, b"\0")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _LIBC.syscall(_SYSCALL_BPF, _LINK_CREATE, buffer, len(attributes))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"attach to tcx of device {ifindex}: {os.strerror(error)}")
    return int(result)


_CGROUP_ATTACH = {
    "cgroup_inet4_connect": 10,
    "cgroup_inet6_connect": 11,
    "cgroup_udp4_sendmsg": 14,
    "cgroup_udp6_sendmsg": 15,
    "cgroup_udp4_recvmsg": 19,
    "cgroup_udp6_recvmsg": 20,
    "cgroup_inet4_getpeername": 29,
    "cgroup_inet6_getpeername": 30,
    "cgroup_inet_sock_release": 34,
}


@contextmanager
def attached_to_cgroup(loaded: Loaded, cgroup: Path) -> Iterator[None]:
    """All socket programs in a cgroup v2 directory."""
    directory = os.open(cgroup, os.O_RDONLY)
    links: list[int] = []
    try:
        for name, program in loaded.manifest.programs.items():
            if program.attach_type is None:
                continue
            fd = loaded.open_program(name)
            links.append(
                _check(_LIBBPF.bpf_link_create(fd, directory, _CGROUP_ATTACH[program.attach_type], None), name)
            )
            os.close(fd)
        yield
    finally:
        for link in links:
            os.close(link)
        os.close(directory)


_EVENT_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def read_events(entry: MapEntry) -> list[dict[str, Any]]:
    """What lies in a ring buffer, taken out of it."""
    found: list[dict[str, Any]] = []

    def take(_context: int, data: int, size: int) -> int:
        found.append(unpack(entry.value, ctypes.string_at(data, size)))
        return 0

    callback = _EVENT_CALLBACK(take)
    _LIBBPF.ring_buffer__new.restype = ctypes.c_void_p
    fd = _check(_LIBBPF.bpf_obj_get(entry.path.encode()), entry.path)
    ring = _LIBBPF.ring_buffer__new(fd, callback, None, None)
    assert ring
    _LIBBPF.ring_buffer__consume(ctypes.c_void_p(ring))
    _LIBBPF.ring_buffer__free(ctypes.c_void_p(ring))
    os.close(fd)
    return found
