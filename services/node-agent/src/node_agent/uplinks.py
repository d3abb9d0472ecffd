"""The devices by which this node reaches others, where nobody has named them."""

from pathlib import Path

# linux/route.h, linux/ipv6_route.h
RTF_UP, RTF_REJECT = 0x0001, 0x0200
ANYWHERE = "0" * 8, "0" * 32


def default_route_devices(root: Path = Path("/proc/thread-self/net")) -> tuple[str, ...]:
    """Those of the default routes of the main table, IPv4 first, each once; of routes that are up and not refusals.

    proc(5): /proc/net/route has the device first, then destination, gateway and flags, and the mask as the eighth;
    /proc/net/ipv6_route destination and its length first, flags as the ninth, and the device last.
    """
    found = []
    for line in _lines(root / "route")[1:]:
        words = line.split()
        if words[1] == words[7] == ANYWHERE[0]:
            found += _usable(words[0], words[3])
    for line in _lines(root / "ipv6_route"):
        words = line.split()
        if (words[0], words[1]) == (ANYWHERE[1], "00"):
            found += _usable(words[9], words[8])
    return tuple(dict.fromkeys(found))


def _usable(device: str, flags: str) -> list[str]:
    return [device] if int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP and device != "lo" else []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:  # the kernel does not have that family
        return []
