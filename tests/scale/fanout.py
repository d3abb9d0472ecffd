"""What it costs etcd, alone or behind its grpc-proxy, to tell many nodes of changes, and to have them back.

    python -m tests.scale.fanout [--watches 1000] [--rate 20] [--seconds 20] [--proxies 2]

Watches are those of tests.scale.watcher. A transaction is as a sync service makes it: shards of 16 backends (so many as
`--together` says), and the key that chains the writer's transactions. Then the process that the watches are connected
to is killed and started again, while changes go on. A line of JSON.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count as numbers
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from tests.scale.population import Population
from tests.scale.records import records
from tests.scale.syncstart import KEYS, process, usage
from tests.scale.watcher import Report

from tidegate.records import BackendShard, LastWrite, encode
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Put, StoreError
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess, free_port
from tidegate.store.protocol import Guard

PROCESSES = 2  # of watchers
PATIENCE = 120.0  # seconds


class Fanout(NamedTuple):
    watches: int
    proxies: int
    rate: float  # transactions a second, as they came
    together: int  # changes in each
    events: int  # told, of all watches
    bytes: int  # received by all watches while changes went on
    etcd_cpu: float  # seconds, while changes went on
    proxy_cpu: float
    seconds: float
    told_p50: float  # milliseconds from the beginning of the transaction until the first watch of a process knew
    told_p99: float
    etcd_memory: float  # MB
    back_p50: float  # seconds from the cut until a watch stood again
    back_last: float
    answer_worst: float  # milliseconds of a transaction that began after the first of them was back
    missed: int  # events that a watch was not told, of all changes


class Changes:
    """Transactions one after the other, at a stated rate; of each revision, when it began."""

    def __init__(self, store: EtcdStore, together: int) -> None:
        self._store = store
        self.together = together
        shard = next(
            value for key, value in records(Population(0.01), KEYS) if key.startswith(f"{KEYS.prefix}backends/")
        )
        self._value = shard
        self._guard = KEYS.last_write("endpoint-sync")
        self._revision = 0
        self._sequence = numbers(1)
        self.began: dict[int, float] = {}
        self.took: list[tuple[float, float]] = []  # when it began, and milliseconds

    async def one(self) -> int:
        number = next(self._sequence)
        # Bytes of the same length that differ: what the services write differs as well.
        record = msgspec.msgpack.decode(self._value, type=BackendShard)
        value = encode(msgspec.structs.replace(record, backends=record.backends[number % 2 :]))
        guard = Guard(self._guard, self._revision, encode(LastWrite(sequence=number, token=number.to_bytes(8, "big"))))
        began = time.monotonic()
        operations = [Put(KEYS.backends("ns-000", f"app-{place}", 0), value) for place in range(self.together)]
        while True:
            try:
                self._revision = await self._store.transact(operations, guard=guard)
                break
            except StoreError:
                await asyncio.sleep(0.02)
        self.began[self._revision] = began
        self.took.append((began, (time.monotonic() - began) * 1000))
        return self._revision

    async def at(self, rate: float, seconds: float, over: asyncio.Event | None = None) -> float:
        """For so long, and until it is `over`; the rate that came of it."""
        began = time.monotonic()
        due = 0
        while (passed := time.monotonic() - began) < seconds or (over is not None and not over.is_set()):
            if due < passed * rate:
                due += 1
                await self.one()
            else:
                await asyncio.sleep(due / rate - passed)
        return due / (time.monotonic() - began)


class Watchers:
    def __init__(self, running: Sequence[asyncio.subprocess.Process]) -> None:
        self._running = running

    async def report(self) -> list[Report]:
        found = []
        for each in self._running:
            assert each.stdin is not None
            assert each.stdout is not None
            each.stdin.write(b"\n")
            line = await each.stdout.readline()
            found.append(msgspec.json.decode(line, type=Report))
        return found

    async def standing(self, count: int) -> list[Report]:
        async with asyncio.timeout(PATIENCE):
            while True:
                reports = await self.report()
                if sum(report.standing for report in reports) == count:
                    return reports
                await asyncio.sleep(0.2)

    async def come_to(self, revision: int) -> list[Report]:
        """What they told since the last report is in the last one returned."""
        seen: list[tuple[int, float]] = []
        async with asyncio.timeout(PATIENCE):
            while True:
                reports = await self.report()
                seen += [each for report in reports for each in report.seen]
                if min(report.lowest for report in reports) >= revision:
                    reports[0].seen = seen
                    return reports
                await asyncio.sleep(0.05)


@asynccontextmanager
async def watchers(endpoints: Sequence[str], count: int, position: int, directory: Path) -> AsyncIterator[Watchers]:
    async with AsyncExitStack() as stack:
        running = []
        for number in range(PROCESSES):
            share = count // PROCESSES + (number < count % PROCESSES)
            command = [sys.executable, "-m", "tests.scale.watcher", "--count", str(share), "--prefix", KEYS.prefix]
            command += ["--position", str(position), *(word for each in endpoints for word in ("--endpoint", each))]
            running.append(await stack.enter_async_context(process(command, directory / f"watcher-{number}.log")))
        yield Watchers(running)


class Proxy:
    """etcd's grpc-proxy before one etcd."""

    def __init__(self, etcd: EtcdProcess, directory: Path) -> None:
        self.endpoint = f"127.0.0.1:{free_port()}"
        self._directory = directory
        self._command = ["etcd", "grpc-proxy", "start", "--endpoints", etcd.endpoint, "--listen-addr", self.endpoint]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        with (self._directory / "proxy.log").open("ab") as log:
            command = [*self._command, "--data-dir", str(self._directory / f"proxy-{self.endpoint}")]
            self._process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        while True:
            try:
                _, writer = await asyncio.open_connection(*self.endpoint.split(":"))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


