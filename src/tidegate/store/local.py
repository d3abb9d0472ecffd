"""A private etcd, for the playground and the tests: Debian's etcd-server on free ports of the loopback."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, Signals

from tidegate.runtime.retry import Backoff
from tidegate.runtime.settings import CommonSettings
from tidegate.store.etcd import EtcdStore
from tidegate.store.protocol import StoreError

SOCKET = "localhost:1"  # etcd's form for a unix socket: the name of a file in its working directory
PATIENCE = 30.0  # seconds until it must answer


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on (yet: take it soon)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class EtcdFiles:
    """PEM files with which etcd serves TLS, to clients and to other members, and wants a certificate of everybody.

    `client_certificate` and `client_key` are shown by who asks whether it answers.
    """

    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path

    @classmethod
    def of(cls, directory: Path) -> "EtcdFiles":
        """As compose/kubernetes/certificates.sh makes them; the client is `root`."""
        names = ("ca.crt", "member.crt", "member.key", "root.crt", "root.key")
        return cls(*(directory / name for name in names))

    @property
    def flags(self) -> list[str]:
        own = {"cert-file": self.certificate, "key-file": self.key, "trusted-ca-file": self.ca}
        files = {**own, **{f"peer-{name}": path for name, path in own.items()}}
        return ["--client-cert-auth", "--peer-client-cert-auth", *(f"--{name}={path}" for name, path in files.items())]


class EtcdProcess:
    """One etcd in `directory` (data, log, socket). Data is not synced to disk: it holds nothing that matters.

    `members` are those of its cluster, itself included; set it before the first start.
    """

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        options: Sequence[str] = (),
        name: str = "private",
        files: EtcdFiles | None = None,
    ) -> None:
        """`options` are further flags of etcd, which may also repeat (and so override) those set here."""
        self.directory = directory
        self.members: Sequence[EtcdProcess] = (self,)
        self.name = name
        self._files = files
        self._options = options
        self.port = port or free_port()
        self._peer = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def unix(self) -> str:
        """The same as a unix socket: reachable from every network namespace."""
        return f"unix://{self.directory / SOCKET}"

    @property
    def _http(self) -> str:
        return "https" if self._files else "http"

    @property
    def peer_url(self) -> str:
        return f"{self._http}://127.0.0.1:{self._peer}"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("this etcd is not running")
        return self._process.pid

    def command(self) -> list[str]:
        program = shutil.which("etcd")
        if program is None:
            raise StoreError("etcd not found: install Debian's etcd-server")
        client, secure = f"{self._http}://{self.endpoint}", "s" if self._files else ""
        return [
            program,
            "--data-dir=data",
            f"--name={self.name}",
            f"--listen-client-urls={client},unix{secure}://{SOCKET}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={','.join(f'{each.name}={each.peer_url}' for each in self.members)}",
            "--unsafe-no-fsync",
            "--log-level=error",
            *(self._files.flags if self._files else []),
            *self._options,
        ]

    async def start(self) -> None:
        """Starts it and waits until it answers. Raises StoreError with the end of its log if it does not."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / SOCKET).unlink(missing_ok=True)
        log = self.directory / "etcd.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # a spawn takes a millisecond
                self.command(), cwd=self.directory, stdout=output, stderr=output, start_new_session=True
            )
        store = EtcdStore(self._settings())
        backoff = Backoff()
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self._answers(store):
                    if self._process.poll() is not None:
                        raise StoreError(f"etcd ended with {self._process.returncode}: {log.read_text()[-2000:]}")
                    await asyncio.sleep(min(backoff.next(), 0.1))
        except TimeoutError as error:
            raise StoreError(f"etcd does not answer at {self.endpoint}: {log.read_text()[-2000:]}") from error
        finally:
            await store.close()

    def _settings(self) -> CommonSettings:
        if self._files is None:
            return CommonSettings(etcd=(self.endpoint,))
        files = self._files
        return CommonSettings(
            etcd=(self.endpoint,),
            etcd_ca=files.ca,
            etcd_cert=files.client_certificate,
            etcd_key=files.client_key,
        )

    async def _answers(self, store: EtcdStore) -> bool:
        try:
            await store.snapshot("/tidegate-start/")
        except StoreError:
            return False
        return True

    async def keep(self, restarted: Callable[[], None]) -> None:
        """Starts it again whenever it ends, on the same data and ports, and says so. Never returns."""
        while True:
            process = self._process
            if process is None:
                raise RuntimeError("this etcd is not running")
            await _ended(process.pid)
            process.wait()
            await self.start()
            restarted()

    def signal(self, number: Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and waits for its end."""
        self.stop(SIGKILL)

    def stop(self, number: Signals = SIGTERM) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(SIGCONT)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    async def restart(self) -> None:
        """kill -9, and start on the same data."""
        self.kill()
        await self.start()

    def wipe(self) -> None:
        """Removes all data of an etcd that is not running."""
        shutil.rmtree(self.data, ignore_errors=True)

    def copy_data(self, to: Path) -> None:
        shutil.copytree(self.data, to)

    def restore_data(self, source: Path) -> None:
        self.wipe()
        shutil.copytree(source, self.data)


async def _ended(pid: int) -> None:
    """Waits for the end of a child, without a thread that could not be cancelled."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
