"""What both sync services would write for objects in files: without an API server, etcd, or a cluster."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from structlog.testing import capture_logs

from endpoint_sync.sync import EndpointSync
from offline.manifests import ManifestError, Object, read_objects
from policy_sync.sync import PolicySync
from tidegate.kube.fake import FakeApi
from tidegate.kube.watch import ENDPOINT_SLICES, NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICES
from tidegate.records import IdentityKeys, Keyspace, Synced, decode
from tidegate.records.capacity import DEFAULT
from tidegate.runtime.http import Health
from tidegate.store.memory import MemoryStore

__all__ = ["ManifestError", "records", "records_of"]

PATHS = {
    resource.kind: resource.path for resource in (NAMESPACES, NODES, PODS, SERVICES, ENDPOINT_SLICES, NETWORK_POLICIES)
}
QUIET = 100  # turns of the event loop in which nothing is written
FOREVER = 1e9  # seconds


def records(places: Sequence[Path], cluster: str, base: Sequence[Object] = ()) -> dict[str, bytes]:
    """Key → value for an API server's objects (`base`), and what lies in these files and directories; of one object the
    last counts. Raises ManifestError.
    """
    objects = read_objects(places, base)
    # What the services log of their start concerns nobody here; what they refuse is in the records.
    with capture_logs():
        return asyncio.run(records_of(objects, cluster))


async def records_of(objects: Sequence[Object], cluster: str) -> dict[str, bytes]:
    """Key → value."""
    api, store, keys = FakeApi(), MemoryStore(), Keyspace(cluster)
    for item in objects:
        api.put(PATHS[item["kind"]], item)
    endpoint_sync = EndpointSync(store, api, keys, Health("store"), FOREVER, DEFAULT)
    policy_sync = PolicySync(store, api, keys, Health("store"))
    tasks = [asyncio.create_task(service.run("offline", 60)) for service in (endpoint_sync, policy_sync)]
    try:
        await _settled(store, keys, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return store.values(keys.prefix)


async def _settled(store: MemoryStore, keys: Keyspace, tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Until both have written all that they have to say, and endpoint-sync has answered what policy-sync asks for."""
    revision, quiet = -1, 0
    while quiet < QUIET or not _is_answered(store.values(keys.prefix), keys):
        for task in tasks:
            if task.done():
                task.result()
        quiet = quiet + 1 if store.revision == revision else 0
        revision = store.revision
        await asyncio.sleep(0)


def _is_answered(values: dict[str, bytes], keys: Keyspace) -> bool:
    marks = [values.get(keys.synced(writer)) for writer in ("endpoint-sync", "policy-sync")]
    asked = values.get(keys.identity_keys())
    if marks[0] is None or marks[1] is None or asked is None:
        return False
    follows, wanted = decode(Synced, marks[0]).follows, decode(IdentityKeys, asked)
    return (follows.label_keys, follows.port_names) == (wanted.label_keys, wanted.port_names)
