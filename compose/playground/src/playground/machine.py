"""What the playground needs of the machine."""

import os
import shutil

from playground.layout import Layout
from tidegate.runtime.errors import SettingsError


def check_machine(etcd: bool = True) -> None:
    """`etcd`: one is to be started. Raises SettingsError with what is missing and what to do."""
    if os.geteuid() != 0:
        raise SettingsError("the playground needs root: network namespaces, cgroups and eBPF")
    for program, package in (
        ("ip", "iproute2"),
        ("nft", "nftables"),
        *([("etcd", "etcd-server")] if etcd else []),
        ("nsenter", "util-linux"),
    ):
        if shutil.which(program) is None:
            raise SettingsError(f"{program} not found: install the package {package}")
    try:
        Layout().cgroup  # noqa: B018  # asks for the mount point
    except FileNotFoundError as error:
        raise SettingsError(str(error)) from error
