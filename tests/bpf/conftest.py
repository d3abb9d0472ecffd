"""Programs are loaded once a run, into bpffs directories of the run's own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf.kernel import Loaded
from tests.bpf.topology import Cluster, attached_world, build
from tests.leftovers import BPF, sweep

from node_agent.loader import read_manifest

# Small maps: two nodes' worth of them are loaded at once.
SIZES = ["endpoints=1024", "backends=4096", "members=4096", "rules=1024", "connections=4096", "connections_new=4096"]


_BESIDE = tempfile.TemporaryDirectory(prefix="tgt-bpf-")
COMPILED = Path(_BESIDE.name)  # what this run has compiled


def run_loader(bpffs: Path, state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node_agent.loader", "--bpffs", str(bpffs), "--state", str(state)]
    command += ["--cache", str(COMPILED), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    sweep("tgt-bpf")


@pytest.fixture(scope="session")
def bpffs() -> Iterator[Path]:
    """A directory in bpffs that is gone afterwards, with all pins in it."""
    if not os.path.ismount(BPF):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPF)], check=True)
    directory = BPF / f"tgt-bpf-{os.getpid()}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def both_loaded(bpffs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Loaded]]:
    """The programs of two nodes."""
    nodes = []
    for name in ("n1", "n2"):
        state = tmp_path_factory.mktemp(name)
        options = [part for size in SIZES for part in ("--size", size)]
        result = run_loader(bpffs / name, state, *options)
        assert result.returncode == 0, result.stderr
        manifest = read_manifest(state)
        assert manifest is not None
        nodes.append(Loaded(manifest, bpffs / name, state))
    yield nodes
    for node in nodes:
        node.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    built = build()
    yield built
    built.remove()


@pytest.fixture(params=[("tcx", 4), ("clsact", 4), ("tcx", 6)], ids=["tcx", "clsact", "ipv6"])
def world(request: pytest.FixtureRequest, cluster: Cluster, both_loaded: list[Loaded]) -> Iterator[Cluster]:
    """Programs attached in the kernel's newer and older way, and addresses of both families."""
    yield from attached_world(cluster, both_loaded, *request.param)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def tcx_world(request: pytest.FixtureRequest, cluster: Cluster, both_loaded: list[Loaded]) -> Iterator[Cluster]:
    """For what does not depend on how programs are attached."""
    yield from attached_world(cluster, both_loaded, "tcx", request.param)
