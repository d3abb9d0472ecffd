"""A small cluster's records in a real etcd."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.records import (
    ANY_SET,
    Backend,
    BackendShard,
    Direction,
    Endpoint,
    Identity,
    Keyspace,
    Node,
    PeerSet,
    PeerShard,
    Problem,
    Protocol,
    Record,
    Rule,
    Rules,
    Service,
    ServicePort,
    Subject,
    Synced,
    encode,
)
from tidegate.records.addresses import pack_address, pack_cidr
from tidegate.runtime.settings import CommonSettings
from tidegate.store import Put
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

KEYS = Keyspace("t")
WEB, DB, IDLE = 1001, 1002, 1003
WEB_SET = 501


def records() -> dict[str, Record]:
    closed = Rules(
        ingress_isolated=True,
        rules=(
            Rule(direction=Direction.INGRESS, protocol=Protocol.TCP, port=5432, prefix=16, sets=(WEB_SET,)),
            Rule(direction=Direction.INGRESS, protocol=Protocol.UDP, port=8000, prefix=13, sets=(ANY_SET,)),
        ),
        policies=("shop/db",),
    )
    return {
        KEYS.node("n1"): Node(addresses=(pack_address("172.30.0.11"),), pod_cidrs=(pack_cidr("10.1.0.0/24"),)),
        KEYS.identity(WEB): Identity(namespace="shop", labels={"app": "web"}),
        KEYS.identity(DB): Identity(namespace="shop", labels={"app": "db"}),
        KEYS.identity(IDLE): Identity(namespace="shop", labels={"app": "idle"}),
        KEYS.endpoint("shop", "web-1"): Endpoint(
            node="n1",
            identity=WEB,
            addresses=(pack_address("10.1.0.2"),),
            workload_kind="Deployment",
            workload_name="web",
        ),
        KEYS.endpoint("shop", "db-1"): Endpoint(node="n1", identity=DB, addresses=(pack_address("10.1.0.3"),)),
        KEYS.endpoint("shop", "idle-1"): Endpoint(node="n1", identity=IDLE, addresses=(pack_address("10.1.0.4"),)),
        KEYS.service("shop", "db"): Service(
            cluster_ips=(pack_address("10.96.0.5"),), ports=(ServicePort(id=7, name="sql", port=5432),)
        ),
        KEYS.backends("shop", "db", 0): BackendShard(
            backends=(
                Backend(address=pack_address("10.1.0.3"), ports={"sql": 5432}, node="n1"),
                Backend(address=pack_address("10.1.0.9"), ports={"sql": 5432}, ready=False, terminating=True),
            )
        ),
        KEYS.peer_set(WEB_SET): PeerSet(text="namespace shop: pods app=web"),
        KEYS.peers(WEB_SET, 0): PeerShard(members=(WEB,)),
        KEYS.rules(21): closed,
        KEYS.rules(22): Rules(),
        KEYS.subject(WEB): Subject(policy=22),
        KEYS.subject(DB): Subject(policy=21),
        KEYS.synced("endpoint-sync"): Synced(epoch=3),
        KEYS.synced("policy-sync"): Synced(epoch=4),
        KEYS.problem("policy-sync", "NetworkPolicy", "shop", "bad"): Problem(reason="unknown operator 'Gt'"),
    }


async def _fill(endpoint: str) -> None:
    store = EtcdStore(CommonSettings(etcd=(endpoint,)))
    puts = [Put(key, encode(record)) for key, record in records().items()]
    await store.transact(
        [*puts, Put(KEYS.leader("endpoint-sync"), b"host/1"), Put(KEYS.leader("policy-sync"), b"host/2")]
    )
    await store.close()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of an etcd that holds `records()`."""
    process = EtcdProcess(Path(tmp_path_factory.mktemp("etcd")))
    asyncio.run(process.start())
    try:
        asyncio.run(_fill(process.endpoint))
        yield process.endpoint
    finally:
        process.stop()
