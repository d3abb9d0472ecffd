"""Our programs on devices and on the cgroup: attached, replaced without a gap, found again after a restart."""

import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from node_agent import filters, links
from node_agent.loader import Manifest, prune
from node_agent.netlink import Host
from tidegate.runtime.logging import get_logger

log = get_logger()

# Program → hook. Those for IPv6 first: an earlier version's IPv4 program may be what refuses all IPv6.
POD_PROGRAMS = {"from_pod6": "ingress", "to_pod6": "egress", "from_pod": "ingress", "to_pod": "egress"}
UPLINK_PROGRAMS = {
    "from_network6": "ingress",
    "to_network6": "egress",
    "from_network": "ingress",
    "to_network": "egress",
}

# clsact: our places among the filters of others, the same at each replacement.
PRIORITY, HANDLE, HANDLE6 = 1, 0x7467, 0x7468
ALL_PROTOCOLS = 3  # ETH_P_ALL
_DIRECT_ACTION = 1  # TCA_BPF_FLAG_ACT_DIRECT


class Ours(NamedTuple):
    """What of the node's network matters to us."""

    uplinks: tuple[int, ...] = ()  # ifindex
    pods: Mapping[bytes, int] = MappingProxyType({})  # address → ifindex of its device
    addresses: frozenset[bytes] = frozenset()  # the node's own


@dataclass(frozen=True, slots=True)
class Devices:
    """Which devices of the node are ours to judge."""

    pod_pattern: str
    uplinks: tuple[str, ...]

    def programs(self, name: str) -> Mapping[str, str] | None:
        """Program → hook for the device, None if it is not ours."""
        if name in self.uplinks:
            return UPLINK_PROGRAMS
        return POD_PROGRAMS if fnmatch.fnmatch(name, self.pod_pattern) else None

    def ours(self, host: Host) -> Ours:
        uplinks = tuple(index for index, name in host.devices.items() if name in self.uplinks)
        judged = {index for index, name in host.devices.items() if self.programs(name) is not None}.difference(uplinks)
        pods = {address: index for address, index in host.pods.items() if index in judged}
        return Ours(uplinks, pods, host.addresses)


