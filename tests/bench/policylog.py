"""What the policy log costs the agent: a pod's packets at a rate, with logging on and off in turn.

A real agent, etcd and programs. Packets are put on the pod's device as they are (flood.c), so they come to `from_pod`
as a pod's do. The agent has a CPU, the sender another. After each round with logging on, the log must have told of
every packet: written, counted, or as lost.
"""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM

import aiohttp
from tests.bench.load import FLOOD, Load, LoadError, compile_load, quiet_cpu
from tests.bench.load import Place as Sender
from tests.bench.model import Limit, Measurement, Result, Size, Tick
from tests.bpf.topology import PREFIX, Cluster, build
from tests.leftovers import BPF, cgroup2, sweep
from tests.scale.agents import Place, cpu, started

from node_agent.loader import CACHE
from tidegate.records import (
    Direction,
    Endpoint,
    Keyspace,
    Logging,
    Masquerade,
    Node,
    PeerShard,
    Protocol,
    Rule,
    Rules,
    Subject,
    Synced,
    encode,
)
from tidegate.records.addresses import pack_address
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Put
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

CLUSTER = "log"
KEYS = Keyspace(CLUSTER)
CLIENT, SERVER, POLICY, CLIENTS = 1001, 1002, 5, 300
ALLOWED = range(2048, 4096)  # a block of ports; the others are denied
DENIED = 1999
SOURCE_PORTS = 60_000  # from 2000 on
MORE = 1.01  # than the goal's rate is asked for: the last batch may not go before the end
PATIENCE = 30.0  # seconds until the log must have told
AT_MOST = 0.05  # of a CPU


@dataclass(frozen=True, slots=True)
class Stand:
    """An agent's pods, its log, and what sends."""

    cluster: Cluster
    load: Load
    etcd: str
    state: Path
    pid: int

    @property
    def log(self) -> Path:
        return self.state / "policy.log"


@contextmanager
def stand(_: Size, cache: Path = CACHE) -> Iterator[Stand]:
    """Raises LoadError, StartError, StoreError."""
    with asyncio.Runner() as runner, ExitStack() as stack:
        entering = _stand(cache)
        built = runner.run(entering.__aenter__())
        stack.callback(lambda: runner.run(entering.__aexit__(None, None, None)))
        yield built


@asynccontextmanager
async def _stand(cache: Path) -> AsyncIterator[Stand]:
    sweep("tgt-bpf")
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgt-bench-")))
        load = Load(compile_load(directory, FLOOD), quiet_cpu())
        etcd = EtcdProcess(directory / "etcd")
        stack.callback(etcd.kill)
        await etcd.start()
        cluster = build("log-")
        stack.callback(cluster.remove)
        store = EtcdStore(CommonSettings(etcd=(etcd.endpoint,)))
        stack.push_async_callback(store.close)
        await store.transact([Put(key, value) for key, value in _records(cluster).items()])
        bpffs, cgroup = BPF / f"{PREFIX}-log", cgroup2() / f"{PREFIX}-log"
        for path in (bpffs, cgroup):
            path.mkdir()
        stack.callback(cgroup.rmdir)
        stack.callback(shutil.rmtree, bpffs, ignore_errors=True)
        others = os.sched_getaffinity(0) - {load.cpu} or {load.cpu}
        before = ("taskset", "-c", ",".join(map(str, others)))
        node = cluster.nodes[0]
        place = Place(node.name, node.namespace, bpffs, cgroup, directory, cache, before)
        _, pid = await stack.enter_async_context(started(place, etcd.unix, CLUSTER))
        yield Stand(cluster, load, etcd.endpoint, directory, pid)


def _records(cluster: Cluster) -> dict[str, bytes]:
    """Pod a may send to b's ALLOWED ports, by one policy; nothing else may."""
    first, *_ = cluster.nodes
    a, b = first.pods
    rule = Rule(direction=Direction.INGRESS, protocol=Protocol.UDP, port=ALLOWED.start, prefix=5, sets=(CLIENTS,))
    rules = Rules(ingress_isolated=True, rules=(rule,), policies=("bench/from-a",))
    values = {
        KEYS.masquerade(): encode(Masquerade()),
        KEYS.peers(CLIENTS, 0): encode(PeerShard(members=(CLIENT,))),
        KEYS.rules(POLICY): encode(rules),
        KEYS.rules(POLICY + 1): encode(Rules()),
        KEYS.subject(SERVER): encode(Subject(policy=POLICY)),
        KEYS.subject(CLIENT): encode(Subject(policy=POLICY + 1)),
    }
    for node in cluster.nodes:
        values[KEYS.node(node.name)] = encode(Node(addresses=tuple(map(pack_address, node.addresses))))
    for pod, identity in ((a, CLIENT), (b, SERVER)):
        addresses = tuple(map(pack_address, pod.addresses))
        values[KEYS.endpoint("bench", pod.name)] = encode(
            Endpoint(node=first.name, identity=identity, addresses=addresses)
        )
    return values | {KEYS.synced(writer): encode(Synced(epoch=1)) for writer in ("endpoint-sync", "policy-sync")}


