"""From the events of list_watch to calls for single objects."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from tidegate.kube.objects import Object
from tidegate.kube.watch import Api, Changed, Deleted, Event, Invalid, Listed, Resource, list_watch
from tidegate.runtime import metrics

EVENTS = metrics.counter("api_events", "Objects received from the API server.", ("reader", "kind"))

T_contra = TypeVar("T_contra", bound=Object, contravariant=True)
T = TypeVar("T", bound=Object)
Key = tuple[str, str]


class Handler(Protocol[T_contra]):
    """What happens to one object; `key` is (namespace, name)."""

    def changed(self, item: T_contra) -> None: ...

    def deleted(self, key: Key) -> None: ...

    def invalid(self, item: Invalid) -> None: ...


class Tracker(Generic[T]):
    """Knows which objects there are, so that a new list tells which ones have gone."""

    def __init__(self, handler: Handler[T]) -> None:
        self._handler = handler
        self._known: set[Key] = set()

    def apply(self, event: Event[T]) -> None:
        if isinstance(event, Listed):
            self._listed(event)
        elif isinstance(event, Changed):
            self._known.add(event.item.key)
            self._handler.changed(event.item)
        elif isinstance(event, Invalid):
            self._known.add((event.namespace, event.name))
            self._handler.invalid(event)
        elif isinstance(event, Deleted):
            key = event.namespace, event.name
            self._known.discard(key)
            self._handler.deleted(key)

    def _listed(self, event: Listed[T]) -> None:
        present = event.items.keys() | event.invalid.keys()
        for key in self._known - present:
            self._handler.deleted(key)
        self._known = set(present)
        for item in event.items.values():
            self._handler.changed(item)
        for bad in event.invalid.values():
            self._handler.invalid(bad)


async def track(
    api: Api, resource: Resource[T], handler: Handler[T], reader: str, after: Callable[[bool], None]
) -> None:
    """Feeds `handler` with all objects of the resource, for ever. `after(listed)` follows each event.

    `reader` names the process in the metrics.
    """
    tracker = Tracker(handler)
    count = EVENTS.labels(reader, resource.kind)
    async with aclosing(list_watch(api, resource)) as events:
        async for event in events:
            count.inc(len(event.items) if isinstance(event, Listed) else 1)
            tracker.apply(event)
            after(isinstance(event, Listed))
