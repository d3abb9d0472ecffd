"""On what was measured."""

import os
import platform
import subprocess
from pathlib import Path


def describe() -> dict[str, str]:
    """What a reader needs to judge the figures by; nothing that tells one machine from its like."""
    return {
        "CPU": f"{os.cpu_count()} × {_field('/proc/cpuinfo', 'model name')}",
        "virtual": "yes" if " hypervisor" in _field("/proc/cpuinfo", "flags") else "no",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.1f} GB",
        "kernel": platform.release().split("-")[0],
        "nftables": _version("nft", "--version"),
        "load average": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _version(*command: str) -> str:
    try:
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return next((word.removeprefix("v") for word in words if word.startswith("v")), "unknown")
