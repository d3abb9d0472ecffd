"""Passwords, tokens and keys are planted, everything that services and the command say is looked through for them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from tests.cluster.conftest import Cluster, start, stop, until

from playground.etcd import CERTIFICATES, ENABLE
from playground.processes import ours
from tidegate.store.local import EtcdFiles, EtcdProcess

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

PROGRAMS = ("tidegate-endpoint-sync", "tidegate-policy-sync", "tidegate-node-agent", "tidegate-node-visitor")
PASSWORD, WRONG, TOKEN = "planted-password-4711", "planted-wrong-password-4712", "planted-api-token-4713"


@dataclass
class Planted:
    """A cluster of one node whose agent and services log in to an etcd with TLS, and show the API server a token."""

    cluster: Cluster
    etcd: EtcdProcess
    environment: dict[str, str]
    password: Path
    key: Path

    @property
    def secrets(self) -> list[str]:
        return [PASSWORD, WRONG, TOKEN, self.key.read_text().splitlines()[1]]

    def sockets(self) -> list[Path]:
        home = self.cluster.layout.home
        agent = self.cluster.layout.node_state("node-1") / "agent.sock"
        return [agent, home / "endpoint-sync.sock", home / "policy-sync.sock"]

    def command(self, *words: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name(words[0])), *words[1:]],
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Planted]:
    certificates, password = tmp_path / "c", tmp_path / "password"
    password.write_text(PASSWORD)
    subprocess.run([CERTIFICATES, certificates, "127.0.0.1"], check=True, capture_output=True)
    etcd = EtcdProcess(tmp_path / "e", files=EtcdFiles.of(certificates))
    config = tmp_path / "kubeconfig"
    asyncio.run(etcd.start())
    server = subprocess.Popen([sys.executable, "-m", "playground.apiserver", f"--kubeconfig={config}"])
    try:
        lines = [
            "etcdctl user add services --interactive=false < $FILE",
            ENABLE,
            "etcdctl user grant-role services root",
        ]
        files = {"CACERT": "ca.crt", "CERT": "root.crt", "KEY": "root.key"}
        access = {f"ETCDCTL_{name}": str(certificates / file) for name, file in files.items()}
        access |= {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": f"https://{etcd.endpoint}", "FILE": str(password)}
        script = "set -e\n" + "\n".join(lines)
        subprocess.run(["sh", "-c", script], env=os.environ | access, check=True, capture_output=True)
        until("the API server serves", config.exists)
        config.write_text(config.read_text().replace("token: playground", f"token: {TOKEN}"))
        assert TOKEN in config.read_text()
        settings = {"CA": "ca.crt", "CERT": "proxy.crt", "KEY": "proxy.key"}
        environment = {f"TIDEGATE_ETCD_{name}": str(certificates / file) for name, file in settings.items()}
        environment |= {"TIDEGATE_ETCD_USERNAME": "services", "TIDEGATE_ETCD_PASSWORD_FILE": str(password)}
        environment["TIDEGATE_LOG_LEVEL"] = "debug"
        options = ["--nodes=1", f"--etcd={etcd.unix}", f"--kubeconfig={config}"]
        cluster = start("q", *options, environment=environment)
        try:
            yield Planted(cluster, etcd, environment, password, certificates / "proxy.key")
        finally:
            stop(cluster)
    finally:
        server.kill()
        server.wait()
        etcd.kill()


async def ask(socket: Path) -> str:
    """All that a service says over HTTP."""
    said = []
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        for path in ("/metrics", "/healthz", "/readyz", "/status"):
            async with session.get(f"http://service{path}") as answer:
                said.append(await answer.text())
    return "\n".join(said)


def killed_and_says(cluster: Cluster, name: str, words: str) -> None:
    """Kills the process; the one that is started in its place logs these words."""
    log, entry = cluster.layout.logs / f"{name}.log", cluster.register["processes"][name]
    os.kill(entry["pid"], signal.SIGKILL)
    until(f"{name} is gone", lambda: not ours(entry))
    before = len(log.read_text())
    until(f"{name} says why it gets nowhere", lambda: words in log.read_text()[before:])


def test_secrets_are_nowhere_to_be_read(planted: Planted) -> None:
    cluster = planted.cluster
    said = [Path(f"/proc/{cluster.pid(name)}/cmdline").read_text() for name in ("endpoint-sync", "node-1")]
    said += [asyncio.run(ask(socket)) for socket in planted.sockets()]
    said += [planted.command(program, "--help") for program in (*PROGRAMS, "tidegate")]
    etcd = f"--etcd={planted.etcd.unix}"
    said.append(planted.command("tidegate", "identities", "--cluster=playground", etcd))
    assert "LABELS" in said[-1], said[-1]

    planted.password.write_text(WRONG)
    asyncio.run(planted.etcd.restart())
    refused = "authentication failed"
    until("all are refused", lambda: all(refused in asyncio.run(ask(socket)) for socket in planted.sockets()))
    said += [asyncio.run(ask(socket)) for socket in planted.sockets()]
    said.append(planted.command("tidegate", "identities", "--cluster=playground", etcd))
    assert refused in said[-1]
    for name in ("endpoint-sync", "node-1"):  # and what they say at a start like this
        killed_and_says(cluster, name, refused)
    # From here on who starts anew ends at once and is started again.
    planted.password.unlink()
    until("a missing file is told", lambda: "cannot be read" in planted.command("tidegate", "identities", etcd))
    said.append(planted.command("tidegate", "status"))
    logs = {path.name: path.read_text(errors="replace") for path in cluster.layout.logs.iterdir()}
    said += [*logs.values(), cluster.layout.state.read_text()]
    for secret in planted.secrets:
        assert [text for text in said if secret in text] == []
