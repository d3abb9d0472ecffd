"""From a kubeconfig to a client: what is wrong with it is said to whoever gave it."""

from pathlib import Path

import pytest

from tidegate.kube.client import KubeClient
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
