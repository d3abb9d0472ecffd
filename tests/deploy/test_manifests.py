"""The manifests as kustomize builds them: what they name is there, and a real API server takes them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import endpoint_sync.__main__
import endpoint_sync.sync
import node_agent.__main__
import node_agent.visitor
import policy_sync.__main__
import policy_sync.sync
from playground.supervisor import CAPABILITIES
from tidegate.kube.watch import Resource

SOURCE = Path(__file__).parents[2] / "compose/kubernetes"
OVERLAYS = ("existing-etcd", "own-etcd", "own-etcd-grpc-proxy")
COMMANDS: dict[str, click.Command] = {
    "tidegate-endpoint-sync": endpoint_sync.__main__.main,
    "tidegate-policy-sync": policy_sync.__main__.main,
    "tidegate-node-agent": node_agent.__main__.main,
    "tidegate-node-visitor": node_agent.visitor.main,
}
OTHERS = {"etcd"}
Manifest = dict[str, Any]


def build(tree: Path, overlay: str) -> str:
    return subprocess.run(
        ["kubectl", "kustomize", str(tree / "overlays" / overlay)], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests, with certificates made as docs/deploy.md says."""
    tree = tmp_path_factory.mktemp("manifests") / "kubernetes"
    shutil.copytree(SOURCE, tree)
    for overlay in OVERLAYS[:2]:
        where = str(tree / "overlays" / overlay / "certificates")
        command = [str(tree / "certificates.sh"), where, "192.0.2.11", "192.0.2.12"]
        subprocess.run(command, check=True, capture_output=True)
    beside = tree / "overlays" / OVERLAYS[2] / "certificates"
    beside.mkdir(mode=0o700)
    for name in ("ca.crt", "proxy.crt", "proxy.key", "jwt.key"):
        shutil.copy(tree / "overlays/own-etcd/certificates" / name, beside)
    (beside / "node-agent.password").write_text("correct-horse\n")
    return tree


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest, tree: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(build(tree, request.param)))


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod spec of each workload."""
    for item in manifests:
        if item["kind"] in ("Deployment", "DaemonSet"):
            yield item["metadata"]["name"], item["spec"]["template"]["spec"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, spec in pods(manifests):
        for container in spec["containers"]:
            yield name, spec, container


def config(manifests: list[Manifest], container: dict[str, Any]) -> dict[str, str]:
    """The variables that a container gets out of ConfigMaps."""
    maps = {item["metadata"]["name"]: item["data"] for item in manifests if item["kind"] == "ConfigMap"}
    return {k: v for source in container.get("envFrom", ()) for k, v in maps[source["configMapRef"]["name"]].items()}


def variables(command: click.Command) -> set[str]:
    found = set()
    for option in command.params:
        named = option.envvar
        found |= {named} if isinstance(named, str) else set(named or ())
        found.add(f"TIDEGATE_{(option.name or '').upper()}")
    return found


def test_every_variable_is_an_option_of_the_command(manifests: list[Manifest]) -> None:
    known = {name: variables(command) for name, command in COMMANDS.items()}
    for _, _, container in containers(manifests):
        [program, *_] = container["command"]
        if program in OTHERS:
            continue
        for variable in container["env"]:
            if variable["name"].startswith("TIDEGATE_"):
                assert variable["name"] in known[program], program
        for name in config(manifests, container):  # shared: some service has it
            assert not name.startswith("TIDEGATE_") or any(name in names for names in known.values()), name


def test_every_command_takes_what_its_variables_say(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    for _, _, container in containers(manifests):
        [program, *_] = container["command"]
        if program in OTHERS:
            continue
        said = config(manifests, container) | {v["name"]: v["value"] for v in container["env"] if "value" in v}
        of_maps = [v["name"] for v in container["env"] if "configMapKeyRef" in v.get("valueFrom", {})]
        with monkeypatch.context() as patch:
            for name, value in said.items():
                patch.setenv(name, value)
            taken = COMMANDS[program].make_context(program, []).params
        if "etcd" in taken:
            assert "TIDEGATE_ETCD" in of_maps or len(taken["etcd"]) > 1
            by_certificate = str(taken["etcd_key"]) == "/etc/tidegate/etcd/tls.key"
            by_password = str(taken["etcd_password_file"]) == "/etc/tidegate/etcd/password"
            assert by_certificate != by_password


def test_secrets_and_configurations_that_are_named_are_there(manifests: list[Manifest]) -> None:
    secrets = {item["metadata"]["name"]: set(item["data"]) for item in manifests if item["kind"] == "Secret"}
    maps = {item["metadata"]["name"] for item in manifests if item["kind"] == "ConfigMap"}
    for name, spec in pods(manifests):
        for volume in spec["volumes"]:
            if "secret" in volume:
                files = secrets[volume["secret"]["secretName"]]
                assert files - {"jwt.key"} in ({"ca.crt", "tls.crt", "tls.key"}, {"ca.crt", "password"}), name
    for _, _, container in containers(manifests):
        assert {source["configMapRef"]["name"] for source in container.get("envFrom", ())} <= maps
    for _, spec in pods(manifests):
        mounts = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in spec["volumes"]}


def test_files_that_variables_name_lie_in_a_mount(manifests: list[Manifest]) -> None:
    for name, _, container in containers(manifests):
        mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        for variable in container["env"]:
            value = variable.get("value", "")
            if value.startswith("/"):
                assert any(Path(value).is_relative_to(mount) for mount in mounts), (name, value)


def test_probes_ask_where_the_service_listens_and_nobody_listens_beyond_loopback(manifests: list[Manifest]) -> None:
    taken = set()
    for name, spec, container in containers(manifests):
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert spec["hostNetwork"]
        asked = [container[probe] for probe in ("livenessProbe", "readinessProbe") if probe in container]
        probes = [probe["httpGet"] for probe in asked if "httpGet" in probe]
        for probe in probes:
            assert probe["host"] == "127.0.0.1"
            if "TIDEGATE_LISTEN" in environment:
                assert environment["TIDEGATE_LISTEN"] == f"127.0.0.1:{probe['port']}"
        taken |= {(name, probe["port"]) for probe in probes}
    assert len({port for _, port in taken}) == len(taken)


def test_all_images_have_the_tag_that_they_are_built_with(manifests: list[Manifest]) -> None:
    assert {container["image"].partition(":")[2] for _, _, container in containers(manifests)} == {"0.1.0"}


def test_nothing_is_privileged_and_the_sync_services_hold_nothing(manifests: list[Manifest]) -> None:
    for name, spec, container in containers(manifests):
        context = container["securityContext"]
        assert not context.get("privileged")
        assert not context["allowPrivilegeEscalation"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"]["drop"] == ["ALL"]
        added = context["capabilities"].get("add", [])
        # Those of the playground have no more either, in all tests of clusters.
        assert tuple(right.lower() for right in added) == CAPABILITIES.get(container["name"], ())
        if name.endswith("-sync"):
            assert spec["securityContext"]["runAsNonRoot"]


def test_the_visitor_alone_sees_the_machines_processes(manifests: list[Manifest]) -> None:
    assert [name for name, spec in pods(manifests) if spec.get("hostPID")] == ["node-visitor"]
    found = (
        (container["name"], variable) for _, _, container in containers(manifests) for variable in container["env"]
    )
    where = {name: variable["value"] for name, variable in found if variable["name"] == "TIDEGATE_VISITOR"}
    assert where == {"node-agent": "/run/tidegate/visitor.sock", "visitor": "/run/tidegate/visitor.sock"}


def test_agents_have_no_account_at_the_api_server(manifests: list[Manifest]) -> None:
    for name, spec in pods(manifests):
        if name.startswith("node-"):
            assert not spec["automountServiceAccountToken"]
    bound = {s["name"] for item in manifests if item["kind"].endswith("RoleBinding") for s in item["subjects"]}
    assert bound == {"endpoint-sync", "policy-sync"}


def test_only_lists_watches_and_events_are_asked_for(manifests: list[Manifest]) -> None:
    for item in manifests:
        if item["kind"] in ("ClusterRole", "Role"):
            for rule in item["rules"]:
                wanted = {"create", "get", "patch"} if rule["resources"] == ["events"] else {"list", "watch"}
                assert set(rule["verbs"]) == wanted
                assert "*" not in [*rule["resources"], *rule["apiGroups"]]
                assert "secrets" not in rule["resources"]


def test_each_service_may_list_what_it_watches_and_nothing_else(manifests: list[Manifest]) -> None:
    for service, module in (("endpoint-sync", endpoint_sync.sync), ("policy-sync", policy_sync.sync)):
        paths = [value.path.split("/") for value in vars(module).values() if isinstance(value, Resource)]
        watched = {("" if path[1] == "api" else path[2], path[-1]) for path in paths}
        rules = [
            rule
            for item in manifests
            if item["kind"] in ("ClusterRole", "Role") and item["metadata"]["name"] == f"tidegate-{service}"
            for rule in item["rules"]
            if "list" in rule["verbs"]
        ]
        assert {(group, kind) for rule in rules for group in rule["apiGroups"] for kind in rule["resources"]} == watched
