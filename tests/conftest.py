"""What the whole suite shares: which tests can run here, and saying plainly which cannot."""

import os
from pathlib import Path

import pytest

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
