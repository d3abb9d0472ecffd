"""How long a change at the API server takes to be in etcd, while many come, and what the sync services take for it.

    python -m tests.scale.steady [--scale 1] [--pods 100] [--policies 10] [--seconds 60]

A pod that is ready no more, or again, is there when a shard of its Service's backends is; a policy that allows another
port, when rules made of it are. A line of JSON for each sort of change, and one for the processes.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from tests.scale.fanout import percentile
from tests.scale.syncstart import KEYS, SERVICES, cluster, marked, process, service_command, usage

from tidegate.records import Rules, decode
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Batch, Put
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

POD, POLICY = KINDS = "pod", "policy"
WARM = 5.0  # seconds of changes before those that count
LATE = 5.0  # seconds that the last ones have

Change = tuple[str, str, str]  # kind, namespace, name


class Steady(NamedTuple):
    took: dict[str, list[float]]  # kind of change → milliseconds from the API server's event to etcd's
    lost: int  # changes that have not come
    cpu: dict[str, float]  # process → cores
    peak: dict[str, float]  # MB


class Delays:
    """Of changes between the API server and etcd, in milliseconds."""

    def __init__(self) -> None:
        self.due: dict[Change, float] = {}  # since when
        self.took: dict[str, list[float]] = {POD: [], POLICY: []}
        self.any_of_each = asyncio.Event()  # there is a delay of each kind
        self._seen: dict[Change, float] = {}  # when etcd was last seen to tell of it

    def clear(self) -> None:
        """Those until now do not count."""
        self.any_of_each.clear()
        for took in self.took.values():
            took.clear()

    def _note(self, kind: str, seconds: float) -> None:
        self.took[kind].append(seconds * 1000)
        if all(self.took.values()):
            self.any_of_each.set()

    async def made(self, cluster: asyncio.subprocess.Process) -> None:
        """Reads what the cluster tells. Of what changes again before it is there, the first change counts."""
        assert cluster.stdout is not None
        async for line in cluster.stdout:
            at, kind, namespace, name = line.decode().split()
            change, since = (kind, namespace, name), float(at)
            # etcd's word may be here before the cluster's.
            if self._seen.get(change, 0) > since:
                self._note(kind, self._seen[change] - since)
            else:
                self.due.setdefault(change, since)

    async def written(self, store: EtcdStore) -> None:
        async with aclosing(store.follow(KEYS.prefix)) as changes:
            async for change in changes:
                now = time.monotonic()
                for operation in change.operations if isinstance(change, Batch) else ():
                    if isinstance(operation, Put):
                        for each in causes(operation):
                            self._seen[each] = now
                            since = self.due.pop(each, None)
                            if since is not None:
                                self._note(each[0], now - since)


def causes(operation: Put) -> list[Change]:
    """What may have made the services write this."""
    parsed = KEYS.parse(operation.key)
    if parsed is not None and parsed.kind is Rules:
        return [(POLICY, *name.split("/")) for name in decode(Rules, operation.value).policies]  # type: ignore[misc]
    if parsed is not None and parsed.kind.kind == "backends":
        return [(POD, parsed.name[0], parsed.name[1])]
    return []


@asynccontextmanager
async def services(kubeconfig: Path, etcd: EtcdProcess, directory: Path) -> AsyncIterator[dict[str, int]]:
    """Both, once all is in etcd: name → pid."""
    store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        pids = {}
        for service in SERVICES:
            command = service_command(service, kubeconfig, etcd.endpoint)
            waiting = asyncio.create_task(marked(store, service))
            running = await stack.enter_async_context(process(command, directory / f"{service}.log"))
            await waiting
            pids[service] = running.pid
        yield pids


async def measure(scale: float, pods: float, policies: float, seconds: float, directory: Path) -> Steady:
    async with AsyncExitStack() as stack:
        etcd = EtcdProcess(directory / "etcd", options=["--quota-backend-bytes=8000000000"])
        stack.callback(etcd.stop)
        await etcd.start()
        kubeconfig, making = await stack.enter_async_context(cluster(scale, directory))
        pids = await stack.enter_async_context(services(kubeconfig, etcd, directory))
        store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
        stack.push_async_callback(store.close)
        delays = Delays()
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(delays.made(making)), group.create_task(delays.written(store))]
            await asyncio.sleep(1)
            assert making.stdin is not None
            making.stdin.write(f"churn {pods} {policies}\n".encode())
            await asyncio.sleep(WARM)
            delays.clear()
            watched = {**pids, "etcd": etcd.pid}
            before = {name: usage(pid) for name, pid in watched.items()}
            began = time.monotonic()
            await asyncio.sleep(seconds)
            await delays.any_of_each.wait()
            passed = time.monotonic() - began
            after = {name: usage(pid) for name, pid in watched.items()}
            counted = {kind: list(took) for kind, took in delays.took.items()}
            making.stdin.write(b"churn 0 0\n")
            await asyncio.sleep(LATE)
            for task in reading:
                task.cancel()
        cpu = {name: (after[name][0] - before[name][0]) / passed for name in watched}
        return Steady(counted, len(delays.due), cpu, {name: after[name][1] for name in watched})


@click.command()
@click.option("--scale", default=1.0, show_default=True)
@click.option("--pods", default=100.0, show_default=True, help="Changes a second.")
@click.option("--policies", default=10.0, show_default=True, help="Changes a second.")
@click.option("--seconds", default=60.0, show_default=True)
def main(scale: float, pods: float, policies: float, seconds: float) -> None:
    """Measures."""
    with tempfile.TemporaryDirectory(prefix="steady-") as directory:
        found = asyncio.run(measure(scale, pods, policies, seconds, Path(directory)))
    for kind, took in found.took.items():
        figures = {f"p{share}": round(percentile(took, share / 100), 2) for share in (50, 99, 100)}
        click.echo(msgspec.json.encode({"change": kind, "scale": scale, "count": len(took), **figures}))
    click.echo(msgspec.json.encode({"lost": found.lost, "cpu": found.cpu, "peak": found.peak}))


if __name__ == "__main__":
    main()
