"""Pins, cgroups and namespaces of the run's own; what dead runs have left goes first."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.conftest import run_loader
from tests.bpf.kernel import Loaded
from tests.leftovers import BPF, cgroup2, sweep
from tests.node_agent.netns import PREFIX, Network, name_of

from node_agent.loader import read_manifest

# More members than go in two system calls, and few enough endpoints that a test can fill them.
SIZES = {"endpoints": 64, "subjects": 8, "members": 16384, "rules": 1024, "backends": 4096, "connections": 1024}


@pytest.fixture(scope="session")
def swept() -> None:
    sweep(PREFIX)


@pytest.fixture(scope="session")
def bpffs(swept: None) -> Iterator[Path]:
    if not os.path.ismount(BPF):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPF)], check=True)
    directory = BPF / f"{PREFIX}-{os.getpid()}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def all_loaded(bpffs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    state = tmp_path_factory.mktemp("state")
    result = run_loader(bpffs, state, *(f"--size={name}={size}" for name, size in SIZES.items()))
    assert result.returncode == 0, result.stderr
    manifest = read_manifest(state)
    assert manifest is not None
    loaded = Loaded(manifest, bpffs, state)
    yield loaded
    loaded.close()


@pytest.fixture
def loaded(all_loaded: Loaded) -> Iterator[Loaded]:
    """Programs and empty maps; whatever the test attaches is detached afterwards."""
    all_loaded.clear()
    yield all_loaded
    for path in (all_loaded.bpffs / "links").glob("*"):
        path.unlink()


@pytest.fixture
def cgroup(swept: None) -> Iterator[Path]:
    path = cgroup2() / name_of("pods")
    path.mkdir()
    yield path
    path.rmdir()


@pytest.fixture
def network(swept: None) -> Iterator[Network]:
    built = Network()
    yield built
    built.remove()
