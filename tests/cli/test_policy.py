"""`tidegate policy`: what it says of records from etcd, of a snapshot of it, and of objects in files."""

import asyncio
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from tests.endpoint_sync.world import KEYS, Object, annotated, match, namespace, pod, policy
from tests.policy.cases import Case, cases, changes
from tests.policy.compiled import NUMBERS
from tests.policy.model import Documentation, Packet

from offline import records_of
from policy_sync.annotations import AUDIT
from tidegate.cli import reach
from tidegate.cli.cluster import Cluster, parse
from tidegate.cli.ends import find_client
from tidegate.cli.portsets import EVERYTHING, OTHERS, PortSet, of_ranges
from tidegate.cli.reach import Party, Reach, parties
from tidegate.cli.root import tidegate
from tidegate.cli.sides import Sides
from tidegate.records import Endpoint
from tidegate.records.addresses import pack_address, unpack_address

WEB, DB = match(app="web"), match(app="db")
OBJECTS = [
    namespace("shop", team="a"),
    pod("shop/web", "10.0.0.1", {"app": "web"}),
    pod("shop/db", "10.0.0.2", {"app": "db"}, {"sql": ("TCP", 5432)}),
    pod("pay/job", "10.0.0.3", {"app": "job"}, node="n2"),
]
CLOSED = policy("shop/closed")
FOR_WEB = policy("shop/db", DB, ingress=[{"from": [{"podSelector": WEB}], "ports": [{"port": "sql"}]}])


def write(directory: Path, *objects: Object) -> Path:
    directory.mkdir()
    (directory / "all.yaml").write_text(yaml.safe_dump_all(objects))
    return directory


def call(*arguments: str) -> Result:
    return CliRunner().invoke(tidegate, ["policy", *arguments])


def explain(*arguments: str) -> Any:
    result = call("explain", *arguments, "-o", "json")
    assert result.exit_code in (0, 1), result.stderr
    found = json.loads(result.stdout)
    assert found["allowed"] == (result.exit_code == 0)
    return found


