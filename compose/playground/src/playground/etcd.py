"""The playground's etcd: one member that lets everybody in, three that know whom they serve, or somebody else's."""

import asyncio
import os
from pathlib import Path

from playground.layout import CLUSTER
from tidegate.records import Keyspace
from tidegate.records.grants import script
from tidegate.store import StoreError
from tidegate.store.local import EtcdFiles, EtcdProcess

MEMBERS = 3
# As on a cluster (docs/deploy.md).
CERTIFICATES = Path(__file__).parents[3] / "kubernetes/certificates.sh"
ENABLE = "etcdctl user add root --no-password\netcdctl user grant-role root root\netcdctl auth enable\n"


class Etcd:
    """`members`: name of the process → it. `flags` and `files` say how each user of it comes in."""

    def __init__(self, directory: Path, secure: bool, foreign: str | None = None) -> None:
        """`foreign`: endpoints of one that somebody else runs, reached from every network namespace, open to all."""
        self._foreign = foreign
        self._certificates = directory / "certificates" if secure else None
        self.members: dict[str, EtcdProcess] = {}
        if foreign is not None:
            return
        if self._certificates is None:
            self.members = {"etcd": EtcdProcess(directory)}
            return
        own = EtcdFiles.of(self._certificates)
        self.members = {
            f"etcd-{index}": EtcdProcess(directory / str(index), name=f"etcd-{index}", files=own)
            for index in range(MEMBERS)
        }
        for member in self.members.values():
            member.members = list(self.members.values())

    @property
    def endpoint(self) -> str:
        """For etcdctl, and for people."""
        return self._foreign or ",".join(member.endpoint for member in self.members.values())

    @property
    def unix(self) -> str:
        """The same as unix sockets, which are reached from every network namespace."""
        return self._foreign or ",".join(member.unix for member in self.members.values())

    def files(self, user: str) -> dict[str, str]:
        """Setting → PEM file by which a user comes in; empty where everybody does."""
        if self._certificates is None:
            return {}
        names = {"etcd_ca": "ca.crt", "etcd_cert": f"{user}.crt", "etcd_key": f"{user}.key"}
        return {setting: str(self._certificates / name) for setting, name in names.items()}

    def flags(self, user: str) -> list[str]:
        """Of a service's command line."""
        files = self.files(user).items()
        return [f"--etcd={self.unix}", *(f"--{setting.replace('_', '-')}={path}" for setting, path in files)]

    async def start(self) -> None:
        """Raises StoreError."""
        if self._certificates is not None:
            await _shell(f"{CERTIFICATES} {self._certificates} 127.0.0.1", {})
        # None of them answers before a majority is there.
        async with asyncio.TaskGroup() as group:
            for member in self.members.values():
                group.create_task(member.start())
        if self._certificates is not None:
            files = self.files("root")
            environment = {
                "ETCDCTL_API": "3",
                "ETCDCTL_ENDPOINTS": self.endpoint,
                "ETCDCTL_CACERT": files["etcd_ca"],
                "ETCDCTL_CERT": files["etcd_cert"],
                "ETCDCTL_KEY": files["etcd_key"],
            }
            await _shell("\n".join([*script(Keyspace(CLUSTER)), ENABLE]), environment)

    def stop(self) -> None:
        for member in self.members.values():
            member.stop()


async def _shell(text: str, environment: dict[str, str]) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "sh", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=os.environ | environment
    )
    output, _ = await process.communicate(text.encode())
    if process.returncode:
        raise StoreError(f"etcd could not be secured: {output.decode(errors='replace').strip()[-1000:]}")
