"""What the whole suite shares: which tests can run here, and saying plainly which cannot."""

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tidegate.runtime.collector import after_collection

if TYPE_CHECKING:
    from playground.realapi import RealApiServer

NO_API_SERVER = "KUBEBUILDER_ASSETS names no directory with a kube-apiserver"


def _real_api_server() -> bool:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    return bool(assets) and (Path(assets or "") / "kube-apiserver").exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("apiserver") and not _real_api_server():
            item.add_marker(pytest.mark.skip(reason=NO_API_SERVER))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test needs root (network namespaces, eBPF): run the suite as root", pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _real_api_server():
        terminalreporter.write_line(f"The tier against a real kube-apiserver was skipped: {NO_API_SERVER}.")


@pytest.fixture(autouse=True)
def nothing_is_kept_from_the_collector() -> Iterator[None]:
    """What services do about it in a process of their own, as it was for the next test."""
    yield
    gc.callbacks[:] = [each for each in gc.callbacks if each is not after_collection]
    gc.unfreeze()


@pytest.fixture
def saw(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Says what clients saw, for the table of faults (tests/fault_table.py): words, or a time and what is promised."""

    def say(text: str, milliseconds: float | None = None, within: float | None = None) -> None:
        request.node.user_properties.append(("saw", text.format(f"{milliseconds:.0f} ms" if milliseconds else "")))
        if milliseconds is not None and within is not None:
            request.node.user_properties.append(("took", (milliseconds, within)))

    return say


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator["RealApiServer"]:
    """A kube-apiserver of KUBEBUILDER_ASSETS, with an etcd of its own."""
    from playground.realapi import RealApiServer, assets  # a Kubernetes client comes with it

    binaries = assets()
    assert binaries is not None
    server = RealApiServer(tmp_path_factory.mktemp("real"), binaries, "10.96.0.0/16")
    try:
        asyncio.run(server.start())
        yield server
    finally:
        server.stop()