def test_explain_names_policies_and_rules(tmp_path: Path) -> None:
    here = f"--manifests={write(tmp_path / 'all', *OBJECTS, CLOSED, FOR_WEB)}"
    found = explain(here, "--from=shop/web", "--to=shop/db", "--port=5432")
    assert found["allowed"]
    assert [(side["rules"], side["allowed"]) for side in found["sides"]] == [
        ("egress of shop/web", True),
        ("ingress of shop/db", True),
    ]
    assert found["sides"][1]["grounds"] == [
        {"ports": "TCP 5432", "peers": "namespace shop: pods app=web", "policies": ["shop/db"]}
    ]
    found = explain(here, "--from=10.0.0.3", "--to=shop/db", "--port=5432/TCP")
    assert "isolated by shop/closed, shop/db" in found["sides"][1]["why"]
    result = call("explain", here, "--from=192.0.2.77", "--to=shop/web", "--port=icmp")
    assert result.stdout.splitlines()[0] == "192.0.2.77 -> shop/web ICMP: denied"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--from=shop/web", "--to=shop/db", "--port=0"), "write a port"),
        (("--from=shop/web", "--to=shop/db", "--port=80/XYZ"), "write a port"),
        (("--from=shop/nobody", "--to=shop/db", "--port=80"), "no endpoint shop/nobody"),
        (("--from=shop/web", "--to=fd00::1", "--port=80"), "no addresses of one family"),
    ],
)
def test_what_cannot_be_explained(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    result = call("explain", f"--manifests={write(tmp_path / 'all', *OBJECTS)}", *arguments)
    assert result.exit_code == 1
    assert text in result.stderr


def test_what_a_change_would_do(tmp_path: Path) -> None:
    before = f"--manifests={write(tmp_path / 'before', *OBJECTS, CLOSED)}"
    change = write(tmp_path / "change", FOR_WEB)
    result = call("diff", before, f"--change={change}", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == [
        {
            "from": "shop/web",
            "to": "shop/db",
            "opened": "TCP 5432",
            "closed": "",
            "audited": "",
            "isolated_by": ["shop/closed", "shop/db"],
        }
    ]
    result = call("diff", before, f"--to-manifests={tmp_path / 'before'}")
    assert (result.exit_code, result.stdout) == (0, "everybody reaches whom they reached before\n")
    result = call("diff", before)
    assert result.exit_code == 2


AUDITED = annotated(OBJECTS[0], AUDIT)


def test_explain_says_that_audit_lets_it_pass(tmp_path: Path) -> None:
    here = f"--manifests={write(tmp_path / 'all', AUDITED, *OBJECTS[1:], CLOSED)}"
    question = ("explain", here, "--from=pay/job", "--to=shop/db", "--port=5432")
    result = call(*question)
    passes = "denied, but passes: namespace shop is in audit"
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"pay/job -> shop/db TCP 5432: {passes}",
        "  egress of pay/job: allowed: no policy isolates its egress",
        f"  ingress of shop/db: {passes}; isolated by shop/closed, and nothing allows it",
    ]
    found = json.loads(call(*question, "-o", "json").stdout)
    assert (found["allowed"], found["passes"]) == (False, True)
    assert [side["audit"] for side in found["sides"]] == ["", "namespace shop is in audit"]
    # The other end is asked by its own state.
    closed = write(tmp_path / "pay", policy("pay/closed", egress=[], policyTypes=["Egress"]))
    result = call(*question, f"--manifests={closed}")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "pay/job -> shop/db TCP 5432: denied"


def test_what_a_change_would_do_in_audit(tmp_path: Path) -> None:
    states = {
        "open": OBJECTS,
        "closed": [*OBJECTS, CLOSED],
        "open in audit": [AUDITED, *OBJECTS[1:]],
        "closed in audit": [AUDITED, *OBJECTS[1:], CLOSED],
    }
    files = {name: write(tmp_path / name, *objects) for name, objects in states.items()}

    def diff(before: str, after: str) -> dict[str, str]:
        result = call("diff", f"--manifests={files[before]}", f"--to-manifests={files[after]}", "-o", "json")
        rows = [row for row in json.loads(result.stdout) if (row["from"], row["to"]) == ("pay/job", "shop/db")]
        return {kind: row[kind] for row in rows for kind in ("opened", "closed", "audited") if row[kind]}

    assert diff("open in audit", "closed in audit") == {"audited": "everything"}
    assert diff("open", "closed in audit") == {"audited": "everything"}
    assert diff("closed in audit", "closed") == {"closed": "everything"}
    assert diff("closed", "closed in audit") == {"opened": "everything"}
    assert diff("closed in audit", "open in audit") == {}


def test_who_has_no_rules_is_closed_in_audit_as_well() -> None:
    """A pod of an identity of which policy-sync has said nothing yet."""
    values = asyncio.run(records_of([AUDITED, *OBJECTS[1:], CLOSED], KEYS.cluster))
    known = parse(KEYS, values)
    db = known.all(Endpoint)["shop", "db"].identity
    closed = parse(KEYS, {key: value for key, value in values.items() if key != KEYS.subject(db)})
    source, target = (parties([known])[name][0] for name in ("pay/job", "shop/db"))
    assert Reach(known).ports(source, target) == EVERYTHING
    assert not Reach(closed).ports(source, target)


def test_templates_stand_for_their_pods_and_what_is_refused_is_told(tmp_path: Path) -> None:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}
    deployment: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "front", "namespace": "shop"},
        "spec": {"template": template},
    }
    bad = policy("shop/bad", ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}])
    here = f"--manifests={write(tmp_path / 'all', *OBJECTS, deployment, FOR_WEB, bad)}"
    result = call("explain", here, "--from=shop/front", "--to=shop/db", "--port=5432")
    assert result.exit_code == 0, result.output
    assert "refused: NetworkPolicy shop/bad" in result.stderr