async def measure(count: int, rate: float, together: int, seconds: float, proxies: int, directory: Path) -> Fanout:
    async with AsyncExitStack() as stack:
        etcd = EtcdProcess(directory / "etcd")
        stack.callback(etcd.stop)
        await etcd.start()
        store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
        stack.push_async_callback(store.close)
        front = [Proxy(etcd, directory) for _ in range(proxies)]
        for proxy in front:
            stack.push_async_callback(proxy.stop)
            await proxy.start()
        changes = Changes(store, together)
        first = await changes.one()
        endpoints = [proxy.endpoint for proxy in front] or [etcd.endpoint]
        watching = await stack.enter_async_context(watchers(endpoints, count, first, directory))
        before = await watching.standing(count)
        cpu = usage(etcd.pid)[0], sum(usage(proxy.pid)[0] for proxy in front)
        began = time.monotonic()
        came = await changes.at(rate, seconds)
        after = await watching.come_to(max(changes.began))
        passed = time.monotonic() - began
        spent, memory = usage(etcd.pid)
        proxy_spent = sum(usage(proxy.pid)[0] for proxy in front)
        told = [(at - changes.began[revision]) * 1000 for revision, at in after[0].seen if revision in changes.began]

        changes.took.clear()
        cut = time.monotonic()
        back_again = asyncio.Event()
        going_on = asyncio.create_task(changes.at(rate, seconds, back_again))
        if front:
            for proxy in front:
                await proxy.stop()
            for proxy in front:
                await proxy.start()
        else:
            await etcd.restart()
        await watching.standing(count)
        back_again.set()
        await going_on
        last = await watching.come_to(await changes.one())
        back = [at - cut for report in last for at in report.back]
        # The chain's key is one event more; the first transaction came before the watches did.
        wanted = (together + 1) * (len(changes.began) - 1) * count
        return Fanout(
            watches=count,
            proxies=proxies,
            rate=round(came, 1),
            together=together,
            events=sum(each.events for each in after) - sum(each.events for each in before),
            bytes=sum(each.bytes for each in after) - sum(each.bytes for each in before),
            etcd_cpu=round(spent - cpu[0], 2),
            proxy_cpu=round(proxy_spent - cpu[1], 2),
            seconds=round(passed, 2),
            told_p50=round(percentile(told, 0.5), 2),
            told_p99=round(percentile(told, 0.99), 2),
            etcd_memory=round(memory, 1),
            back_p50=round(percentile(back, 0.5), 2),
            back_last=round(max(back), 2),
            answer_worst=round(max(took for at, took in changes.took if at - cut > min(back)), 1),
            missed=wanted - sum(each.events for each in last),
        )


@click.command()
@click.option("--watches", default=1000, show_default=True)
@click.option("--rate", default=20.0, show_default=True, help="Transactions a second.")
@click.option("--together", default=1, show_default=True, help="Changes in a transaction.")
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--proxies", default=0, show_default=True, help="0: etcd alone.")
def main(watches: int, rate: float, together: int, seconds: float, proxies: int) -> None:
    """Measures."""
    with tempfile.TemporaryDirectory(prefix="fanout-") as directory:
        found = asyncio.run(measure(watches, rate, together, seconds, proxies, Path(directory)))
    click.echo(msgspec.json.encode(found._asdict()).decode())


if __name__ == "__main__":
    main()
