"""Runs the services of a compose file in the trees of tests.deploy.images: a stand-in for a container engine.

What of a service it heeds: image, command, working directory, environment, the image's user, volumes, capabilities,
read-only root, the network namespace of another service, health checks and what waits for them, replicas. Ports are not
published; `restart` does nothing, as a service that ends is an error here.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.deploy.images import ROOT, ImageError, Tree, overlay
from tests.leftovers import cgroup2

COMPOSE = ROOT / "compose/docker/compose.yaml"
HEEDED = frozenset(
    (
        "image",
        "build",
        "network_mode",
        "init",
        "restart",
        "security_opt",
        "cap_drop",
        "read_only",
        "environment",
        "working_dir",
        "command",
        "volumes",
        "depends_on",
        "healthcheck",
        "deploy",
        "ports",
        "privileged",
        "cgroup",
        "stop_grace_period",
    )
)
PREFIX = "tgt-containers"
# What a container runtime does between the namespaces and the program. Volumes are SOURCE:TARGET[:ro].
MOUNTS = """
set -e
root=$1 privileged=$2 read_only=$3
shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
if [ "$privileged" = 1 ]; then
  mount -t cgroup2 none "$root/sys/fs/cgroup"
else
  mount -o remount,bind,ro "$root/sys"
fi
while [ "$1" != -- ]; do
  target=${1#*:}
  mode=${target#*:}
  target=${target%:ro}
  mkdir -p "$root$target"
  mount --bind "${1%%:*}" "$root$target"
  [ "$mode" != ro ] || mount -o remount,bind,ro "$root$target"
  shift
done
shift
[ "$read_only" = 0 ] || mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


def read(path: Path = COMPOSE) -> dict[str, dict[str, Any]]:
    """Service → its settings; `$$` is a dollar. Raises ImageError for settings that are not known here."""
    services: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["services"]
    for name, service in services.items():
        unknown = service.keys() - HEEDED
        if unknown:
            raise ImageError(f"{path}: {name}: {', '.join(sorted(unknown))}: not known here")
        service["command"] = [word.replace("$$", "$") for word in service["command"]]
    return services


def order(services: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Services, each after those that it waits for."""
    found: list[str] = []
    while len(found) < len(services):
        able = [name for name, one in services.items() if name not in found and waits_for(one) <= set(found)]
        if not able:
            raise ImageError(f"services wait for each other: {services.keys() - set(found)}")
        found += able
    return found


def waits_for(service: Mapping[str, Any]) -> set[str]:
    holder = service.get("network_mode", "").removeprefix("service:")
    return {*service.get("depends_on", ()), *([holder] if holder else [])}


@dataclass
class Container:
    """A running service: `process` is who made its namespaces, `init` its first process."""

    process: subprocess.Popen[bytes]
    init: int
    log: Path
    entry: list[str]  # the command line's beginning, within the namespaces: environment, directory, rights


class Containers:
    """All services of one file, in one network namespace; it and the cgroup are taken away with the stack."""

    def __init__(self, home: Path, trees: Mapping[str, Tree], stack: ExitStack) -> None:
        self._home = home
        self._trees = trees
        self._stack = stack
        self._name = f"{PREFIX}-{os.getpid()}"
        self._cgroup = cgroup2() / self._name
        self.running: dict[str, list[Container]] = {}

    def start_all(self, services: Mapping[str, dict[str, Any]]) -> Iterator[str]:
        """A line for each service that is up, and healthy where it can say so. Raises ImageError."""
        self._stack.enter_context(_namespace(self._name))
        self._stack.enter_context(_killed(self._cgroup))
        for name in order(services):
            service = services[name]
            for replica in range(service.get("deploy", {}).get("replicas", 1)):
                self.running.setdefault(name, []).append(self._start(name, replica, service))
            if "healthcheck" in service:
                self._wait(name, service["healthcheck"])
            yield f"{name}: {len(self.running[name])} running{', healthy' if 'healthcheck' in service else ''}"

    def execute(self, name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec` does."""
        (container, *_) = self.running[name]
        enter = ["nsenter", f"--target={container.init}", "--all", "--root", "--wd"]
        done = subprocess.run(
            [*enter, *container.entry, *command],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._check_all()
        return done

    def _start(self, name: str, replica: int, service: dict[str, Any]) -> Container:
        stage = service["image"].split("/")[1].partition(":")[0]
        tree = self._trees[stage]
        made = self._home / f"{name}-{replica}"
        self._stack.enter_context(overlay(made, tree.layers))
        cgroup = self._cgroup / f"{name}-{replica}"
        cgroup.mkdir()
        privileged, read_only = (str(int(service.get(key, False))) for key in ("privileged", "read_only"))
        entry = _entry(tree, service)
        line = [
            *("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup)),
            *("nsenter", f"--net=/run/netns/{self._name}"),
            *("unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child"),
            *("sh", "-c", MOUNTS, "sh", str(made / "tree"), privileged, read_only),
            *(self._volume(each) for each in service.get("volumes", ())),
            *("--", *entry, *service["command"]),
        ]
        log = self._home / f"{name}-{replica}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        return Container(process, _only_child(process, log), log, entry)

    def _volume(self, text: str) -> str:
        name, _, where = text.partition(":")
        (self._home / "volumes" / name).mkdir(parents=True, exist_ok=True)
        return f"{self._home / 'volumes' / name}:{where}"

    def _wait(self, name: str, check: Mapping[str, Any]) -> None:
        word, *command = check["test"]
        assert word == "CMD", word
        said = ""
        for _ in range(check["retries"]):
            done = self.execute(name, command)
            if done.returncode == 0:
                return
            said = done.stdout
            time.sleep(int(check["interval"].removesuffix("s")))
        raise ImageError(f"{name} is not healthy: {said}\n{self._logs(name)}")

    def _check_all(self) -> None:
        for name, containers in self.running.items():
            for container in containers:
                if container.process.poll() is not None:
                    raise ImageError(f"{name} has ended with {container.process.returncode}\n{self._logs(name)}")

    def _logs(self, name: str) -> str:
        return "\n".join(each.log.read_text(errors="replace")[-2000:] for each in self.running[name])


def _entry(tree: Tree, service: Mapping[str, Any]) -> list[str]:
    """Environment, directory, user and rights of a service, as the beginning of a command line."""
    settings = {"HOME": "/root", **tree.environment, **service.get("environment", {})}
    settings.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    user, group = tree.user.split(":")
    rights = [f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    if service.get("cap_drop") == ["ALL"]:
        rights += ["--bounding-set=-all", "--inh-caps=-all"]
    if service.get("security_opt") == ["no-new-privileges:true"]:
        rights.append("--no-new-privs")
    return [
        *("env", "-i", *(f"{name}={value}" for name, value in settings.items())),
        *("sh", "-c", 'cd "$0" && exec "$@"', service.get("working_dir", tree.directory)),
        *("setpriv", *rights, "--"),
    ]


def _only_child(process: subprocess.Popen[bytes], log: Path) -> int:
    """Of `unshare --fork`: the first process of the new pid namespace."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise ImageError(f"{process.args!r:.300} ended with {process.returncode}: {log.read_text()}")


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def _killed(cgroup: Path) -> Iterator[None]:
    """Ends all that runs in the cgroup afterwards; who has made namespaces may clean up first."""
    cgroup.mkdir()
    try:
        yield
    finally:
        for path in cgroup.glob("*/cgroup.procs"):
            for pid in map(int, path.read_text().split()):
                os.kill(pid, signal.SIGTERM)
        time.sleep(1)
        (cgroup / "cgroup.kill").write_text("1")
        while "populated 1" in (cgroup / "cgroup.events").read_text():
            time.sleep(0.05)
        for directory, _, _ in os.walk(cgroup, topdown=False):
            Path(directory).rmdir()
