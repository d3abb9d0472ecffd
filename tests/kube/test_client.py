"""From a kubeconfig to a client: what is wrong with it is said to whoever gave it."""

import json
import ssl
import subprocess
from pathlib import Path

import pytest
from aiohttp import web

from tidegate.kube.client import KubeClient
from tidegate.kube.watch import Unreachable
from tidegate.runtime.errors import SettingsError

GOOD = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: u, user: {token: t}}]
"""

BAD = {
    "empty": "",
    "no YAML": "{",
    "a list": "[]",
    "no context": GOOD.replace("current-context: c", "current-context: d"),
    "no cluster": GOOD.replace("clusters: [{name: c", "clusters: [{name: d"),
    "a CA that is not there": GOOD.replace('6443"', '6443", certificate-authority: /not/there'),
    "a CA that is none": GOOD.replace('6443"', '6443", certificate-authority-data: bm9uZQ=='),
    "binary": "\0",
}


async def test_a_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good").write_text(GOOD)
    async with await KubeClient.load(tmp_path / "good") as client:
        assert client.server == "https://127.0.0.1:6443"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "good"))
    async with await KubeClient.load() as client:
        assert client.server == "https://127.0.0.1:6443"


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
async def test_a_bad_one_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad").write_text(text)
    with pytest.raises(SettingsError, match=f"kubeconfig {tmp_path}/bad: ."):
        await KubeClient.load(tmp_path / "bad")


async def test_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="there is none: name one with --kubeconfig"):
        await KubeClient.load(tmp_path / "none")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/a:{tmp_path}/b")
    with pytest.raises(SettingsError, match="there is none"):
        await KubeClient.load()


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    """A directory with a certificate for api.test."""
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key", "-out", "cert"]
    subject = ["-subj", "/CN=x", "-addext", "subjectAltName=DNS:api.test"]
    subprocess.run(["openssl", "req", "-x509", *made, *subject], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@pytest.mark.parametrize("named", [True, False])
async def test_a_certificate_for_another_name_than_the_addresss(certified: Path, named: bool) -> None:
    """`tls-server-name`, for lists and for watches."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"watched": "watch" in request.query})

    application = web.Application()
    application.router.add_get("/api", answer)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certified / "cert", certified / "key")
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        server = f'https://127.0.0.1:{runner.addresses[0][1]}", certificate-authority: {certified / "cert"}'
        name = ", tls-server-name: api.test" if named else ""
        (certified / "config").write_text(GOOD.replace('https://127.0.0.1:6443"', server + name))
        async with await KubeClient.load(certified / "config") as client:
            if named:
                assert await client.get("/api") == {"watched": False}
                assert [json.loads(line) async for line in client.watch("/api", "", "1")] == []
            else:
                for answers in (client.get("/api"), anext(client.watch("/api", "", "1"))):
                    with pytest.raises(Unreachable, match="certificate"):
                        await answers
    finally:
        await runner.cleanup()
