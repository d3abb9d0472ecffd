"""The overlay with a tier of grpc-proxies: its commands, run as they stand there but for addresses and paths."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from tests.deploy.test_manifests import OVERLAYS, Manifest, build, containers
from tests.deploy.test_manifests import tree as tree  # a fixture
from tests.store.test_grpc_proxy import Tier, patiently

from tidegate.records import Keyspace
from tidegate.store import Put
from tidegate.store.connection import RefusedError
from tidegate.store.etcd import EtcdStore

KEYS = Keyspace("default")
FILES = {"ca.crt": "ca.crt", "tls.crt": "proxy.crt", "tls.key": "proxy.key", "jwt.key": "jwt.key"}


@pytest.fixture
def manifests(tree: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(build(tree, OVERLAYS[2])))


def container(manifests: list[Manifest], name: str) -> dict[str, Any]:
    (found,) = (each for _, _, each in containers(manifests) if each["name"] == name)
    return found


class AsWritten(Tier):
    """By the commands of the manifests."""

    def __init__(self, directory: Path, manifests: list[Manifest]) -> None:
        self._words: list[str] = container(manifests, "etcd-proxy")["command"]
        members: list[str] = container(manifests, "etcd")["command"]
        (token,) = (word.removeprefix("--auth-token=") for word in members if word.startswith("--auth-token="))
        super().__init__(directory, token.replace("/etc/etcd/", "{certificates}/"))

    def command(self) -> list[str]:
        return [self._here(word) for word in self._words if not word.startswith("--metrics-addr")]

    def _here(self, word: str) -> str:
        here = {
            "$(ETCD_ENDPOINTS)": f"https://{self.etcd.endpoint}",
            "$(NODE_ADDRESS):2392": self.proxy,
            **{f"/etc/etcd/{name}": str(self.certificates / file) for name, file in FILES.items()},
        }
        for written, meant in here.items():
            word = word.replace(written, meant)
        assert "$(" not in word
        return word


@pytest_asyncio.fixture
async def tier(tmp_path: Path, manifests: list[Manifest]) -> AsyncIterator[AsWritten]:
    found = AsWritten(tmp_path, manifests)
    try:
        await found.start()
        yield found
    finally:
        found.stop()


async def test_an_agent_reads_through_it_and_writes_nothing(tier: AsWritten, manifests: list[Manifest]) -> None:
    environment = {each["name"]: each for each in container(manifests, "node-agent")["env"]}
    user = environment["TIDEGATE_ETCD_USERNAME"]["value"]
    root, store = EtcdStore(tier.root()), EtcdStore(tier.settings(user))
    try:
        await patiently(lambda: root.transact([Put(KEYS.synced("endpoint-sync"), b"x")]))
        assert (await patiently(lambda: store.snapshot(KEYS.prefix))).values == {KEYS.synced("endpoint-sync"): b"x"}
        with pytest.raises(RefusedError, match="permission denied"):
            await store.transact([Put(KEYS.synced("endpoint-sync"), b"y")])
    finally:
        await store.close()
        await root.close()


def test_nobody_comes_by_the_certificate_that_agents_had(manifests: list[Manifest]) -> None:
    names = {each["metadata"]["name"].rpartition("-")[0] for each in manifests if each["kind"] == "Secret"}
    assert names == {"etcd-endpoint-sync", "etcd-policy-sync", "etcd-login", "etcd-proxies", "etcd-members"}
    taken = {each["name"] for each in container(manifests, "node-agent")["env"]}
    assert not taken & {"TIDEGATE_ETCD_CERT", "TIDEGATE_ETCD_KEY"}
    assert "TIDEGATE_ETCD_CA" in taken
