"""compose/docker as it stands; that its services run together is shown by `make check-images`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from tests.deploy.containers import COMPOSE, order, read
from tests.deploy.images import DOCKERFILE, ROOT, ImageError, parse
from tests.deploy.test_manifests import COMMANDS

import playground.apiserver.__main__
import playground.layout
from tidegate.cli.root import tidegate

SERVICES = read()
STAGES = {stage.name for stage in parse(DOCKERFILE.read_text())}
OTHERS = {"etcd", "sleep"}


def test_it_is_a_compose_file() -> None:
    check = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, str(COMPOSE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_stages_of_the_dockerfile(name: str) -> None:
    service = SERVICES[name]
    build = service["build"]
    assert build["target"] in STAGES
    assert service["image"].split(":")[0] == f"tidegate/{build['target']}"
    assert (COMPOSE.parent / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DOCKERFILE


def test_ports_are_for_this_machine_alone() -> None:
    ports = {port for service in SERVICES.values() for port in service.get("ports", ())}
    assert ports == {"127.0.0.1:2379:2379", "127.0.0.1:6443:6443"}
    assert {service.get("network_mode") for name, service in SERVICES.items() if name != "network"} == {
        "service:network"
    }


def test_rights_are_given_where_nodes_are_made_and_nowhere_else() -> None:
    for name, service in SERVICES.items():
        assert service.get("privileged", False) == (name == "nodes")
        if name != "nodes":
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def settings(context: click.Context) -> dict[str, Any]:
    """What a command line comes to, down to the last command in it."""
    command = context.command
    if not isinstance(command, click.Group):
        return context.params
    name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    assert sub is not None
    return settings(sub.make_context(name, list(rest), parent=context))


def parsed(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """By the program's own settings. Files that a container has are laid below tmp_path."""
    for variable, value in service.get("environment", {}).items():
        monkeypatch.setenv(variable, value)
    words = []
    for word in service["command"]:
        option, _, path = word.partition("=/run/apiserver/")
        if path:
            (tmp_path / path).touch()
            word = f"{option}={tmp_path / path}"
        words.append(word)
    program, *arguments = words
    if [program, *arguments[:2]] == ["python", "-m", "playground.apiserver"]:
        return playground.apiserver.__main__.main.make_context("apiserver", arguments[2:]).params
    command = COMMANDS.get(program, tidegate if program == "tidegate" else None)
    assert command is not None, f"{program} is not known here"
    return settings(command.make_context(program, arguments))


@pytest.mark.parametrize("name", [name for name, one in SERVICES.items() if one["command"][0] not in {*OTHERS, "sh"}])
def test_commands_are_understood(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = parsed(SERVICES[name], monkeypatch, tmp_path)
    if name == "nodes":
        # The agents' way to etcd is the socket that etcd makes in the volume that both have.
        directory = SERVICES["etcd"]["working_dir"]
        assert found["etcd"] == f"unix://{directory}/localhost:1"
        for service in ("etcd", "nodes"):
            assert f"etcd:{directory}" in SERVICES[service]["volumes"]
        assert found["sync_replicas"] == 0
    elif name == "apiserver":
        assert (found["host"], found["port"]) == ("0.0.0.0", 6443)
    else:
        assert found["etcd"] == ("127.0.0.1:2379",)
        assert found["cluster"] == playground.layout.CLUSTER


def test_health_checks_ask_programs_that_the_images_have() -> None:
    asked = {service["healthcheck"]["test"][1] for service in SERVICES.values() if "healthcheck" in service}
    assert asked == {"etcdctl", "kubectl", "grep"}


def test_services_start_after_those_that_they_wait_for() -> None:
    found = order(SERVICES)
    assert found[0] == "network"
    assert found.index("nodes") > max(found.index("etcd"), found.index("apiserver"))
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other]
    with pytest.raises(ImageError, match="each other"):
        order({"a": {"depends_on": {"b": {}}}, "b": {"network_mode": "service:a"}})


def test_settings_that_are_not_tried_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services: {a: {image: tidegate/sync, command: [x], pid: host}}")
    with pytest.raises(ImageError, match="a: pid"):
        read(file)


def test_both_services_have_another_one_that_waits() -> None:
    assert {name for name, one in SERVICES.items() if one.get("deploy") == {"replicas": 2}} == {
        "endpoint-sync",
        "policy-sync",
    }
