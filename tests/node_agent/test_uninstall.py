"""`tidegate cleanup`: a node is as it was before an agent came."""

import asyncio
import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.bpf.conftest import COMPILED
from tests.bpf.kernel import Loaded
from tests.leftovers import BPF
from tests.node_agent.netns import PATIENCE, PREFIX, Network, until
from tests.node_agent.test_agent import RECORDS
from tests.node_agent.world import KEYS, MARKS, OWN, Values, node, puts

from node_agent import links, routes, takeover
from node_agent.syscall import bpf
from node_agent.uninstall import is_running
from tidegate.cli.root import tidegate
from tidegate.runtime.settings import CommonSettings
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

pytestmark = pytest.mark.root

PROG_BY_ID, MAP_BY_ID = 13, 14
# One elsewhere, so that there are routes.
NODES = node(OWN, Network.NODE, cidrs=("10.202.1.0/24",)) | node("n2", "172.31.2.12", cidrs=("10.202.2.0/24",))


def picture(network: Network) -> dict[str, object]:
    """All that a person would look at."""
    run = network.node.run
    return {
        "devices": sorted(link["ifname"] for link in json.loads(run("ip", "-j", "link"))),
        "routes": run("ip", "route", "show", "table", "all"),
        "routes6": run("ip", "-6", "route", "show", "table", "all"),
        "rules": run("ip", "rule"),
        "nftables": run("nft", "list", "ruleset"),
        "qdiscs": sorted((q["dev"], q["kind"]) for q in json.loads(run("tc", "-j", "qdisc"))),
        "programs": run("bpftool", "net", "show"),
    }


def settled(network: Network) -> dict[str, object]:
    """When the kernel is through with what has just been set up: routes of devices come a little later."""
    before = picture(network)
    while True:
        time.sleep(0.5)
        now = picture(network)
        if now == before:
            return now
        before = now


class Node:
    def __init__(self, network: Network, cgroup: Path, home: Path, etcd: EtcdProcess, attach: str) -> None:
        self.network, self.cgroup, self.attach = network, cgroup, attach
        self.state, self.cni = home / "state", home / "net.d" / "05-tidegate.conflist"
        self.bpffs = BPF / f"{PREFIX}-{os.getpid()}-u"
        self._etcd = etcd

    @contextmanager
    def agent(self) -> Iterator[None]:
        """Until it is ready, then killed, which leaves everything as it is."""
        command = [
            str(Path(sys.executable).parent / "tidegate-node-agent"),
            f"--cluster={KEYS.cluster}",
            f"--node={OWN}",
            f"--etcd={self._etcd.unix}",
            f"--bpffs={self.bpffs}",
            f"--state={self.state}",
            f"--cache={COMPILED}",
            f"--cgroup={self.cgroup}",
            f"--cni-config={self.cni}",
            f"--policy-log={self.state / 'policy.log'}",
            "--uplink=eth0",
            f"--attach={self.attach}",
            "--listen=",
        ]
        with self.network.node.entered():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            asyncio.run(until("the agent's CNI configuration, its last step", lambda: self.cni.exists()))
            yield
        finally:
            process.kill()
            output, _ = process.communicate()
            print(output.decode(errors="replace"))  # noqa: T201  # pytest shows it where the test fails

    def cleanup(self) -> Result:
        with self.network.node.entered():
            return CliRunner().invoke(tidegate, ["cleanup", f"--node={OWN}", f"--state={self.state}"])

    def numbers(self) -> list[tuple[int, int]]:
        """The kernel's numbers of all that is pinned, with the call that finds them."""
        found = []
        for path in [*self.bpffs.glob("programs/*/*"), *self.bpffs.glob("maps/*")]:
            fd = links.open_pin(path)
            call = MAP_BY_ID if path.parent.name == "maps" else PROG_BY_ID
            found.append((call, links.program_id(fd)))  # of maps the number stands at the same place
            os.close(fd)
        return found


