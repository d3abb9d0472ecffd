"""Endpoints, certificates, names, and what errors say."""

import asyncio
import socket
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from etcd3aio.kv import KVService

import tidegate.store.etcd as etcd_module
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Put, Snapshot, StoreError, UnavailableError
from tidegate.store.connection import Connection, RefusedError, parse_endpoint, resolve
from tidegate.store.credentials import read_tls
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess, free_port

OpenStore = Callable[..., EtcdStore]
PATIENCE = 60.0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:2379", "127.0.0.1:2379"),
        ("etcd.example:2379", "etcd.example:2379"),
        ("https://etcd.example:2379/", "etcd.example:2379"),
        ("[fd00::1]:2379", "[fd00::1]:2379"),
        ("unix:///run/etcd/localhost:1", "unix:///run/etcd/localhost:1"),
    ],
)
def test_endpoints(text: str, shown: str) -> None:
    assert str(parse_endpoint(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "host", "host:", "host:0", "host:65536", "host:x", ":2379", "fd00::1:2379", "unix://rel", "ftp://h:1"]
)
def test_what_is_no_endpoint_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(SettingsError, match=r"host:port|absolute"):
        parse_endpoint(text)


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(SettingsError, match="107"):
        parse_endpoint("unix:///" + "x" * 107)


async def test_names_are_resolved_and_kept_for_the_certificate() -> None:
    targets = await resolve(parse_endpoint("localhost:2379"))
    assert ("ipv4:127.0.0.1:2379", "localhost") in [(target.uri, target.name) for target in targets]
    (literal,) = await resolve(parse_endpoint("127.0.0.1:2379"))
    assert literal.name is None
    (path,) = await resolve(parse_endpoint("unix:///a/b"))
    assert (path.uri, path.name) == ("unix:/a/b", "localhost")
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid"):
        await resolve(parse_endpoint("no-such-host.invalid:1"))


