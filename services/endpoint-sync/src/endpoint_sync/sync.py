"""From events to records: what runs in the process."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Protocol, TypeVar

from msgspec import structs

from endpoint_sync.identities import Identities
from endpoint_sync.masquerade import CONFIG, MasqueradeConfig
from endpoint_sync.pods import Pods
from endpoint_sync.services import Nodes, Published, Services, published
from tidegate.kube.events import EventApi, Events
from tidegate.kube.objects import Object
from tidegate.kube.track import Handler, Key, track
from tidegate.kube.watch import ENDPOINT_SLICES, NODES, PODS, SERVICES, Resource
from tidegate.kube.watch import Api as ReadApi
from tidegate.records import (
    BackendShard,
    Capacity,
    Identity,
    IdentityKeys,
    Keyspace,
    RecordError,
    Service,
    Synced,
    decode,
)
from tidegate.records.capacity import DEFAULT, Amount
from tidegate.records.ids import SERVICE_SPACE, Numbering, service_port_content
from tidegate.runtime.http import Health
from tidegate.runtime.logging import get_logger
from tidegate.store import Snapshot, Store, value_of
from tidegate.store.publisher import Publisher

T = TypeVar("T", bound=Object)

NAME = "endpoint-sync"
RANKS = {
    "meta/capacity": 1,
    "config/masquerade": 1,
    "nodes/": 1,
    "identities/": 2,
    "endpoints/": 3,
    "backends/": 4,
    "services/": 5,
}
KEYS_SOURCE = "identity-keys"


class Api(ReadApi, EventApi, Protocol):
    """It is watched, and gets Events."""


class EndpointSync:
    """The state of the service, and the tasks that keep it: `start` once, then `run`."""

    def __init__(
        self, store: Store, api: Api, keys: Keyspace, health: Health, grace: float, capacity: Amount = DEFAULT
    ) -> None:
        self._store = store
        self._api = api
        self._keys = keys
        sources = [PODS.kind, SERVICES.kind, ENDPOINT_SLICES.kind, NODES.kind, CONFIG.kind, KEYS_SOURCE]
        self.publisher = Publisher(store, keys, NAME, RANKS, sources, health, [keys.identities_synced()])
        self.publisher.make_synced = self._synced
        self.publisher.take_over = self._take_over
        self.publisher.prepare = self._prepare
        self._follows = IdentityKeys()
        self._service_ports = Numbering(space=SERVICE_SPACE)
        self._identities = Identities(self._put_identity, grace)
        self._pods = Pods(self.publisher, self._identities)
        self._events = Events(api, f"tidegate-{NAME}", lambda: self.publisher.leading)
        self._services = Services(self.publisher, self._service_ports, capacity, self._events)
        self._capacity = Capacity(
            backends=capacity.backends, frontends=capacity.frontends, source_ranges=capacity.source_ranges
        )

    def _put_identity(self, number: int, identity: Identity | None) -> None:
        self.publisher.put(self._keys.identity(number), identity)

    def _synced(self, synced: Synced) -> Synced:
        return structs.replace(synced, follows=self._follows)

    def _take_over(self) -> None:
        self._services.take_over(Stored(self._keys, self.publisher.writer.stored).published())

    def _prepare(self) -> None:
        self.publisher.put(self._keys.capacity(), self._capacity)
        self._services.settle()

    async def start(self) -> None:
        """Takes over numbers and last good states from the store. Raises UnavailableError."""
        await self.publisher.writer.load()
        stored = Stored(self._keys, self.publisher.writer.stored)
        self._identities.load(stored.identities, time.monotonic())
        for content in stored.service_ports:
            self._service_ports.take(content)
        self._services.slices.load(stored.shards)

    async def run(self, holder: str, ttl: int) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(NODES, Nodes(self.publisher)))
            group.create_task(self._watch(PODS, self._pods))
            group.create_task(self._watch(SERVICES, self._services))
            group.create_task(self._watch(ENDPOINT_SLICES, self._services.slices))
            group.create_task(self._follow_masquerade())
            group.create_task(self._follow_keys())
            group.create_task(self._collect())
            group.create_task(self._events.run())
            group.create_task(self.publisher.run(holder, ttl))

    async def _watch(self, resource: Resource[T], handler: Handler[T]) -> None:
        await track(self._api, resource, handler, NAME, self.publisher.after(resource.kind))

    async def _follow_masquerade(self) -> None:
        config = MasqueradeConfig(self.publisher)
        after = self.publisher.after(CONFIG.kind)

        def then(listed: bool) -> None:
            if listed:
                config.listed()
            after(listed)

        await track(self._api, CONFIG, config, NAME, then)

    async def _follow_keys(self) -> None:
        key = self._keys.identity_keys()
        async with aclosing(self._store.follow(key)) as changes:
            async for change in changes:
                value = value_of(change, key)
                # Where an older copy lies in the store now, policy-sync writes anew what it asks for.
                if value is not None and not (isinstance(change, Snapshot) and change.regressed):
                    self._ask(value)
                if isinstance(change, Snapshot):
                    self.publisher.listed(KEYS_SOURCE)
                self.publisher.changed()

    def _ask(self, value: bytes) -> None:
        try:
            keys = decode(IdentityKeys, value)
        except RecordError as error:
            get_logger().warning("identity keys not understood; keeping the previous ones", reason=str(error))
            return
        self._pods.follow_keys(keys)
        self._follows = keys

    def collect(self) -> float | None:
        """Lets identities go that have been unused for the grace time; seconds until there are more of them."""
        left = self._identities.collect(time.monotonic())
        self.publisher.changed()
        return left

    async def _collect(self) -> None:
        while True:
            left = self.collect()
            await asyncio.sleep(max(1.0, left if left is not None else 10.0))


class Stored:
    """What an earlier run left in the store. What it cannot read is left out: it will be written anew.

    Backends are kept as they lie in the store, and read where they are needed.
    """

    def __init__(self, keys: Keyspace, values: Mapping[str, bytes]) -> None:
        self.identities: dict[int, Identity] = {}
        self.service_ports: list[bytes] = []
        self.services: dict[Key, Service] = {}
        self.shards: dict[Key, dict[int, bytes]] = {}
        for key, value in values.items():
            # There are as many endpoints as pods, and nothing is to be known of them.
            if key.startswith(keys.endpoints):
                continue
            parsed = keys.parse(key)
            if parsed is None:
                continue
            try:
                self._take(parsed.kind, parsed.name, value)
            except (RecordError, ValueError) as error:
                get_logger().warning("stored record not understood; writing it anew", key=key, reason=str(error))

    def _take(self, kind: type[object], name: tuple[str, ...], value: bytes) -> None:
        if kind is Identity:
            self.identities[int(name[0])] = decode(Identity, value)
        elif kind is Service:
            service = self.services[name[0], name[1]] = decode(Service, value)
            self.service_ports += [service_port_content(name[0], name[1], port.name) for port in service.ports]
        elif kind is BackendShard:
            self.shards.setdefault((name[0], name[1]), {})[int(name[2])] = value

    def published(self) -> dict[Key, Published]:
        return {
            key: published(key, self.services.get(key), self.shards.get(key, {}))
            for key in self.services.keys() | self.shards.keys()
        }
