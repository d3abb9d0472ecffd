"""The CNI configuration of this node: the standard plugins `ptp` and `host-local`, on the node's pod CIDRs.

A container runtime starts no pod before it finds a configuration, so it is written last: when our programs stand on
the node's devices and everything that etcd has is in the maps. It must not outlive a reboot either, which leaves the
kernel without programs: the file lies in the agent's state directory, below /run, and what the runtime looks at is a
link to it. The link is made anew with each change, as runtimes watch its directory only.
"""

import fcntl
import json
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tidegate.records import Node
from tidegate.records.addresses import unpack_cidr
from tidegate.runtime.logging import get_logger

CNI_VERSION = "1.0.0"
NAME = "cni.conflist"
SIOCGIFMTU = 0x8921  # linux/sockios.h
IFREQ = struct.Struct("16si20x")  # linux/if.h: the device's name, then a union
DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}

log = get_logger()


def configuration(cidrs: Sequence[str], mtu: int | None) -> dict[str, Any]:
    """A network configuration list (CNI specification 1.0.0, section 1).

    `cidrs`: the node's pod CIDRs, one of a family. `mtu`: of pods' devices; None: the kernel's default.
    """
    families = [6 if ":" in cidr else 4 for cidr in cidrs]
    plugin: dict[str, Any] = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": cidr}] for cidr in cidrs],
            "routes": [{"dst": DEFAULT_ROUTES[family]} for family in families],
        },
    }
    if mtu is not None:
        plugin["mtu"] = mtu
    return {"cniVersion": CNI_VERSION, "name": "tidegate", "plugins": [plugin]}


def smallest_mtu(devices: Sequence[str]) -> int | None:
    """Of those devices that are there, in the network namespace of the caller (/sys may show another one)."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in devices:
            with suppress(OSError):  # no such device
                answer = fcntl.ioctl(asking, SIOCGIFMTU, IFREQ.pack(name.encode(), 0))
                found.append(IFREQ.unpack(answer)[1])
    return min(found, default=None)


class CniConfiguration:
    """`problems`: the link's path → why it is not there."""

    def __init__(self, link: Path | None, state: Path, uplinks: Sequence[str]) -> None:
        """`link` is where the container runtime looks (`/etc/cni/net.d/05-tidegate.conflist`); None: nothing is
        written."""
        self._link = link
        self._file = state / NAME
        self._uplinks = uplinks
        self._written: str | None = None
        self._looked: Node | None = None  # the record that all is as it should be for, as far as was looked
        self.problems: dict[str, str] = {}

    def begin(self) -> None:
        """Before any program is attached: the link alone, which leads nowhere where the machine has just been started.
        What an agent before this one has written stays."""
        if self._link is not None and not self._link.is_symlink():
            try:
                self._make_link(self._link)
            except OSError as error:
                self._trouble(error)

    def look_again(self) -> None:
        """The next `write` looks whether the file is there, and what the uplinks are like."""
        self._looked = None

    def write(self, node: Node | None) -> None:
        """To be called when pods can be judged, with the record of this node; with the same one it costs nothing."""
        if self._link is None or (node is not None and node is self._looked):
            return
        self.problems = {}
        if node is None or not node.pod_cidrs:
            self._trouble("this Node has no pod CIDR: let kube-controller-manager give it one (--allocate-node-cidrs)")
            return
        try:
            cidrs = [unpack_cidr(*cidr) for cidr in node.pod_cidrs]
            text = json.dumps(configuration(cidrs, smallest_mtu(self._uplinks)), indent=2) + "\n"
            if text != self._written or not self._link.exists():
                self._replace(text)
                self._make_link(self._link)
                self._written = text
                log.info("CNI configuration written", path=str(self._link), pod_cidrs=cidrs)
            self._looked = node
        except OSError as error:
            self._trouble(error)

    def _trouble(self, reason: object) -> None:
        self.problems[f"CNI configuration {self._link}"] = str(reason)

    def _replace(self, text: str) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self._file)

    def _make_link(self, link: Path) -> None:
        # No runtime takes a file of this name for a configuration.
        beside = link.with_name(f".{link.name}.new")
        beside.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        beside.symlink_to(self._file)
        beside.replace(link)
