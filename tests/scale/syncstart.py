"""How long the sync services take to bring etcd to what the API server has, and what they take of memory and CPU.

    python -m tests.scale.syncstart [--scale 0.1] [SERVICE …]

Each starts twice: with nothing of its own in etcd, and with all of it there. A line of JSON each.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import NamedTuple

import click
import msgspec

from tidegate.records import Keyspace
from tidegate.runtime.settings import CommonSettings
from tidegate.store import value_of
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

KEYS = Keyspace("scale")
EMPTY, COMPLETE = STATES = "empty", "complete"  # of etcd, when a service starts
SERVICES = {"endpoint-sync": "endpoint_sync", "policy-sync": "policy_sync"}
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 900.0  # seconds


class ProcessError(Exception):
    """A process ended that should not; the text is the end of what it said."""


class Start(NamedTuple):
    """Of one process, from its start until all is in etcd and marked."""

    service: str
    scale: float
    state: str  # of etcd before, as far as it is this service's
    seconds: float
    cpu: float  # seconds
    peak: float  # MB RSS
    writes: int  # revisions of etcd, but for those of leading and marking
    keys: int  # that etcd has afterwards


@asynccontextmanager
async def process(command: Sequence[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that takes orders; what it says on standard error is in the log."""
    with log.open("ab") as output:
        started = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=output)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


@asynccontextmanager
async def cluster(
    scale: float, directory: Path, *options: str
) -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    """Its kubeconfig, and the process: what it takes as options and orders says tests.scale.cluster."""
    kubeconfig = directory / "kubeconfig"
    command = [sys.executable, "-m", "tests.scale.cluster", "--scale", str(scale), "--kubeconfig", str(kubeconfig)]
    command += options
    async with process(command, directory / "cluster.log") as running:
        while not kubeconfig.exists():
            if running.returncode is not None:
                raise ProcessError((directory / "cluster.log").read_text()[-2000:])
            await asyncio.sleep(0.05)
        yield kubeconfig, running


def service_command(service: str, kubeconfig: Path, etcd: str) -> list[str]:
    options = ["--cluster", KEYS.cluster, "--etcd", etcd, "--kubeconfig", str(kubeconfig), "--listen", "127.0.0.1:0"]
    return [sys.executable, "-m", SERVICES[service], *options]


async def marked(store: EtcdStore, service: str) -> None:
    """Returns when the service marks what it has written."""
    seen: bytes | None = None
    key, first = KEYS.synced(service), True
    async with asyncio.timeout(PATIENCE), aclosing(store.follow(key)) as changes:
        async for change in changes:
            value = value_of(change, key)
            if first:
                seen, first = value, False
            elif value not in (seen, None):
                return


def usage(pid: int) -> tuple[float, float]:
    """Seconds of CPU, and MB of memory at most."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return (int(fields[11]) + int(fields[12])) / TICKS, peak * 1024 / 1e6


async def start(service: str, scale: float, state: str, kubeconfig: Path, etcd: EtcdProcess, log: Path) -> Start:
    store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
    try:
        before = await store.snapshot(KEYS.root)
        waiting = asyncio.create_task(marked(store, service))
        await asyncio.sleep(0.5)  # it follows
        began = time.monotonic()
        async with process(service_command(service, kubeconfig, etcd.endpoint), log) as running:
            done, _ = await asyncio.wait(
                [waiting, asyncio.create_task(running.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            seconds = time.monotonic() - began
            if waiting not in done:
                raise ProcessError(f"{service} ended: {log.read_text()[-2000:]}")
            cpu, peak = usage(running.pid)
            after = await store.snapshot(KEYS.root)
        changed = [key for key, value in after.values.items() if before.values.get(key) != value]
        own = (KEYS.leader(service), KEYS.synced(service), KEYS.last_write(service), KEYS.identities_synced())
        writes = sum(key not in own for key in changed) + len(before.values.keys() - after.values.keys())
        return Start(service, scale, state, round(seconds, 2), round(cpu, 2), round(peak, 1), writes, len(after.values))
    finally:
        await store.close()


async def measure(scale: float, services: Sequence[str], directory: Path) -> AsyncIterator[Start]:
    etcd = EtcdProcess(directory / "etcd", options=["--quota-backend-bytes=8000000000"])
    async with AsyncExitStack() as stack:
        stack.callback(etcd.stop)
        await etcd.start()
        kubeconfig, _ = await stack.enter_async_context(cluster(scale, directory))
        for service in services:
            for state in STATES:
                yield await start(service, scale, state, kubeconfig, etcd, directory / f"{service}.log")


async def _print(scale: float, services: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="syncstart-") as directory:
        async with aclosing(measure(scale, services, Path(directory))) as found:  # type: ignore[type-var]
            async for one in found:
                click.echo(msgspec.json.encode(one._asdict()).decode())


@click.command()
@click.option("--scale", default=0.05, show_default=True)
@click.argument("services", nargs=-1, type=click.Choice(list(SERVICES)))
def main(scale: float, services: tuple[str, ...]) -> None:
    """Measures."""
    asyncio.run(_print(scale, services or list(SERVICES)))


if __name__ == "__main__":
    main()