def exists(call: int, number: int) -> bool:
    try:
        os.close(bpf(call, struct.pack("=III", number, 0, 0), "look"))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def filled_etcd(directory: Path, records: Values) -> EtcdProcess:
    """One that runs, and holds these records."""
    etcd = EtcdProcess(directory / "etcd")

    async def fill() -> None:
        await etcd.start()
        store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
        await store.transact(puts(records))
        await store.close()

    asyncio.run(fill())
    return etcd


@pytest.fixture(params=["tcx", "clsact"])
def a_node(
    request: pytest.FixtureRequest, network: Network, cgroup: Path, bpffs: Path, tmp_path: Path
) -> Iterator[Node]:
    etcd = filled_etcd(tmp_path, {**RECORDS, **NODES, **MARKS})
    made = Node(network, cgroup, tmp_path, etcd, request.param)
    yield made
    made.cleanup()
    shutil.rmtree(made.bpffs, ignore_errors=True)
    etcd.kill()


def test_a_node_is_as_it_was(a_node: Node) -> None:
    before = settled(a_node.network)
    with a_node.agent():
        during = picture(a_node.network)
        assert [what for what in before if before[what] != during[what]] == [
            "routes",
            "nftables",
            *(["qdiscs", "programs"] if a_node.attach == "clsact" else []),  # this bpftool knows no tcx
        ]
        assert is_running(a_node.state)
        refused = a_node.cleanup()
        assert refused.exit_code == 1
        assert "stop it first" in refused.output
        assert picture(a_node.network) == during
    numbers = a_node.numbers()
    assert all(exists(*number) for number in numbers)
    # As an agent leaves it that has taken over from kube-proxy, while such connections are open.
    a_node.network.node.run("nft", "add", "table", *takeover.TABLE.split())

    done = a_node.cleanup()
    assert done.exit_code == 0, done.output
    assert picture(a_node.network) == before
    assert not a_node.bpffs.exists()
    assert not a_node.state.exists()
    assert list(a_node.cni.parent.iterdir()) == []
    shown = ["bpftool", "cgroup", "show", str(a_node.cgroup)]
    assert subprocess.run(shown, capture_output=True, text=True, check=True).stdout == ""
    ends = time.monotonic() + PATIENCE  # the kernel frees them a little later
    while any(exists(*number) for number in numbers):
        assert time.monotonic() < ends
        time.sleep(0.01)

    again = a_node.cleanup()
    assert (again.exit_code, again.output) == (0, "nothing of an agent's is here\n")


def test_a_directory_that_is_no_agents_stays(tmp_path: Path) -> None:
    (tmp_path / "papers").write_text("mine")
    for options in ([f"--state={tmp_path}"], [f"--state={tmp_path / 'none'}", f"--bpffs={tmp_path}"]):
        done = CliRunner().invoke(tidegate, ["cleanup", *options])
        assert done.exit_code == 1
        assert "is --" in done.output
    assert (tmp_path / "papers").exists()


def test_what_others_have_on_the_same_devices_stays(a_node: Node, loaded: Loaded) -> None:
    run = a_node.network.node.run
    run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    program = loaded.manifest.programs["to_network"].path  # passes what is not marked
    run("tc", "filter", "add", "dev", "eth0", "ingress", "prio", "7", "bpf", "direct-action", "pinned", program)
    run("nft", "add", "table", "inet", "others")
    run("ip", "route", "add", "203.0.113.0/24", "dev", "eth0")
    before = settled(a_node.network)
    with a_node.agent():
        pass
    assert a_node.cleanup().exit_code == 0
    now = picture(a_node.network)
    assert {what: now[what] for what in now if now[what] != before[what]} == {}
    assert "to_network" in run("tc", "filter", "show", "dev", "eth0", "ingress")


@pytest.mark.parametrize("a_node", ["tcx"], indirect=True)
def test_a_route_that_is_gone_already_is_no_trouble(a_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_node.agent():
        pass
    change = routes.change

    def twice(changes: Sequence[tuple[str, str, str]]) -> dict[int, int]:
        """Somebody else removes each route just before."""
        change(changes)
        return change(changes)

    monkeypatch.setattr(routes, "change", twice)
    done = a_node.cleanup()
    assert done.exit_code == 0, done.output
    assert "route 10.202.2.0/24 via 172.31.2.12" in done.output
