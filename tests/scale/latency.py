"""How fast a change at the API server becomes a verdict: measured on a running playground with the shop.

    python tests/scale/latency.py [CHANGES]

Prints milliseconds from the API server's answer (or the pod's Ready status) to the first connection that behaves
otherwise; connections are attempted every millisecond, so figures are upper bounds by that much.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from playground.endpointslices import is_ready
from playground.layout import Layout
from playground.shell import inside, run
from tidegate.kube.client import KubeClient
from tidegate.kube.watch import PODS, Changed, list_watch

PROBER = Path(__file__).with_name("prober.py")
SETTLED = 25  # attempts in a row that must agree before the next change
POLICIES = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def show(what: str, values: list[float]) -> None:
    figures = {"n": len(values), **{f"p{p}": round(percentile(values, p / 100), 1) for p in (50, 90, 99)}}
    sys.stdout.write(json.dumps({"what": what, **figures, "max": round(max(values), 1), "unit": "ms"}) + "\n")
    sys.stdout.flush()


class Prober:
    """A prober in a pod, and what it has seen: (start in ns, answered)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._seen: list[tuple[int, bool]] = []

    @classmethod
    async def start(cls, layout: Layout, pod: str, address: str, port: int) -> "Prober":
        namespace, name = pod.split("/")
        (cgroup,) = layout.cgroup.glob(f"*/{namespace}_{name}")
        command = [sys.executable, "-S", "-E", str(PROBER), address, str(port), "1", "150"]
        line = inside(layout.pod_namespace(namespace, name), cgroup, command)
        process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
        return cls(process)

    async def read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            start, answered = line.split()
            self._seen.append((int(start), answered == b"1"))

    async def flip(self, after: int, answered: bool) -> float:
        """Milliseconds from `after` (ns) to the first attempt from which on all are `answered`, or not."""
        while True:
            later = [attempt for attempt in self._seen[-4000:] if attempt[0] >= after]
            if len(later) >= SETTLED and all(ok is answered for _, ok in later[-SETTLED:]):
                first = next(i for i in range(len(later)) if all(ok is answered for _, ok in later[i:]))
                return (later[first][0] - after) / 1e6
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        self._process.terminate()


def without_history(item: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: item["metadata"][key] for key in ("name", "namespace")}
    return {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata, "spec": item["spec"]}


async def policies(api: KubeClient, layout: Layout, changes: int) -> None:
    """cart-1 to the catalog: denied by default-deny in shop, allowed while a policy for it exists."""
    service = await api.get("/api/v1/namespaces/shop/services/catalog")
    allow = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "latency", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "catalog"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "cart"}}}]}],
        },
    }
    prober = await Prober.start(layout, "shop/cart-1", service["spec"]["clusterIP"], 8080)
    opened: list[float] = []
    closed: list[float] = []
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(prober.read())
        await prober.flip(0, False)
        for index in range(changes):
            if index % 2:
                await api.delete(f"{POLICIES}/latency")
                closed.append(await prober.flip(time.monotonic_ns(), False))
            else:
                await api.create(POLICIES, without_history(allow))
                opened.append(await prober.flip(time.monotonic_ns(), True))
        if changes % 2:
            await api.delete(f"{POLICIES}/latency")
        prober.stop()
        reading.cancel()
    show("policy created, until allowed", opened)
    show("policy deleted, until denied", closed)
    show("policy changed, until in force", opened + closed)


async def pods(api: KubeClient, layout: Layout, count: int) -> None:
    """A new pod behind a new Service: from its Ready status, as a watcher gets it, to the first answer."""
    found = []
    for index in range(count):
        name = f"latency-{index}"
        labels = {"app": name}
        ports = [{"name": "p", "containerPort": 80}]
        await api.create(
            "/api/v1/namespaces/ops/services",
            {"metadata": {"name": name}, "spec": {"selector": labels, "ports": [{"port": 80}]}},
        )
        address = (await api.get(f"/api/v1/namespaces/ops/services/{name}"))["spec"]["clusterIP"]
        prober = await Prober.start(layout, "ops/metrics-1", address, 80)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(prober.read())
            ready = group.create_task(_ready(api, ("ops", name)))
            await asyncio.sleep(0.2)
            await api.create(
                "/api/v1/namespaces/ops/pods",
                {
                    "metadata": {"name": name, "labels": labels},
                    "spec": {"containers": [{"name": "c", "image": "x", "ports": ports}]},
                },
            )
            found.append(await prober.flip(await ready, True))
            prober.stop()
            reading.cancel()
        await api.delete(f"/api/v1/namespaces/ops/pods/{name}", grace=0)
        await api.delete(f"/api/v1/namespaces/ops/services/{name}")
    show("pod ready, until reached through its Service", found)


async def _ready(api: KubeClient, key: tuple[str, str]) -> int:
    async for event in list_watch(api, PODS):
        if isinstance(event, Changed) and event.item.key == key and is_ready(event.item):
            return time.monotonic_ns()
    raise RuntimeError("the watch ended")


async def main() -> None:
    changes = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    layout = Layout()
    await run("kubectl", f"--kubeconfig={layout.kubeconfig}", "apply", "-f", "compose/playground/shop/policies.yaml")
    async with await KubeClient.load(layout.kubeconfig) as api:
        await policies(api, layout, changes)
        await pods(api, layout, max(10, changes // 10))


if __name__ == "__main__":
    asyncio.run(main())