async def test_the_name_is_resolved_anew_after_a_failure(
    etcd: EtcdProcess, open_store: OpenStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd moved to another address under the same name."""
    loop = asyncio.get_running_loop()
    ports = [free_port(), etcd.port]
    asked: list[int] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        assert (host, port) == ("etcd.test", 2379)
        asked.append(ports[min(len(asked), 1)])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", asked[-1]))]

    async def next_target(self: Connection) -> Any:
        endpoint, target = await original(self)
        return endpoint, type(target)(f"ipv4:127.0.0.1:{asked[-1]}", None)

    original = Connection._next_target
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(Connection, "_next_target", next_target)
    await open_store("etcd.test:2379").transact([Put(f"{prefix}a", b"")])
    assert len(asked) == 2


async def test_a_dead_endpoint_is_passed_over(etcd: EtcdProcess, open_store: OpenStore, prefix: str) -> None:
    for _ in range(4):  # the order is drawn
        store = open_store(f"127.0.0.1:{free_port()}", etcd.endpoint, "no-such-host.invalid:2379")
        await store.transact([Put(f"{prefix}a", b"")])


async def test_a_deaf_endpoint_is_an_error_with_its_address(open_store: OpenStore) -> None:
    """A port that accepts and never answers, as a stopped process does."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=endpoint):
            await open_store(endpoint).snapshot("/")


async def test_an_endpoint_that_is_no_etcd_is_left(etcd: EtcdProcess, open_store: OpenStore, prefix: str) -> None:
    """Such as a proxy whose own etcd is gone, and a server of something else."""
    other = grpc.aio.server()
    port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    try:
        for _ in range(4):  # the order is drawn
            store = open_store(f"127.0.0.1:{port}", etcd.endpoint)
            async with asyncio.timeout(PATIENCE), aclosing(store.follow(prefix)) as changes:
                assert isinstance(await anext(changes), Snapshot)
        with pytest.raises(UnavailableError, match="UNIMPLEMENTED"):
            await open_store(f"127.0.0.1:{port}").snapshot("/")
    finally:
        await other.stop(None)


async def test_closing_ends_the_calls_under_way_with_an_error(open_store: OpenStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        store = open_store(f"127.0.0.1:{deaf.getsockname()[1]}")
        call = asyncio.create_task(store.snapshot("/"))
        await asyncio.sleep(0.1)
        await store.close()
        with pytest.raises(UnavailableError):
            await call
    with pytest.raises(UnavailableError, match="closed"):
        await store.snapshot("/")


async def read_forever(connection: Connection, cancel_call: bool) -> None:
    async with connection.link() as link:
        call = link.watch()
        if cancel_call:
            asyncio.get_running_loop().call_soon(call.cancel)
        await call.read()


async def test_a_cancelled_call_is_a_failure_and_no_end_of_its_task(own_etcd: EtcdProcess) -> None:
    """Only who cancels the task itself ends it."""
    await own_etcd.start()
    connection = Connection([parse_endpoint(own_etcd.endpoint)])
    try:
        with pytest.raises(UnavailableError, match="cancelled"):
            await read_forever(connection, cancel_call=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read_forever(connection, cancel_call=False), 0.01)
    finally:
        await connection.close()


async def test_a_cut_does_not_disturb_other_calls(
    etcd: EtcdProcess, open_store: OpenStore, proxy_to: Callable[[int], Awaitable[Any]], prefix: str
) -> None:
    """Many calls share a channel; the failure of some must not cancel the rest."""
    proxy = await proxy_to(etcd.port)
    store = open_store(proxy.endpoint)
    writes = [asyncio.create_task(store.transact([Put(f"{prefix}{i}", bytes(50_000))])) for i in range(60)]
    for _ in range(3):
        await asyncio.sleep(0.01)
        proxy.cut()
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(result, int | UnavailableError) for result in results), results
    assert any(isinstance(result, int) for result in results)


async def test_what_etcd_refuses_is_not_repeated(etcd: EtcdProcess, open_store: OpenStore, prefix: str) -> None:
    store = open_store(etcd.endpoint)
    with pytest.raises(RefusedError, match="too large"):
        await store.transact([Put(f"{prefix}a", bytes(2_000_000))])


async def test_a_full_etcd_says_what_to_do(tmp_path: Path, open_store: OpenStore) -> None:
    full = EtcdProcess(tmp_path, options=("--quota-backend-bytes=1000000",))
    await full.start()
    try:
        store = open_store(full.endpoint)

        async def fill() -> None:
            # etcd looks at its size when it commits, ten times a second: it takes some more than fit.
            for number in range(1000):
                await store.transact([Put(f"/a/{number}", bytes(500_000))])

        with pytest.raises(StoreError, match="defragment"):
            await fill()
    finally:
        full.kill()


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's certificate for the name localhost alone, and a client's."""
    directory = tmp_path_factory.mktemp("tls")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(directory, "req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name, extension in (("server", "subjectAltName=DNS:localhost"), ("client", "extendedKeyUsage=clientAuth")):
        (directory / "ext").write_text(extension)
        openssl(directory, "req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "ext"]
        openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return directory


async def test_mutual_tls(
    tmp_path: Path, certificates: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    secure = EtcdProcess(
        tmp_path,
        options=(
            f"--listen-client-urls=http://127.0.0.1:{(plain := free_port())},https://127.0.0.1:{port}",
            f"--cert-file={certificates / 'server.pem'}",
            f"--key-file={certificates / 'server.key'}",
            f"--trusted-ca-file={certificates / 'ca.pem'}",
            "--client-cert-auth",
        ),
        port=plain,
    )
    await secure.start()
    client = {
        "etcd_ca": certificates / "ca.pem",
        "etcd_cert": certificates / "client.pem",
        "etcd_key": certificates / "client.key",
    }
    try:
        store = open_store(f"localhost:{port}", **client)
        await store.transact([Put("/a", b"1")])
        assert (await store.snapshot("/a")).values == {"/a": b"1"}
        # The certificate is for the name, not for the address; without a client certificate nobody is let in.
        for other in (
            open_store(f"127.0.0.1:{port}", **client),
            open_store(f"localhost:{port}", etcd_ca=client["etcd_ca"]),
            open_store(f"localhost:{port}"),
        ):
            with pytest.raises(UnavailableError):
                await other.snapshot("/a")
    finally:
        secure.kill()


def test_certificates_that_cannot_be_used_are_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.pem"):
        read_tls(CommonSettings(etcd_ca=tmp_path / "missing.pem"))
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(SettingsError, match="PEM"):
        read_tls(CommonSettings(etcd_ca=tmp_path / "empty.pem"))
    assert read_tls(CommonSettings()) is None


async def test_the_next_page_is_asked_for_while_one_is_taken(
    etcd: EtcdProcess, open_store: OpenStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(etcd.endpoint)
    keys = [f"{prefix}{number:04}" for number in range(1000)]
    for start in range(0, 1000, 100):
        await store.transact([Put(key, b"x") for key in keys[start : start + 100]])
    monkeypatch.setattr("tidegate.store.etcd.FIRST_PAGE", 300)
    monkeypatch.setattr("tidegate.store.etcd.LARGEST_PAGE", 300)
    store._largest_page = 300
    asked = 0
    taken: list[int] = []
    get, take = KVService.get, etcd_module._take

    async def ask(self: KVService, *arguments: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return await get(self, *arguments, **options)

    async def look(page: Any, values: dict[str, bytes]) -> Any:
        latest = await take(page, values)
        taken.append(asked)
        return latest

    monkeypatch.setattr(KVService, "get", ask)
    monkeypatch.setattr(etcd_module, "_take", look)
    assert [*(await store.snapshot(prefix)).values] == keys
    assert taken == [2, 3, 4, 4]


async def test_large_prefixes_are_read_in_pages_at_one_revision(
    etcd: EtcdProcess, open_store: OpenStore, prefix: str
) -> None:
    store = open_store(etcd.endpoint)
    for start in range(0, 3_000, 100):
        await store.transact([Put(f"{prefix}{i:05}", b"%d" % i) for i in range(start, start + 100)])
    expected = {f"{prefix}{i:05}": b"%d" % i for i in range(3_000)}
    reading = asyncio.create_task(store.snapshot(prefix))
    changing = [asyncio.create_task(store.transact([Put(f"{prefix}{i:05}", b"new")])) for i in range(0, 3_000, 300)]
    snapshot = await reading
    revisions = sorted(await asyncio.gather(*changing))
    seen_changes = sum(1 for revision in revisions if revision <= snapshot.revision)
    assert sum(1 for value in snapshot.values.values() if value == b"new") == seen_changes
    assert snapshot.values.keys() == expected.keys()


async def test_a_snapshot_overtaken_by_compaction_begins_anew(
    etcd: EtcdProcess, open_store: OpenStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.store.etcd.FIRST_PAGE", 400)
    store = open_store(etcd.endpoint)
    for start in range(0, 1_200, 100):
        await store.transact([Put(f"{prefix}{i:05}", b"") for i in range(start, start + 100)])
    pages = 0
    async with store._connection.link() as link:
        get = link.kv.get

        async def compacting(*args: Any, **kwargs: Any) -> Any:
            nonlocal pages
            pages += 1
            if pages == 2:
                revision = await store.transact([Put(f"{prefix}later", b"")])
                await link.kv.compact(revision, physical=True, timeout=5)
            return await get(*args, **kwargs)

        monkeypatch.setattr(link.kv, "get", compacting)
        snapshot = await store.snapshot(prefix)
    assert pages > 3
    assert len(snapshot.values) == 1_201
