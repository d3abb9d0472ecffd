"""policy-sync: NetworkPolicies of the API server, compiled into records in etcd."""

import os
import socket
from pathlib import Path

import click

from policy_sync.sync import NAME, PolicySync
from tidegate.kube.client import KubeClient
from tidegate.records import Keyspace
from tidegate.runtime.http import Health, serve
from tidegate.runtime.lifecycle import Stop, run
from tidegate.runtime.retry import backoff
from tidegate.runtime.settings import CONTEXT_SETTINGS, CommonSettings, common_options
from tidegate.store import UnavailableError
from tidegate.store.election import TTL
from tidegate.store.etcd import EtcdStore


@click.command(context_settings=CONTEXT_SETTINGS)
@common_options
@click.option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Default: as kubectl.")
@click.option("--lease", default=TTL, type=click.IntRange(2, 60), help="Seconds after which a dead leader is replaced.")
def main(common: CommonSettings, kubeconfig: Path | None, lease: int) -> None:
    """Writes peer sets, rules and subjects. Run two: one leads, the other waits."""

    async def work(_: Stop) -> None:
        health = Health("store")
        store = EtcdStore(common)
        health.probe("etcd", lambda: store.trouble)
        async with serve(health, listen=common.listen, unix_socket=common.http_socket):
            try:
                async with await KubeClient.load(kubeconfig) as api:
                    sync = PolicySync(store, api, Keyspace(common.cluster), health)
                    async for attempt in backoff(UnavailableError):
                        with attempt:
                            await sync.start()
                    await sync.run(f"{socket.gethostname()}/{os.getpid()}", lease)
            finally:
                await store.close()

    run(work, common, NAME)


if __name__ == "__main__":
    main()
