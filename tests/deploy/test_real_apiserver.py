"""The manifests at a real API server: taken as they are; both services run under exactly the roles that they give."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from tests.deploy.test_manifests import OVERLAYS, build
from tests.deploy.test_manifests import tree as tree  # a fixture

from playground.realapi import RealApiServer, kubeconfig
from tidegate.records import Keyspace
from tidegate.runtime.settings import CommonSettings
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(180)]

KEYS = Keyspace("default")
SERVICES = ("endpoint-sync", "policy-sync")
OBJECTS = """
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ip-masq-agent, namespace: kube-system}
data: {config: "nonMasqueradeCIDRs: [10.0.0.0/8]"}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.7.7, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""
# Verb, resource, and the rest of `kubectl auth can-i`: what neither may do.
FORBIDDEN = (
    "list secrets -A",
    "get secrets -n tidegate-system",
    "get configmaps/ip-masq-agent -n kube-system",
    "list configmaps -n kube-system",
    "list configmaps -A",
    "create pods -n tidegate-system",
    "patch nodes",
    "update services -A",
    "patch networkpolicies.networking.k8s.io -A",
    "delete events -A",
    "create clusterrolebindings",
    "impersonate users",
    "create serviceaccounts/token -n tidegate-system",
)


def kubectl(server: RealApiServer, *words: str, text: str | None = None) -> str:
    command = ["kubectl", f"--kubeconfig={server.kubeconfig}", *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def applied(real: RealApiServer, tree: Path) -> RealApiServer:
    """Each overlay, field by field (strict), and once more: the server has changed nothing that is asked for."""
    apply = ["apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-"]
    for overlay in OVERLAYS:
        text = build(tree, overlay)
        kubectl(real, *apply, text=text)
        again = kubectl(real, *apply, "--dry-run=server", text=text)
        assert len(again.splitlines()) == len(list(yaml.safe_load_all(text)))
    return real


def test_all_overlays_are_taken(applied: RealApiServer) -> None:
    found = kubectl(applied, "get", "deployment,daemonset,poddisruptionbudget", "-n", "tidegate-system", "-o", "name")
    assert set(found.split()) == {
        "deployment.apps/endpoint-sync",
        "deployment.apps/policy-sync",
        "daemonset.apps/node-agent",
        "daemonset.apps/node-visitor",
        "daemonset.apps/etcd",
        "daemonset.apps/etcd-proxy",
        "poddisruptionbudget.policy/endpoint-sync",
        "poddisruptionbudget.policy/policy-sync",
    }


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("words", FORBIDDEN)
def test_what_the_services_may_not_do(applied: RealApiServer, service: str, words: str) -> None:
    who = f"--as=system:serviceaccount:tidegate-system:{service}"
    asked = ["kubectl", f"--kubeconfig={applied.kubeconfig}", "auth", "can-i", *words.split(), who]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("no", 1), done.stderr


@pytest.fixture
def tokens(applied: RealApiServer, tmp_path: Path) -> dict[str, Path]:
    """A kubeconfig of each service's own account."""
    found = {}
    for service in SERVICES:
        token = kubectl(applied, "create", "token", service, "-n", "tidegate-system").strip()
        path = tmp_path / f"{service}.kubeconfig"
        authority = applied.directory / "certs" / "apiserver.crt"
        path.write_text(kubeconfig(applied.server, token, f"certificate-authority: {authority}"))
        found[service] = path
    return found


@pytest.fixture
def logs(tmp_path: Path) -> dict[str, Path]:
    return {service: tmp_path / f"{service}.log" for service in SERVICES}


@asynccontextmanager
async def services(etcd: EtcdProcess, tokens: dict[str, Path], logs: dict[str, Path]) -> AsyncIterator[dict[str, Path]]:
    """Both, as processes; gives the sockets where they tell of themselves."""
    sockets = {service: etcd.directory / f"{service}.sock" for service in SERVICES}
    async with AsyncExitStack() as stack:
        for service in SERVICES:
            command = [
                str(Path(sys.executable).parent / f"tidegate-{service}"),
                f"--etcd={etcd.endpoint}",
                f"--kubeconfig={tokens[service]}",
                f"--http-socket={sockets[service]}",
                "--listen=",
                # One Service is all that fits: the other one is told by an Event.
                *(["--frontends=1"] if service == "endpoint-sync" else []),
            ]
            log = stack.enter_context(logs[service].open("wb"))
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
        yield sockets


async def ready(socket: Path) -> bool:
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
            session.get("http://service/readyz") as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, OSError):
        return False  # not listening yet


async def test_both_services_do_their_work_under_these_roles(
    applied: RealApiServer, tokens: dict[str, Path], logs: dict[str, Path], tmp_path: Path
) -> None:
    kubectl(applied, "apply", "-f", "-", text=OBJECTS)
    etcd = EtcdProcess(tmp_path / "etcd")
    await etcd.start()
    store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
    try:
        async with services(etcd, tokens, logs) as sockets:
            wanted = {
                KEYS.node("n1"),
                KEYS.masquerade(),
                KEYS.synced("endpoint-sync"),
                KEYS.synced("policy-sync"),
                KEYS.problem("endpoint-sync", "Service", "default", "web"),
            }
            until = time.monotonic() + 120
            while True:
                have = (await store.snapshot(KEYS.prefix)).values.keys()
                up = [await ready(path) for path in sockets.values()]
                events = kubectl(applied, "get", "events", "-A", "-o", "jsonpath={.items[*].involvedObject.name}")
                if wanted <= have and all(up) and "web" in events.split():
                    break
                assert time.monotonic() < until, (wanted - have, up, events, texts(logs))
                await asyncio.sleep(0.2)
    finally:
        await store.close()
        etcd.kill()
    for service, text in texts(logs).items():
        assert "forbidden" not in text.lower(), (service, text)


def texts(logs: dict[str, Path]) -> dict[str, Any]:
    return {service: path.read_text()[-3000:] for service, path in logs.items() if path.exists()}
