"""Through etcd's grpc-proxy, which keeps a client's certificate to itself: users log in with passwords there."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner
from tests.store.test_etcd_trouble import Reader

from playground.etcd import CERTIFICATES, ENABLE
from tidegate.cli.root import tidegate
from tidegate.records import Keyspace
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Batch, Put, Snapshot, StoreError, UnavailableError
from tidegate.store.connection import RefusedError
from tidegate.store.credentials import read_credentials
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdFiles, EtcdProcess, free_port

KEYS = Keyspace("default")
FIRST, SECOND = "correct-horse", "battery-staple"
JWT_TTL = "4s"


async def shell(text: str, environment: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        "sh", env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate(text.encode())
    assert process.returncode == 0, output.decode()


class Tier:
    """An etcd with TLS and roles, and a grpc-proxy before it. `token`: etcd's --auth-token."""

    def __init__(self, directory: Path, token: str) -> None:
        self.certificates = directory / "certificates"
        self.password = directory / "password"
        self.password.write_text(f"{FIRST}\n")
        self.etcd = EtcdProcess(
            directory / "etcd",
            files=EtcdFiles.of(self.certificates),
            options=[f"--auth-token={token.format(certificates=self.certificates)}"],
        )
        self._log = directory / "proxy.log"
        self.port = free_port()
        self._proxy: subprocess.Popen[bytes] | None = None

    @property
    def proxy(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        script = await asyncio.create_subprocess_exec(
            CERTIFICATES, self.certificates, "127.0.0.1", stdout=subprocess.DEVNULL
        )
        assert await script.wait() == 0
        await self.etcd.start()
        printed = CliRunner().invoke(
            tidegate, ["etcd-roles", f"--password-file=node-agent={self.password}"], catch_exceptions=False
        )
        await self.as_root(printed.output + ENABLE)
        self.start_proxy()

    async def as_root(self, text: str) -> None:
        files = {name: str(self.certificates / f"root.{end}") for name, end in (("CERT", "crt"), ("KEY", "key"))}
        names = {"API": "3", "ENDPOINTS": f"https://{self.etcd.endpoint}", "CACERT": str(self.certificates / "ca.crt")}
        await shell(text, {f"ETCDCTL_{name}": value for name, value in (names | files).items()})

    def command(self) -> list[str]:
        """Of the proxy."""
        own = [str(self.certificates / f"proxy.{end}") for end in ("crt", "key")]
        authority = str(self.certificates / "ca.crt")
        return [
            *("etcd", "grpc-proxy", "start", f"--endpoints=https://{self.etcd.endpoint}"),
            f"--listen-addr={self.proxy}",
            *(f"--cacert={authority}", f"--cert={own[0]}", f"--key={own[1]}"),
            *(f"--cert-file={own[0]}", f"--key-file={own[1]}"),
        ]

    def start_proxy(self) -> None:
        with self._log.open("ab") as output:
            self._proxy = subprocess.Popen(self.command(), stdout=output, stderr=output)

    def stop_proxy(self) -> None:
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()

    def stop(self) -> None:
        self.stop_proxy()
        self.etcd.kill()

    def settings(self, user: str | None = "node-agent", endpoint: str | None = None, **more: Any) -> CommonSettings:
        return CommonSettings(
            etcd=(endpoint or self.proxy,),
            etcd_ca=self.certificates / "ca.crt",
            etcd_username=user,
            etcd_password_file=self.password if user else None,
            **more,
        )

    def root(self) -> CommonSettings:
        files = {f"etcd_{name}": self.certificates / f"root.{end}" for name, end in (("cert", "crt"), ("key", "key"))}
        return self.settings(None, self.etcd.endpoint, **files)


SIMPLE = "simple"
JWT = "jwt,priv-key={certificates}/jwt.key,sign-method=ES256,ttl=" + JWT_TTL


@pytest_asyncio.fixture(params=[SIMPLE, JWT], ids=["simple", "jwt"])
async def tier(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Tier]:
    found = Tier(tmp_path, request.param)
    try:
        await found.start()
        yield found
    finally:
        found.stop()


Open = Callable[[CommonSettings], EtcdStore]


@pytest_asyncio.fixture
async def open_store() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def open_one(settings: CommonSettings) -> EtcdStore:
            store = EtcdStore(settings)
            stack.push_async_callback(store.close)
            return store

        yield open_one


async def patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """Until it is not `unavailable` any more: a proxy that starts, an etcd that has no leader yet."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except UnavailableError:
                await asyncio.sleep(0.05)


async def test_reads_and_follows_and_may_not_write(tier: Tier, open_store: Open) -> None:
    root, agent = open_store(tier.root()), open_store(tier.settings())
    await patiently(lambda: root.transact([Put(KEYS.node("a"), b"1")]))
    assert (await patiently(lambda: agent.snapshot(KEYS.prefix))).values == {KEYS.node("a"): b"1"}
    async with Reader(agent, KEYS.prefix) as reader:
        await root.transact([Put(KEYS.node("b"), b"1")])
        await reader.until(lambda reader: KEYS.node("b") in reader.state)
    for key in (KEYS.node("a"), KEYS.synced("endpoint-sync"), "/elsewhere"):
        with pytest.raises(RefusedError, match="permission denied"):
            await agent.transact([Put(key, b"2")])
    with pytest.raises(RefusedError, match="permission denied"):
        await agent.snapshot("/elsewhere/")


async def test_a_user_comes_in_by_password_without_the_proxy_too(tier: Tier, open_store: Open) -> None:
    """etcd itself wants a certificate of everybody: one without a name does."""
    own: dict[str, Any] = {"etcd_cert": tier.certificates / "proxy.crt", "etcd_key": tier.certificates / "proxy.key"}
    agent = open_store(tier.settings(endpoint=tier.etcd.endpoint, **own))
    assert (await patiently(lambda: agent.snapshot(KEYS.prefix))).values == {}
    with pytest.raises(RefusedError, match="permission denied"):
        await agent.transact([Put(KEYS.node("a"), b"2")])


async def test_nobody_reads_without_a_login_or_with_a_wrong_one(tier: Tier, open_store: Open, tmp_path: Path) -> None:
    await patiently(lambda: open_store(tier.settings()).snapshot(KEYS.prefix))
    with pytest.raises(StoreError, match="permission denied"):
        await open_store(tier.settings(None)).snapshot(KEYS.prefix)
    tier.password.write_text("wrong as can be")
    with pytest.raises(RefusedError, match="--etcd-password-file") as caught:
        await open_store(tier.settings()).snapshot(KEYS.prefix)
    assert "wrong as can be" not in str(caught.value)


async def test_a_certificate_with_a_name_is_no_use_to_the_proxy(tier: Tier, open_store: Open) -> None:
    """It is the proxy that etcd sees: with a name of its own, all would come in as that one."""
    own: dict[str, Any] = {"etcd_cert": tier.certificates / "root.crt", "etcd_key": tier.certificates / "root.key"}
    await patiently(lambda: open_store(tier.settings()).snapshot(KEYS.prefix))
    with pytest.raises(StoreError, match="permission denied"):
        await open_store(tier.settings(None, **own)).snapshot(KEYS.prefix)


async def test_the_proxy_itself_has_no_name(tier: Tier) -> None:
    named = [f"--cert={tier.certificates / 'root.crt'}", f"--key={tier.certificates / 'root.key'}"]
    command = ["etcd", "grpc-proxy", "start", f"--endpoints=https://{tier.etcd.endpoint}", *named]
    authority = [f"--cacert={tier.certificates / 'ca.crt'}", f"--listen-addr=127.0.0.1:{free_port()}"]
    process = await asyncio.create_subprocess_exec(*command, *authority, stderr=subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode != 0
    assert b"non empty CN" in said or b"Common Name" in said, said.decode()


async def test_the_password_is_changed_under_a_follower(tier: Tier, open_store: Open) -> None:
    """First in the file, then in etcd: nothing is read anew, and no restart is needed."""
    root, agent = open_store(tier.root()), open_store(tier.settings())
    await patiently(lambda: root.transact([Put(KEYS.node("a"), b"1")]))
    async with Reader(agent, KEYS.prefix) as reader:
        tier.password.write_text(SECOND)
        await tier.as_root(f"etcdctl user passwd node-agent --interactive=false <<END\n{SECOND}\nEND\n")
        await patiently(lambda: root.transact([Put(KEYS.node("b"), b"1")]))
        await reader.until(lambda reader: KEYS.node("b") in reader.state)
        # Its token is void; the same store goes on with a new one.
        assert KEYS.node("b") in (await patiently(lambda: agent.snapshot(KEYS.prefix))).values
        tier.stop_proxy()
        await root.transact([Put(KEYS.node("c"), b"1")])
        tier.start_proxy()
        await reader.until(lambda reader: KEYS.node("c") in reader.state)
    assert len(reader.snapshots) == 1
    tier.password.write_text(FIRST)
    with pytest.raises(RefusedError, match="authentication failed"):
        await patiently(lambda: open_store(tier.settings()).snapshot(KEYS.prefix))


async def until_void() -> None:
    await asyncio.sleep(float(JWT_TTL.removesuffix("s")) + 1)


async def test_a_token_runs_out_under_a_follower(tier: Tier, open_store: Open) -> None:
    """The watch that stands goes on; what is asked next logs in anew."""
    root, agent = open_store(tier.root()), open_store(tier.settings())
    await patiently(lambda: root.transact([Put(KEYS.node("a"), b"1")]))
    async with Reader(agent, KEYS.prefix) as reader:
        await until_void()
        await root.transact([Put(KEYS.node("b"), b"1")])
        await reader.until(lambda reader: KEYS.node("b") in reader.state)
        await patiently(lambda: agent.snapshot(KEYS.prefix))
    assert len(reader.snapshots) == 1


async def test_a_token_runs_out_before_its_watch_begins(tier: Tier, open_store: Open) -> None:
    """Who is slow with a large snapshot does not begin again for it."""
    root, agent = open_store(tier.root()), open_store(tier.settings())
    await patiently(lambda: root.transact([Put(KEYS.node("a"), b"1")]))
    async with asyncio.timeout(60), aclosing(agent.follow(KEYS.prefix)) as changes:
        assert isinstance(await anext(changes), Snapshot)
        await until_void()
        await root.transact([Put(KEYS.node("b"), b"1")])
        assert isinstance(await anext(changes), Batch)


async def test_etcd_starts_anew_behind_the_proxy(tier: Tier, open_store: Open) -> None:
    """Tokens of etcd's are void then, signed ones have run out; the proxy itself asks on with those that it knows."""
    root, agent = open_store(tier.root()), open_store(tier.settings())
    await patiently(lambda: root.transact([Put(KEYS.node("a"), b"1")]))
    async with Reader(agent, KEYS.prefix) as reader:
        tier.etcd.kill()
        await until_void()
        await tier.etcd.start()
        await patiently(lambda: root.transact([Put(KEYS.node("b"), b"1")]))
        await reader.until(lambda reader: KEYS.node("b") in reader.state)


async def test_compaction_overtakes_a_follower_behind_the_proxy(tier: Tier, open_store: Open) -> None:
    root, agent = open_store(tier.root()), open_store(tier.settings())
    await patiently(lambda: root.transact([Put(KEYS.node("a"), b"1")]))
    async with Reader(agent, KEYS.prefix) as reader:
        tier.stop_proxy()
        for number in range(3):
            revision = await root.transact([Put(KEYS.node("b"), b"%d" % number)])
        await tier.as_root(f"etcdctl compact {revision}\n")
        tier.start_proxy()
        await reader.until(lambda reader: reader.state.get(KEYS.node("b")) == b"2")
    assert len(reader.snapshots) == 2


def test_a_password_does_not_cross_the_network_in_the_clear(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("x\n")
    login: dict[str, Any] = {"etcd_username": "node-agent", "etcd_password_file": password}
    for here in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:///a", "http://127.0.0.1:1"):
        found = read_credentials(CommonSettings(etcd=(here,), **login))
        assert found.login is not None
        assert found.login.password == "x"
        assert "'x'" not in repr(found)
    for elsewhere in ("192.0.2.1:2379", "etcd.example:2379", "[2001:db8::1]:2379"):
        with pytest.raises(SettingsError, match="--etcd-ca"):
            read_credentials(CommonSettings(etcd=("127.0.0.1:1", elsewhere), **login))


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_a_password_that_is_none_is_a_bad_setting(tmp_path: Path, content: bytes) -> None:
    password = tmp_path / "password"
    password.write_bytes(content)
    with pytest.raises(SettingsError, match=str(password)):
        read_credentials(CommonSettings(etcd_username="a", etcd_password_file=password))
