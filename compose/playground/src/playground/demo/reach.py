"""Who reaches whom: measured by connecting, and compared with what is expected."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from playground.demo import prober
from playground.layout import Layout
from playground.shell import inside, run

PATIENCE = 1.0  # seconds until a silent target counts as out of reach


@dataclass(frozen=True, slots=True)
class Target:
    """A Service port; `address` is its ClusterIP."""

    service: str  # namespace/name
    port: int
    protocol: str
    address: str = ""

    @property
    def words(self) -> str:
        return f"{self.service} {self.port}/{self.protocol}"

    @property
    def probe(self) -> str:
        return f"{self.protocol}:{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Expected:
    clients: dict[str, str]  # application → namespace
    allowed: dict[str, frozenset[str]]  # words of a target → applications

    def reaches(self, application: str, target: Target) -> bool:
        return application in self.allowed[target.words]


# (application, words of the target) → the line that came back, None: nothing did
Matrix = dict[tuple[str, str], str | None]


def read_expected(path: Path) -> Expected:
    source: dict[str, Any] = yaml.safe_load(path.read_text())
    clients = {name: namespace for namespace, names in source["clients"].items() for name in names}
    return Expected(clients, {target: frozenset(names) for target, names in source["allowed"].items()})


def targets(expected: Expected, services: dict[str, str]) -> list[Target]:
    """`services`: namespace/name → ClusterIP."""
    found = []
    for words in expected.allowed:
        service, _, rest = words.partition(" ")
        port, _, protocol = rest.partition("/")
        found.append(Target(service, int(port), protocol, services[service]))
    return found


def own(application: str, namespace: str, target: Target) -> bool:
    return target.service == f"{namespace}/{application}"


def differences(matrix: Matrix, expected: Expected, wanted: list[Target], policies: bool) -> list[str]:
    """Where what was measured is not what is expected, in words. Pure."""
    found = []
    for application, namespace in expected.clients.items():
        for target in wanted:
            if own(application, namespace, target):
                continue
            reached = matrix[application, target.words] is not None
            due = expected.reaches(application, target) if policies else True
            if reached != due:
                text = "reaches" if reached else "does not reach"
                found.append(f"{namespace}/{application} {text} {target.words}")
    return found


async def probe(layout: Layout, node: str, namespace: str, pod: str, probes: list[str]) -> dict[str, str | None]:
    """Tries all of `probes` from inside the pod."""
    command = [sys.executable, "-S", "-E", "-I", str(Path(prober.__file__)), str(PATIENCE), *probes]
    cgroup = layout.pod_cgroup(node, namespace, pod)
    answer = await run(*inside(layout.pod_namespace(namespace, pod), cgroup, command))
    found: dict[str, str | None] = json.loads(answer)
    return found


async def measure(layout: Layout, expected: Expected, wanted: list[Target], nodes: dict[str, str]) -> Matrix:
    """From the first pod of each application to all targets. `nodes`: namespace/pod → node."""
    matrix: Matrix = {}

    async def from_one(application: str, namespace: str) -> None:
        pod = f"{application}-1"
        others = [target for target in wanted if not own(application, namespace, target)]
        node = nodes[f"{namespace}/{pod}"]
        answers = await probe(layout, node, namespace, pod, [target.probe for target in others])
        matrix.update({(application, target.words): answers[target.probe] for target in others})

    async with asyncio.TaskGroup() as group:
        for application, namespace in expected.clients.items():
            group.create_task(from_one(application, namespace))
    return matrix
