"""An etcd with certificates and roles, as compose/kubernetes sets one up: who may do what, and nobody else anything."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner

import endpoint_sync.sync
import policy_sync.sync
from playground.etcd import CERTIFICATES, ENABLE
from tidegate.cli.root import tidegate
from tidegate.records import Keyspace
from tidegate.records.grants import WRITTEN
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Batch, Put, Snapshot, StoreError, UnavailableError
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdFiles, EtcdProcess

KEYS = Keyspace("default")
SERVICES = tuple(WRITTEN)

# Every key that there is (tidegate.records.keys), by who writes it.
OF = {
    "endpoint-sync": [
        KEYS.capacity(),
        KEYS.node("n"),
        KEYS.identity(7),
        KEYS.identities_synced(),
        KEYS.endpoint("ns", "pod"),
        KEYS.service("ns", "name"),
        KEYS.backends("ns", "name", 3),
        KEYS.masquerade(),
    ],
    "policy-sync": [
        KEYS.identity_keys(),
        KEYS.logging(),
        KEYS.namespace_logging("ns"),
        KEYS.namespace_audit("ns"),
        KEYS.peer_set(4),
        KEYS.peers(4, 1),
        KEYS.rules(5),
        KEYS.subject(7),
    ],
}
for writer, own in OF.items():
    own += [KEYS.synced(writer), KEYS.last_write(writer), KEYS.problem(writer, "Service", "ns", "name")]
NOBODYS = ["/tidegate/default/v1/meta/synced/another", "/tidegate/other/v1/nodes/n", "/registry/secrets/ns/name", "/a"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    subprocess.run([CERTIFICATES, directory, "192.0.2.1", "etcd.example"], check=True, capture_output=True)
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoint(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> AsyncIterator[str]:
    """Of an etcd that lets in nobody without a certificate, after the commands of `tidegate etcd-roles`."""
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"), files=EtcdFiles.of(certificates))
    await process.start()
    try:
        printed = CliRunner().invoke(tidegate, ["etcd-roles"], catch_exceptions=False).output * 2  # once more: no harm
        environment = os.environ | {
            "ETCDCTL_API": "3",
            "ETCDCTL_ENDPOINTS": f"https://{process.endpoint}",
            "ETCDCTL_CACERT": str(certificates / "ca.crt"),
            "ETCDCTL_CERT": str(certificates / "root.crt"),
            "ETCDCTL_KEY": str(certificates / "root.key"),
        }
        shell = await asyncio.create_subprocess_exec(
            "sh", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await shell.communicate((printed + ENABLE).encode())
        assert shell.returncode == 0
        yield process.endpoint
    finally:
        process.kill()


Open = Callable[[str], EtcdStore]


@pytest_asyncio.fixture(loop_scope="module")
async def open_as(endpoint: str, certificates: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def open_one(user: str) -> EtcdStore:
            store = EtcdStore(
                CommonSettings(
                    etcd=(endpoint,),
                    etcd_ca=certificates / "ca.crt",
                    etcd_cert=certificates / f"{user}.crt",
                    etcd_key=certificates / f"{user}.key",
                )
            )
            stack.push_async_callback(store.close)
            return store

        yield open_one


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_is_granted_is_what_the_services_publish() -> None:
    assert set(WRITTEN["endpoint-sync"]) == endpoint_sync.sync.RANKS.keys()
    assert set(WRITTEN["policy-sync"]) == policy_sync.sync.RANKS.keys()


async def test_users_of_clusters_that_share_an_etcd_can_be_told_apart() -> None:
    printed = CliRunner().invoke(tidegate, ["etcd-roles", "--cluster=b", "--user-prefix=b-"], catch_exceptions=False)
    granted = [line.split()[3:] for line in printed.output.splitlines() if line.startswith("etcdctl user grant-role")]
    assert granted == [[f"b-{service}", f"tidegate-b-{service}"] for service in SERVICES]


@pytest.mark.parametrize("service", SERVICES)
async def test_each_writes_its_own_keys_and_no_other(open_as: Open, service: str) -> None:
    store = open_as(service)
    for writer, keys in OF.items():
        for key in keys:
            if writer == service:
                assert await store.transact([Put(key, b"")]), key
            else:
                with pytest.raises(StoreError, match="permission denied"):
                    await store.transact([Put(key, b"")])
    for key in NOBODYS:
        with pytest.raises(StoreError, match="permission denied"):
            await store.transact([Put(key, b"")])


@pytest.mark.parametrize("service", SERVICES)
async def test_all_read_what_agents_read(open_as: Open, service: str) -> None:
    await open_as("root").transact([Put(KEYS.node("read"), b"1")])
    async with asyncio.timeout(60), aclosing(open_as(service).follow(KEYS.prefix)) as changes:
        first = await anext(changes)
        assert isinstance(first, Snapshot)
        assert first.values[KEYS.node("read")] == b"1"


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("prefix", ["/registry/", "/tidegate/other/v1/", "/"])
async def test_nobody_reads_what_is_not_tidegates_or_another_clusters(open_as: Open, service: str, prefix: str) -> None:
    with pytest.raises(StoreError, match="permission denied"):
        await open_as(service).snapshot(prefix)


async def test_writers_lead_by_their_own_key(open_as: Open) -> None:
    for writer in OF:
        async with asyncio.timeout(60):
            store = open_as(writer)
            term = await store.campaign(KEYS.leader(writer), "me", 5)
            await store.transact([Put(KEYS.synced(writer), b"1")], fence=term.fence)
            await term.resign()


async def failure(store: EtcdStore) -> str:
    with pytest.raises(UnavailableError) as caught:
        await store.snapshot(KEYS.prefix)
    return str(caught.value)


async def test_certificates_are_replaced_without_a_restart(tmp_path: Path) -> None:
    """Another CA, and all that it signs: etcd starts anew with them, the follower goes on."""
    first, second, used = (tmp_path / name for name in ("first", "second", "used"))
    for directory in (first, second):
        script = await asyncio.create_subprocess_exec(CERTIFICATES, directory, "127.0.0.1", stdout=subprocess.DEVNULL)
        assert await script.wait() == 0
    used.symlink_to(first)
    etcd = EtcdProcess(tmp_path / "etcd", files=EtcdFiles.of(used))
    await etcd.start()
    store = EtcdStore(
        CommonSettings(
            etcd=(etcd.endpoint,),
            etcd_ca=used / "ca.crt",
            etcd_cert=used / "node-agent.crt",
            etcd_key=used / "node-agent.key",
        )
    )
    try:
        async with asyncio.timeout(60), aclosing(store.follow(KEYS.prefix)) as changes:
            assert isinstance(await anext(changes), Snapshot)
            etcd.kill()
            beside = tmp_path / "beside"
            beside.symlink_to(second)
            beside.replace(used)
            await etcd.start()
            await store.transact([Put(KEYS.node("new"), b"1")])
            change = await anext(changes)
            assert isinstance(change, Batch)
            assert change.operations == [Put(KEYS.node("new"), b"1")]
            used.unlink()  # and while there are none it says so
            etcd.kill()
            while "cannot be read" not in await failure(store):
                pass  # the connection that was open ends first
    finally:
        await store.close()
        etcd.kill()


async def test_without_a_certificate_nobody_is_let_in(endpoint: str, certificates: Path) -> None:
    store = EtcdStore(CommonSettings(etcd=(endpoint,), etcd_ca=certificates / "ca.crt"))
    try:
        with pytest.raises(UnavailableError):
            await store.snapshot(KEYS.prefix)
    finally:
        await store.close()
