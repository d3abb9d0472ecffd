"""A real kube-apiserver from KUBEBUILDER_ASSETS (the convention of the Kubernetes test tools), on loopback."""

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import aiohttp

from tidegate.runtime.retry import Backoff
from tidegate.store.local import free_port

TOKEN = "playground"  # noqa: S105  # of a server that listens on loopback and holds nothing
PATIENCE = 60.0  # seconds until it must be ready


def assets() -> Path | None:
    """The directory with a kube-apiserver, if there is one."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return Path(named) if named and (Path(named) / "kube-apiserver").exists() else None


class RealApiError(Exception):
    """It did not start; the text has the end of its log."""


class RealApiServer:
    """kube-apiserver with an etcd of its own in `directory`; `kubeconfig` lies there when it is ready."""

    def __init__(self, directory: Path, binaries: Path, service_cidr: str) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self._binaries = binaries
        self._service_cidr = service_cidr
        self._ports = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self._ports[2]}"

    def _etcd(self) -> list[str]:
        own = self._binaries / "etcd"
        program = str(own) if own.exists() else shutil.which("etcd") or "etcd"
        client, peer = (f"http://127.0.0.1:{port}" for port in self._ports[:2])
        return [
            program,
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=error",
        ]

    def _api_server(self) -> list[str]:
        keys = self.directory / "sa.key"
        return [
            str(self._binaries / "kube-apiserver"),
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._ports[2]}",
            f"--cert-dir={self.directory / 'certs'}",
            f"--etcd-servers=http://127.0.0.1:{self._ports[0]}",
            f"--service-cluster-ip-range={self._service_cidr}",
            "--service-account-issuer=https://playground",
            f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
            "--profiling=false",
            # Otherwise an open watch holds up its end for a minute.
            "--shutdown-watch-termination-grace-period=1s",
        ]

    async def start(self) -> None:
        """Raises RealApiError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._spawn("etcd", self._etcd())
        key = ["openssl", "genrsa", "-out", str(self.directory / "sa.key"), "2048"]
        maker = await asyncio.create_subprocess_exec(*key, stderr=asyncio.subprocess.DEVNULL)
        if await maker.wait():
            raise RealApiError("openssl could not make a key for service accounts")
        (self.directory / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        self._spawn("kube-apiserver", self._api_server())
        await self._until_ready()
        self._write_kubeconfig()

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def _until_ready(self) -> None:
        backoff = Backoff(cap=0.5)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        try:
            async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(headers=headers) as session:
                while True:
                    try:
                        async with session.get(f"{self.server}/readyz", ssl=False) as answer:
                            if answer.status == 200:
                                return
                    except aiohttp.ClientError:
                        pass  # not listening yet
                    if any(process.poll() is not None for process in self._processes):
                        raise RealApiError(f"ended at its start: {self._log()}")
                    await backoff.wait()
        except TimeoutError as error:
            raise RealApiError(f"not ready after {PATIENCE:g} s: {self._log()}") from error

    def _log(self) -> str:
        return "".join(path.read_text(errors="replace")[-1500:] for path in self.directory.glob("*.log"))

    def _write_kubeconfig(self) -> None:
        authority = self.directory / "certs" / "apiserver.crt"
        self.kubeconfig.write_text(kubeconfig(self.server, TOKEN, f"certificate-authority: {authority}"))

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def kubeconfig(server: str, token: str, more: str = "") -> str:
    """The text of a kubeconfig; `more` is another line of the cluster."""
    return f"""apiVersion: v1
kind: Config
current-context: tidegate
clusters:
- name: tidegate
  cluster:
    server: {server}
    {more}
users:
- name: tidegate
  user:
    token: {token}
contexts:
- name: tidegate
  context:
    cluster: tidegate
    user: tidegate
"""