@dataclass(frozen=True, slots=True)
class Kind:
    """`rate`: packets a second, of which the goal speaks. `ports`: to which they go, round by round."""

    name: str
    what: str
    rate: int
    unit: str
    disposition: str
    ports: range


KINDS = (
    Kind("policy-log-allowed", "new connections that are allowed", 5_000, "connections/s", "allow", ALLOWED),
    Kind("policy-log-denied", "packets that are denied", 100_000, "packets/s", "deny", range(DENIED, DENIED + 1)),
)
ON, OFF, RATE, RECORDS = "agent with logging on", "with logging off", "reached", "records written"


async def _set_logging(built: Stand, on: bool) -> None:
    """Returns when the programs have been told."""
    store = EtcdStore(CommonSettings(etcd=(built.etcd,)))
    try:
        await store.transact([Put(KEYS.logging(), encode(Logging(allowed=on, denied=on)))])
    finally:
        await store.close()
    connector = aiohttp.UnixConnector(str(built.state / "agent.sock"))
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.timeout(PATIENCE):
        while True:
            async with session.get("http://agent/status") as answer:
                if bool((await answer.json())["policy_log"]) is on:
                    return
            await asyncio.sleep(0.01)


def _told(log: Path, disposition: str) -> Counter[str]:
    """Packets by what the log says of them, and `records`."""
    found: Counter[str] = Counter()
    with log.open() as lines:
        for line in lines:
            row = json.loads(line)
            if "lost" in row:
                found["lost"] += row["lost"].get(disposition, 0)
            elif row["disposition"] == disposition:
                found["records"] += 1
                found["counted"] += row["count"]
    return found


class Round:
    """One kind of packets, for a while."""

    def __init__(self, built: Stand, kind: Kind, milliseconds: int) -> None:
        self._built = built
        self._kind = kind
        self._milliseconds = milliseconds
        a, self._server = built.cluster.nodes[0].pods
        host = built.cluster.nodes[0].namespace
        (link,) = json.loads(host.run("ip", "-j", "link", "show", a.veth))
        self._sender = Sender(a.namespace)
        self._from = ("eth0", link["address"], a.addresses[0], self._server.addresses[0])

    def run(self, number: int, on: bool) -> dict[str, float]:
        """Name of a series → sample. Raises LoadError where the log does not tell of all that was sent."""
        built, kind = self._built, self._kind
        asyncio.run(_set_logging(built, on))
        port, rate = kind.ports[number % len(kind.ports)], round(kind.rate * MORE)
        built.log.unlink(missing_ok=True)  # the agent begins another one, in any case when it has reached its size
        # Somebody listens: no errors are sent back.
        with closing(self._server.namespace.socket(AF_INET, SOCK_DGRAM)) as listener:
            listener.bind(("", port))
            before, begun = cpu(built.pid), time.monotonic()
            words = (*self._from, str(port), "2000", str(SOURCE_PORTS), str(rate), str(self._milliseconds))
            sent, nanoseconds = built.load.counts(self._sender, *words)
            used = (cpu(built.pid) - before) / (time.monotonic() - begun)
        if not on:
            return {OFF: used}
        told = self._wait(sent)
        seconds = nanoseconds / 1e9
        return {ON: used, RATE: sent / seconds, RECORDS: told["records"] / seconds}

    def _wait(self, sent: int) -> Counter[str]:
        ends = time.monotonic() + PATIENCE
        while True:
            log, kind = self._built.log, self._kind
            told = _told(log, kind.disposition) if log.exists() else Counter[str]()
            if told["counted"] + told["lost"] == sent:
                return told
            if time.monotonic() > ends:
                raise LoadError(f"{kind.name}: {sent} packets went, and the log tells of {dict(told)}")
            time.sleep(0.1)


def _measurement(kind: Kind) -> Measurement[Stand]:
    def run(built: Stand, size: Size, tick: Tick) -> Result:
        one = Round(built, kind, size.log_milliseconds)
        samples: dict[str, list[float]] = {}
        for number in range(size.runs):
            for on in (number % 2 == 0, number % 2 != 0):
                for name, sample in one.run(2 * number + on, on).items():
                    samples.setdefault(name, []).append(sample)
                tick()
        limits = (
            Limit(ON, OFF, at_most=AT_MOST),
            Limit(RATE, at_least=kind.rate, unit=kind.unit),
            Limit(RECORDS, unit="records/s"),
        )
        return Result(kind.name, kind.what, "CPUs", {n: tuple(s) for n, s in samples.items()}, limits=limits)

    return Measurement(kind.name, kind.what, lambda size: 2 * size.runs, run)


MEASUREMENTS = tuple(map(_measurement, KINDS))
