"""Faults of etcd, the network, clocks and disks, and what clients see of each: see docs/faults.md."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import until
from tests.cluster.faulty import CLOSED, MEMBERS, Faulty, log_on_a_full_disk
from tests.cluster.test_survival import counts, nothing_lost, traffic

from playground.demo.command import shop

pytestmark = [pytest.mark.root, pytest.mark.cluster, pytest.mark.timeout(300)]

Saw = Callable[..., None]
fault = pytest.mark.fault
NEXT = "no packet is lost; what changes next reaches all nodes"
LEADER_WITHIN = 5_000.0  # ms
STILL_WITHIN = 30_000.0  # ms: a silent member is left after 15 s, calls to it after 5 s


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """With the shop and its policies."""
    found = Faulty(tmp_path_factory.mktemp("etcd"))
    try:
        found.up()
        found.kubectl("apply", "-f", str(shop() / "policies.yaml"))
        found.settle()
        yield found
    finally:
        found.down()


def no_packet_is_lost(seen: dict[str, Any]) -> None:
    """Clients in the namespace `faults` find out by what they are denied, and by Services that have no backend yet."""
    others = {name: n for name, n in seen["drops"].items() if not name.endswith(("POLICY_INGRESS", "NO_BACKEND"))}
    nothing_lost({**seen, "drops": others})


def milliseconds(since: float, at: float) -> float:
    return 1000 * (at - since)


@pytest.mark.parametrize(("service", "change"), [("endpoint-sync", "service"), ("policy-sync", "policy")])
@fault("the leader of a sync service is killed", "no packet is lost; another one writes within 5 s")
def test_the_leader_is_killed(faulty: Faulty, traffic_script: Path, saw: Saw, service: str, change: str) -> None:
    leader, holder = faulty.process_that_leads(service), faulty.holder(service)
    with traffic(faulty, traffic_script) as seen:
        began = time.monotonic()
        os.kill(faulty.pid(leader), signal.SIGKILL)
        took = milliseconds(began, faulty.change(change))
    saw(f"{service}: {counts(seen)}")
    saw("change in force {} after", took, LEADER_WITHIN)
    no_packet_is_lost(seen)
    assert faulty.holder(service) not in ("", holder)


def policies_stay_while(
    faulty: Faulty,
    traffic_script: Path,
    saw: Saw,
    cut: AbstractContextManager[None],
    first: Callable[[], None] = lambda: None,
) -> None:
    """What is denied stays so while the network is cut, and once it is whole again a change comes."""
    with traffic(faulty, traffic_script) as seen:
        with closed(faulty), cut:
            first()
            assert faulty.denied()
        healed = time.monotonic()
        took = milliseconds(healed, faulty.change("service"))
    saw(counts(seen))
    saw("denied stayed denied; change in force {} after", took)
    no_packet_is_lost(seen)


def changes_come_while(
    faulty: Faulty,
    traffic_script: Path,
    saw: Saw,
    slow: AbstractContextManager[None],
    first: Callable[[], None] = lambda: None,
) -> None:
    """Three of them, one after the other, in spite of it."""
    with traffic(faulty, traffic_script) as seen, slow:
        first()
        took = [milliseconds(time.monotonic(), faulty.change(change)) for change in ("service", "policy", "service")]
    saw(counts(seen))
    saw("slowest of three changes in force {} after", max(took))
    no_packet_is_lost(seen)
    everything_is_well(faulty)


def what_cannot_be_written_waits(
    faulty: Faulty, traffic_script: Path, saw: Saw, nothing_written: AbstractContextManager[None], over: str
) -> None:
    """A policy that is deleted meanwhile stays in force, and once it is `over` what changes comes."""
    with traffic(faulty, traffic_script) as seen:
        with closed(faulty):
            with nothing_written:
                faulty.kubectl("delete", "netpol", "-n", "faults", "closed")
                assert faulty.denied()
            since = time.monotonic()
            took = milliseconds(since, faulty.change("service"))
        took = max(took, milliseconds(since, faulty.change("policy")))
    saw(counts(seen))
    saw(f"what could not be written did not come; changes in force {{}} after {over}", took)
    no_packet_is_lost(seen)


@fault("the network to the API server is cut", f"{NEXT} once it is whole again; policies stay in force")
def test_cut_from_the_api_server(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    policies_stay_while(faulty, traffic_script, saw, faulty.api_cut())


@fault(
    "the network to etcd is cut, for longer than leases last", f"{NEXT} once it is whole again; policies stay in force"
)
def test_cut_from_etcd(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    def agents_notice() -> None:
        until("all agents notice", lambda: all("etcd" in faulty.status(node)["problems"] for node in faulty.nodes()))

    policies_stay_while(faulty, traffic_script, saw, faulty.etcd_cut(), agents_notice)


@fault("a member of etcd that agents are connected to is cut off from the others", NEXT)
def test_a_member_is_cut_off(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    member = faulty.member_of_a_node()
    role = "its leader" if member == faulty.etcd_leader() else "a follower"
    with traffic(faulty, traffic_script) as seen, faulty.member_cut(member):
        took = milliseconds(time.monotonic(), faulty.change("service"))
    saw(f"{role}: {counts(seen)}")
    saw("change in force {} after", took)
    no_packet_is_lost(seen)
    everything_is_well(faulty)


@fault("etcd's leader, which agents are connected to, stands still", f"{NEXT} within 30 s")
def test_etcds_leader_stands_still(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    member = faulty.member_of_a_node()
    faulty.let_lead(member)
    with traffic(faulty, traffic_script) as seen, faulty.stopped(member):
        took = milliseconds(time.monotonic(), faulty.change("service"))
    saw(counts(seen))
    saw("change in force {} after", took, STILL_WITHIN)
    no_packet_is_lost(seen)
    everything_is_well(faulty)


@fault("etcd is slow: all members stand still for 0.4 s of each 0.5 s", NEXT)
def test_etcd_is_slow(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    changes_come_while(faulty, traffic_script, saw, faulty.slow(stands=0.4, runs=0.1))


@fault("etcd's disk is full (its quota)", f"{NEXT} once there is room again; policies stay in force")
def test_etcd_is_full(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    what_cannot_be_written_waits(faulty, traffic_script, saw, full(faulty), "there was room")


@fault("etcd's disks are slow: each sync to them takes 0.3 s longer", NEXT)
def test_etcds_disks_are_slow(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    def writes_wait() -> None:
        began = time.monotonic()
        faulty.etcdctl("put", "/slow", "")
        assert milliseconds(began, time.monotonic()) > 300

    changes_come_while(faulty, traffic_script, saw, faulty.disks("fdatasync:delay_enter=300000", *MEMBERS), writes_wait)


@fault("the disk of etcd's leader fails, and it ends", f"{NEXT}; etcd is whole once the member runs again")
def test_the_disk_of_etcds_leader_fails(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    leader = faulty.etcd_leader()
    with traffic(faulty, traffic_script) as seen:
        with faulty.disks("fdatasync:error=EIO", leader):
            took = milliseconds(time.monotonic(), faulty.change("service"))
            until("it ends", lambda: faulty.has_ended(leader))
        faulty.start_again(leader)
        until("etcd is whole", faulty.is_whole)
    saw(counts(seen))
    saw("change in force {} after", took)
    no_packet_is_lost(seen)
    everything_is_well(faulty)


@fault(
    "etcd's disks have no byte left, and all members end",
    f"{NEXT} once there is room and they run again; policies stay in force",
)
def test_etcds_disks_have_no_room(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    what_cannot_be_written_waits(faulty, traffic_script, saw, without_room(faulty), "the members' start")
    everything_is_well(faulty)


@pytest.mark.parametrize("hours", [2, -72])
@fault("the clocks of services and agents jump", NEXT)
def test_clocks_jump(faulty: Faulty, traffic_script: Path, saw: Saw, hours: int) -> None:
    try:
        with traffic(faulty, traffic_script) as seen:
            faulty.set_clocks(3600 * hours)
            began = time.monotonic()
            took = max(milliseconds(began, faulty.change(change)) for change in ("service", "policy"))
            leaders = [faulty.process_that_leads(service) for service in ("endpoint-sync", "policy-sync")]
            for name in leaders:  # who leads next compares its clock with what others wrote
                os.kill(faulty.pid(name), signal.SIGKILL)
            faulty.change("service")
            faulty.change("policy")
    finally:
        faulty.set_clocks(0)
    saw(f"by {hours} h: {counts(seen)}")
    saw("changes in force {} after", took)
    no_packet_is_lost(seen)


@fault("the disk of a node's policy log is full", "no packet is lost; policies change as ever; status names it")
def test_the_policy_log_has_no_room(faulty: Faulty, traffic_script: Path, saw: Saw) -> None:
    faulty.kubectl("apply", "-f", "-", text=LOGGING)
    node = faulty.nodes()[0]
    log_on_a_full_disk(faulty, node)
    try:
        with traffic(faulty, traffic_script) as seen:
            took = milliseconds(time.monotonic(), faulty.change("policy"))
            until("the agent says it", lambda: "policy_action" in str(faulty.status(node)["problems"]))
        saw(counts(seen))
        saw("change in force {} after", took)
        no_packet_is_lost(seen)
    finally:
        (faulty.layout.node_state(node) / "policy_action.log").unlink()
        faulty.kubectl("delete", "networklogging", "default")


LOGGING = """
apiVersion: networking.gke.io/v1alpha1
kind: NetworkLogging
metadata: {name: default}
spec: {cluster: {allow: {log: true, delegate: false}, deny: {log: true, delegate: false}}}
"""


def closed(faulty: Faulty) -> "Closed":
    return Closed(faulty)


class Closed:
    """The server of the namespace `faults` is closed by a policy that is in force, as long as the context is open."""

    def __init__(self, faulty: Faulty) -> None:
        self._faulty = faulty

    def __enter__(self) -> None:
        self._faulty.kubectl("apply", "-f", "-", text=CLOSED)
        until("it is closed", self._faulty.denied)

    def __exit__(self, *_: object) -> None:
        self._faulty.kubectl("delete", "--ignore-not-found", "netpol", "-n", "faults", "closed")
        until("it is open", lambda: not self._faulty.denied())


def fill(faulty: Faulty) -> None:
    """Until etcd takes no more."""

    def put_all() -> None:
        for number in range(1_000):
            faulty.etcdctl("put", f"/filling/{number}", "x" * 100_000)

    with pytest.raises(AssertionError, match="database space exceeded"):
        put_all()


@contextmanager
def full(faulty: Faulty) -> Iterator[None]:
    """By etcd's quota."""
    fill(faulty)
    yield
    make_room(faulty)


@contextmanager
def without_room(faulty: Faulty) -> Iterator[None]:
    """On the disks of etcd's members, which end, and run again when there is some."""
    with faulty.disks("pwrite64:error=ENOSPC", *MEMBERS):
        with suppress(AssertionError):  # a member may end before it answers
            faulty.etcdctl("put", "/filling/0", "")
        until("all end", lambda: all(map(faulty.has_ended, MEMBERS)))
        yield
    faulty.start_again(*MEMBERS)


def make_room(faulty: Faulty) -> None:
    """As the runbook says."""
    faulty.etcdctl("del", "--prefix", "/filling/")
    revision = faulty.etcdctl("endpoint", "status", "-w", "fields", at=MEMBERS[:1]).split('"Revision" : ')[1].split()[0]
    faulty.etcdctl("compact", "--physical", revision)
    for member in MEMBERS:
        faulty.etcdctl("defrag", at=[member])
    faulty.etcdctl("alarm", "disarm")


def everything_is_well(faulty: Faulty) -> None:
    until("all agents are ready", lambda: all(faulty.status(node).get("ready") for node in faulty.nodes()))
    until("etcd is whole", faulty.is_whole)