@pytest.mark.parametrize(
    "text", ["kind: [", "- 1", "just words", "kind: Pod\nmetadata: {}", "kind: Deployment\nmetadata: {name: x}"]
)
def test_files_that_hold_no_objects(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    result = call("list", f"--manifests={file}")
    assert result.exit_code == 1
    assert str(file) in result.stderr


def test_from_a_snapshot_of_etcd(tmp_path: Path, etcd: str) -> None:
    """That of tests/cli/conftest.py."""
    file = tmp_path / "snapshot.db"
    command = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={etcd}", "snapshot", "save", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    options = ("--cluster=t", f"--from-etcd-snapshot={file}")
    assert explain(*options, "--from=shop/web-1", "--to=shop/db-1", "--port=5432")["allowed"]
    assert not explain(*options, "--from=shop/idle-1", "--to=shop/db-1", "--port=5432")["allowed"]
    file.write_bytes(b"no snapshot")
    result = call("list", *options)
    assert result.exit_code == 1
    assert str(file) in result.stderr


# Against the model


def compiled(case: Case) -> Cluster:
    return parse(KEYS, asyncio.run(records_of(case.objects, KEYS.cluster)))


def party(cluster: Cluster, documented: Documentation, name: str, family: int) -> Party:
    address = pack_address(str(documented.address(name, family)))
    known = [each[0] for each in parties([cluster]).values() if each[0].address == address]
    return known[0] if known else Party(name, address)


def holds(ports: PortSet, packet: Packet) -> bool:
    protocol = NUMBERS.get(packet.protocol, OTHERS)
    return any(first <= packet.port <= last for first, last in ports.of(protocol))


PURE = settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@PURE
@given(cases)
def test_verdicts_and_policies_are_those_of_the_documentation(case: Case) -> None:
    cluster = compiled(case)
    documented = case.documented
    reached = Reach(cluster)
    for packet in case.packets(0, 40):
        if packet.source == packet.target:
            continue
        source, target = (party(cluster, documented, end, packet.family) for end in (packet.source, packet.target))
        assert holds(reached.ports(source, target, audit=False), packet) == documented.allows(packet), packet
        if not case.audited_nodes:
            assert holds(reached.ports(source, target), packet) == documented.passes(packet), packet
        client = find_client(cluster, unpack_address(source.address), None)
        protocol = NUMBERS.get(packet.protocol, 1)
        asked = Sides(cluster, client, source.address, protocol, case.audited_nodes)
        sides = asked.judge(target.address, packet.port, client.node, False)
        assert all(side.allowed for side in sides) == documented.allows(packet), packet
        assert all(side.passes for side in sides) == documented.passes(packet), packet
        for side in sides:
            direction = "Egress" if side.rules.startswith("egress") else "Ingress"
            if not (direction == "Ingress" and client.kind == "node" and client.node == target.node):
                told = {name for ground in side.grounds for name in ground.policies}
                assert told == documented.allowing(direction, packet), packet


@settings(PURE, max_examples=40)
@given(changes())
def test_what_is_otherwise_is_so_by_the_documentation(change: tuple[Case, Case]) -> None:
    before, after = change
    named = {f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in after.pods}
    found = {(each.source, each.target): each for each in reach.changes(compiled(before), compiled(after))}
    # Of nodes in audit records say nothing.
    documents = [replace(case, audited_nodes=frozenset()).documented for case in change]
    for packet in before.packets(0, 60):
        ends = packet.source, packet.target
        if packet.family != 4 or packet.source == packet.target or not set(ends) <= named:
            continue
        was, is_ = (each.passes(packet) for each in documents)
        audited = documents[0].allows(packet) and not documents[1].allows(packet) and is_
        told = found.get(ends)
        assert (told is not None and holds(told.audited, packet)) == audited, packet
        assert (told is not None and holds(told.opened, packet)) == (is_ and not was), packet
        assert (told is not None and holds(told.closed, packet)) == (was and not is_), packet


def test_sets_of_ports() -> None:
    some = of_ranges([(6, (80, 90)), (6, (85, 100)), (6, (101, 102)), (17, (53, 53))])
    assert str(some) == "TCP 80-102, UDP 53"
    assert str(some - of_ranges([(6, (82, 83)), (6, (100, 200))])) == "TCP 80-81, TCP 84-99, UDP 53"
    assert str(some & of_ranges([(6, (1, 80)), (132, (1, 9))])) == "TCP 80"
    assert str(EVERYTHING - some) == "all but TCP 80-102, UDP 53"
    assert str(EVERYTHING) == "everything"
    assert str(some - EVERYTHING) == "nothing"
