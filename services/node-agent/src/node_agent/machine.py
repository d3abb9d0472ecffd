"""Whether this machine can run the agent: each lack is a sentence that says what to do."""

import ctypes
import os
import resource
import shutil
from pathlib import Path

from node_agent.maps import libbpf
from tidegate.runtime.errors import SettingsError

CGROUP2_MAGIC, BPFFS_MAGIC = 0x63677270, 0xCAFE4A11

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF = 12, 21, 39


def check(bpffs: Path, cgroup: Path) -> None:
    """Raises SettingsError with everything that is missing."""
    missing = [text for text in (_capabilities(), _bpffs(bpffs), _cgroup(cgroup), _libbpf(), _nft()) if text]
    if missing:
        raise SettingsError("; ".join(missing))


def allow_open_files() -> None:
    """As many as this process may allow itself: links are kept open, four a pod."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _capabilities() -> str:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    held = int(line.split()[1], 16)
    enough = held >> CAP_NET_ADMIN & 1 and (held >> CAP_BPF & 1 or held >> CAP_SYS_ADMIN & 1)
    return "" if enough else "the agent needs CAP_BPF and CAP_NET_ADMIN: run it as root, or give it both"


def file_system(path: Path) -> int:
    """The magic number of the file system that the path, or its nearest parent that can be seen, lies in."""
    while not os.path.exists(path):  # noqa: PTH110  # Path.exists raises where a directory may not be searched
        path = path.parent
    room = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), room) != 0:
        raise OSError(ctypes.get_errno(), f"statfs {path}")
    return int.from_bytes(room.raw[:8], "little") & 0xFFFFFFFF


def _bpffs(path: Path) -> str:
    if file_system(path) == BPFFS_MAGIC:
        return ""
    return f"--bpffs {path} does not lie in a bpf file system: mount -t bpf bpf /sys/fs/bpf"


def _cgroup(path: Path) -> str:
    if not path.is_dir():
        return f"--cgroup {path} does not exist: name the cgroup v2 directory that holds the pods"
    if file_system(path) == CGROUP2_MAGIC:
        return ""
    return f"--cgroup {path} is not in a cgroup v2 hierarchy: name one (mount | grep cgroup2), or boot with cgroup v2"


def _libbpf() -> str:
    try:
        libbpf()
    except OSError:
        return "libbpf.so.1 not found: install the package libbpf1"
    return ""


def _nft() -> str:
    return "" if shutil.which("nft") else "nft not found: install the package nftables"