class Attachments:
    """Blocking. `repairs` counts links and filters that were found without our program, or gone."""

    def __init__(self, manifest: Manifest, bpffs: Path, cgroup: Path, mode: str) -> None:
        self._bpffs = bpffs
        self._links = bpffs / "links"
        self._links.mkdir(exist_ok=True)
        self._cgroup = cgroup
        self._manifest = manifest
        self._fds = {name: links.open_pin(Path(entry.path)) for name, entry in manifest.programs.items()}
        self._ids = {name: links.program_id(fd) for name, fd in self._fds.items()}
        self._cgroup_programs = {n: e.attach_type for n, e in manifest.programs.items() if e.attach_type}
        self.tcx = mode == "tcx" or (mode == "auto" and links.has_tcx(self._fds["to_pod"]))
        self.repairs = 0
        self.devices: dict[int, str] = {}
        self._filtered: set[int] = set()  # devices that have had their filters since the start
        # Links that stand, kept open: without its pin such a link does not go, and to look at all of them costs little.
        self._open: dict[str, int] = {}

    def close(self) -> None:
        for fd in (*self._fds.values(), *self._open.values()):
            os.close(fd)
        self._fds.clear()
        self._open.clear()

    def are_whole(self) -> bool:
        """Whether all links still hold what they were attached to: of one that is detached the kernel tells nobody."""
        return all(links.is_attached(fd) for fd in self._open.values())

    def attach_cgroup(self) -> None:
        """Raises OSError, also where the path is no cgroup v2 directory."""
        directory = os.open(self._cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name, attach in self._cgroup_programs.items():
                self._link(f"cgroup_{name}", name, directory, attach, self._cgroup.stat().st_ino)
        finally:
            os.close(directory)

    def attach_device(self, index: int, name: str, programs: Mapping[str, str]) -> None:
        """Raises FileNotFoundError or OSError(ENODEV) where the device has gone meanwhile."""
        for program, hook in programs.items():
            if self.tcx:
                self._link(f"tcx_{index}_{program}", program, index, f"tcx_{hook}", index)
            elif filters.programs(index, hook).get(_handle(program)) != self._ids[program]:
                if index in self._filtered:
                    self._repaired(f"{name} {hook}", "its filter was removed or replaced")
                self._filter(index, hook, program)
        if not self.tcx:
            self._filtered.add(index)
        self.devices[index] = name

    def forget_device(self, index: int) -> None:
        """The device is gone, and the kernel has let go of its programs."""
        self.devices.pop(index, None)
        self._filtered.discard(index)
        for path in self._links.glob(f"tcx_{index}_*"):
            path.unlink()
        for name in [name for name in self._open if name.startswith(f"tcx_{index}_")]:
            os.close(self._open.pop(name))

    def forget_absent(self, present: Mapping[int, str]) -> None:
        """The same of all that are not there any more."""
        linked = {int(name.split("_")[1]) for name in self._open if name.startswith("tcx_")}
        for index in (linked | self.devices.keys()) - present.keys():
            self.forget_device(index)

    def finish(self, present: Mapping[int, str]) -> list[str]:
        """After a start: removes links of devices that are gone, and the programs and maps of earlier versions."""
        for path in self._links.iterdir():
            kind, _, rest = path.name.partition("_")
            if kind == "tcx" and (not self.tcx or int(rest.partition("_")[0]) not in present):
                path.unlink()
        return prune(self._bpffs, self._manifest.digest, self._manifest.maps)

    def _link(self, name: str, program: str, target: int, attach: str, identifier: int) -> None:
        path = self._links / name
        try:
            link = links.open_pin(path)
        except FileNotFoundError:
            if name not in self._open:
                self._create(path, program, target, attach)
                return
            self._repaired(name, "its pin was removed")
            link = os.dup(self._open[name])
            links.pin(link, path)
        self._keep(name, link)
        info = links.link_info(link, attach)
        if info.target == identifier:
            if info.program != self._ids[program]:
                links.update(link, self._fds[program])
            return
        # It was detached, or its pin is left from a device or cgroup that is gone, whose number another one may have.
        os.close(self._open.pop(name))
        path.unlink()
        self._repaired(name, "it was detached")
        self._create(path, program, target, attach)

    def _keep(self, name: str, link: int) -> None:
        if name in self._open:
            os.close(self._open[name])
        self._open[name] = link

    def _repaired(self, name: str, reason: str) -> None:
        self.repairs += 1
        log.warning("a program was taken away: attached anew", link=name, reason=reason)

    def _create(self, path: Path, program: str, target: int, attach: str) -> None:
        # Attached after that for IPv6, and yet the first to see a packet: most are IPv4.
        link = links.create(self._fds[program], target, attach, before=self._open.get(f"{path.name}6"))
        self._keep(path.name, link)
        links.pin(link, path)

    def _filter(self, index: int, hook: str, program: str) -> None:
        with IPRoute() as route:
            try:
                route.tc("add", "clsact", index=index)
            except NetlinkError as error:
                if error.code != 17:  # EEXIST: there already, ours or another's
                    raise OSError(error.code, f"qdisc clsact on device {index}: {error}") from error
            try:
                route.tc(
                    "replace-filter",
                    "bpf",
                    index=index,
                    handle=_handle(program),
                    parent=filters.PARENT[hook],
                    prio=PRIORITY,
                    protocol=ALL_PROTOCOLS,
                    fd=self._fds[program],
                    name=f"tidegate_{program}",
                    flags=_DIRECT_ACTION,
                )
            except NetlinkError as error:
                text = (
                    f"filter at {hook} of device {index}, priority {PRIORITY}, where others of another kind may stand"
                )
                raise OSError(error.code, f"{text}: {error}") from error


def _handle(program: str) -> int:
    return HANDLE6 if program.endswith("6") else HANDLE
