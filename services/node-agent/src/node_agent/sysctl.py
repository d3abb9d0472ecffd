"""What the kernel must be told so that it forwards."""

from collections.abc import Iterable
from pathlib import Path

SYSCTL = Path("/proc/sys/net")


def forwards(root: Path = SYSCTL) -> bool:
    """Whether the kernel forwards IPv4, and IPv6 where it has it. Raises OSError."""
    switches = (root / "ipv4/ip_forward", root / "ipv6/conf/all/forwarding")
    return all(path.read_text().strip() == "1" for path in switches if path.exists())


def enable_forwarding(uplinks: Iterable[str], root: Path = SYSCTL) -> None:
    """IPv4, and IPv6 where the kernel has it; what is so already is not written. Raises OSError.

    A device that forwards IPv6 does not listen to routers any more, and would lose its default route, unless its
    `accept_ra` is 2 (the kernel's ip-sysctl documentation): of uplinks that listened it is set.
    """
    _set(root / "ipv4/ip_forward", "1")
    ipv6 = root / "ipv6/conf"
    if not ipv6.is_dir():
        return
    for name in uplinks:
        accepts = ipv6 / name / "accept_ra"
        if accepts.is_file() and accepts.read_text().strip() == "1":
            accepts.write_text("2\n")
    _set(ipv6 / "all/forwarding", "1")


def _set(path: Path, value: str) -> None:
    if path.read_text().strip() != value:
        path.write_text(f"{value}\n")
