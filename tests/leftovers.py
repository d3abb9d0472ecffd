"""What runs of this suite that were killed have left on the machine: swept before the next one begins."""

import re
import shutil
import subprocess
from pathlib import Path

BPF = Path("/sys/fs/bpf")
NETNS = Path("/run/netns")


def cgroup2() -> Path:
    """Where a cgroup v2 hierarchy is mounted."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return Path(next(words[1] for words in mounts if words[2] == "cgroup2"))


def orphaned(name: str, prefix: str) -> bool:
    """Whether `name` is PREFIX-<pid>…, and of a process that is no more."""
    found = re.fullmatch(rf"{re.escape(prefix)}-(\d+)(-.*)?", name)
    return found is not None and not Path(f"/proc/{found[1]}").exists()


def sweep(prefix: str) -> None:
    """Namespaces, pins and cgroups named `<prefix>-<pid>…` of dead processes."""
    for path in NETNS.glob(f"{prefix}-*"):
        if orphaned(path.name, prefix):
            subprocess.run(["ip", "netns", "del", path.name], check=True)
    for path in BPF.glob(f"{prefix}-*"):
        if orphaned(path.name, prefix):
            shutil.rmtree(path)
    for path in cgroup2().glob(f"{prefix}-*"):
        if orphaned(path.name, prefix):
            path.rmdir()
