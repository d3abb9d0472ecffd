"""endpoint-sync: Nodes, Pods, Services and EndpointSlices of the API server, as records in etcd."""

import os
import socket
from pathlib import Path

import click

from endpoint_sync.sync import NAME, EndpointSync
from tidegate.kube.client import KubeClient
from tidegate.records import Keyspace
from tidegate.records.capacity import DEFAULT, Amount
from tidegate.runtime.http import Health, serve
from tidegate.runtime.lifecycle import Stop, run
from tidegate.runtime.retry import backoff
from tidegate.runtime.settings import CONTEXT_SETTINGS, CommonSettings, common_options
from tidegate.store import UnavailableError
from tidegate.store.election import TTL
from tidegate.store.etcd import EtcdStore

_ROOM = click.IntRange(1)


@click.command(context_settings=CONTEXT_SETTINGS)
@common_options
@click.option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Default: as kubectl.")
@click.option("--lease", default=TTL, type=click.IntRange(2, 60), help="Seconds after which a dead leader is replaced.")
@click.option("--identity-grace", default=60.0, type=click.FloatRange(0), help="Seconds that an unused identity stays.")
@click.option("--backends", default=DEFAULT.backends, type=_ROOM, help="What all Services may have: ports × endpoints.")
@click.option("--frontends", default=DEFAULT.frontends, type=_ROOM, help="The same: address, port and protocol.")
@click.option("--source-ranges", default=DEFAULT.source_ranges, type=_ROOM, help="The same: ranges × ports.")
def main(
    common: CommonSettings,
    kubeconfig: Path | None,
    lease: int,
    identity_grace: float,
    backends: int,
    frontends: int,
    source_ranges: int,
) -> None:
    """Writes identities, endpoints, services and backends. Run two: one leads, the other waits."""

    capacity = Amount(backends, frontends, source_ranges)

    async def work(_: Stop) -> None:
        health = Health("store")
        store = EtcdStore(common)
        health.probe("etcd", lambda: store.trouble)
        async with serve(health, listen=common.listen, unix_socket=common.http_socket):
            try:
                async with await KubeClient.load(kubeconfig) as api:
                    sync = EndpointSync(store, api, Keyspace(common.cluster), health, identity_grace, capacity)
                    async for attempt in backoff(UnavailableError):
                        with attempt:
                            await sync.start()
                    await sync.run(f"{socket.gethostname()}/{os.getpid()}", lease)
            finally:
                await store.close()

    run(work, common, NAME)


if __name__ == "__main__":
    main()
