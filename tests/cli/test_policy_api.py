"""`tidegate policy` by an API server's objects: the playground's own, and a real one where there is one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.endpoint_sync.world import Object, annotated, match, namespace, node, pod, policy

from playground.apiserver.routes import serve
from playground.realapi import RealApiServer, kubeconfig
from policy_sync.annotations import AUDIT
from tidegate.cli import cluster
from tidegate.cli.root import tidegate
from tidegate.kube.client import KubeClient

WEB, DB = match(app="web"), match(app="db")
FOR_TEAM = policy("shop/team", DB, ingress=[{"from": [{"namespaceSelector": match(team="a")}]}])
FOR_WEB = policy("shop/web", DB, ingress=[{"from": [{"podSelector": WEB}], "ports": [{"port": 5432}]}])
FOR_BLOCK = policy("shop/block", DB, ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}])


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "RUN", tmp_path / "tidegate")
    monkeypatch.delenv("TIDEGATE_PLAYGROUND", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


async def fill(api: KubeClient) -> None:
    """A node, three pods in two namespaces, of which one has a label, and a policy."""
    await api.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
    await api.merge("/api/v1/nodes/n1/status", {"status": node("n1", "192.168.0.1")["status"]})
    for name, labels in (("shop", {}), ("pay", {"team": "a"})):
        await api.create("/api/v1/namespaces", namespace(name, **labels))
    for where, ip in (("shop/web", "10.0.0.1"), ("shop/db", "10.0.0.2"), ("pay/job", "10.0.0.3"), ("pay/new", "")):
        made = pod(where, ip, {"app": where.partition("/")[2]})
        home, name = where.split("/")
        spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
        path = f"/api/v1/namespaces/{home}/pods"
        await api.create(path, {"metadata": made["metadata"], "spec": spec})
        await api.merge(f"{path}/{name}/status", {"status": made["status"]})
    await api.create("/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies", FOR_TEAM)


@asynccontextmanager
async def own(directory: Path) -> AsyncIterator[Path]:
    async with serve() as server:
        path = directory / "kubeconfig"
        path.write_text(kubeconfig(f"http://127.0.0.1:{server.port}", "token"))
        async with await KubeClient.load(path) as api:
            await fill(api)
        yield path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(tidegate, ["policy", *arguments])


def diff(directory: Path, config: Path | None, *change: Object) -> dict[tuple[str, str], dict[str, str]]:
    """Ends → what would be otherwise, among pods."""
    file = directory / "change.yaml"
    file.write_text(yaml.safe_dump_all(change))
    chosen = [f"--kubeconfig={config}"] if config else []
    result = call("diff", *chosen, f"--change={file}", "-o", "json")
    assert result.exit_code in (0, 1), result.output
    rows: list[Any] = json.loads(result.stdout)
    kinds = "opened", "closed", "audited"
    found = {(row["from"], row["to"]): {kind: row[kind] for kind in kinds if row[kind]} for row in rows}
    return {ends: told for ends, told in found.items() if "/" in ends[0] and "/" in ends[1]}


def check(directory: Path, config: Path) -> None:
    assert diff(directory, config, FOR_WEB) == {("shop/web", "shop/db"): {"opened": "TCP 5432"}}
    # What it says without the namespace's label, and in audit.
    assert diff(directory, config, namespace("pay")) == {("pay/job", "shop/db"): {"closed": "everything"}}
    audited = annotated(namespace("shop"), AUDIT)
    assert diff(directory, config, audited) == {("shop/web", "shop/db"): {"opened": "everything"}}
    # A pod that takes the place of another has its addresses.
    relabelled = {key: value for key, value in pod("shop/web", "", {"app": "db"}).items() if key != "status"}
    found = diff(directory, config, FOR_BLOCK, relabelled)
    assert found == {
        ("shop/web", "shop/db"): {"opened": "everything"},
        ("shop/db", "shop/web"): {"closed": "everything"},
    }
    result = call("explain", f"--kubeconfig={config}", "--from=pay/new", "--to=shop/db", "--port=80")
    assert "no endpoint pay/new" in result.output  # it has no address yet
    result = call("explain", f"--kubeconfig={config}", "--from=pay/job", "--to=shop/db", "--port=80")
    assert (result.exit_code, result.output.splitlines()[0]) == (0, "pay/job -> shop/db TCP 80: allowed")


async def test_by_the_playground_s_server(tmp_path: Path) -> None:
    async with own(tmp_path) as config:
        await asyncio.to_thread(check, tmp_path, config)


@pytest.mark.apiserver
async def test_by_a_real_server(tmp_path: Path, real: RealApiServer) -> None:
    async with await KubeClient.load(real.kubeconfig) as api:
        await fill(api)
    await asyncio.to_thread(check, tmp_path, real.kubeconfig)


async def test_a_change_is_asked_of_the_server_that_kubectl_would_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {("shop/web", "shop/db"): {"opened": "TCP 5432"}}
    async with own(tmp_path) as config:
        state = tmp_path / "tidegate/playground/state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"etcd": "127.0.0.1:1", "kubeconfig": str(config)}))
        assert await asyncio.to_thread(diff, tmp_path, None, FOR_WEB) == expected
        state.unlink()
        monkeypatch.setenv("KUBECONFIG", str(config))
        assert await asyncio.to_thread(diff, tmp_path, None, FOR_WEB) == expected


def test_where_there_are_no_objects(tmp_path: Path) -> None:
    file = tmp_path / "change.yaml"
    file.write_text(yaml.safe_dump(FOR_WEB))
    result = call("diff", f"--change={file}")
    assert result.exit_code == 1
    assert "name one with --kubeconfig or KUBECONFIG" in result.output
    assert "etcd does not hold what rules are made of" in result.output
    result = call("diff", f"--change={file}", f"--from-etcd-snapshot={file}")
    assert result.exit_code == 2
    assert "a snapshot will not do" in result.output
    result = call("list", f"--manifests={file}", f"--kubeconfig={file}")
    assert result.exit_code == 2
    assert "exclude each other" in result.output
    config = tmp_path / "config"
    config.write_text(kubeconfig("http://127.0.0.1:1", "token"))
    result = call("list", f"--kubeconfig={config}")
    assert result.exit_code == 1
    assert "GET /api/v1/namespaces at http://127.0.0.1:1" in result.output
