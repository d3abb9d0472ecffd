"""From the events of list_watch to calls for single objects."""

from collections.abc import Callable
from contextlib import aclosing, nullcontext
from typing import Generic, Protocol, TypeVar

from tidegate.kube.objects import Object
from tidegate.kube.watch import Api, Changed, Deleted, Event, Invalid, Listed, Page, Resource, list_watch
from tidegate.runtime import metrics
from tidegate.runtime.collector import building

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
        self._list = 0  # number of the latest list
        self._known: dict[Key, int] = {}  # → number of the list when it was last heard of

    def apply(self, event: Event[T]) -> None:
        if isinstance(event, Page):
            self._list += event.first
            for item in event.items:
                self._changed(item)
            for bad in event.invalid:
                self._invalid(bad)
        elif isinstance(event, Listed):
            for key in [key for key, heard in self._known.items() if heard != self._list]:
                self._deleted(key)
        elif isinstance(event, Changed):
            self._changed(event.item)
        elif isinstance(event, Invalid):
            self._invalid(event)
        elif isinstance(event, Deleted):
            self._deleted((event.namespace, event.name))

    def knows(self, key: Key) -> bool:
        return key in self._known

    def _changed(self, item: T) -> None:
        self._known[item.key] = self._list
        self._handler.changed(item)

    def _invalid(self, item: Invalid) -> None:
        self._known[item.namespace, item.name] = self._list
        self._handler.invalid(item)

    def _deleted(self, key: Key) -> None:
        self._known.pop(key, None)
        self._handler.deleted(key)


async def track(
    api: Api, resource: Resource[T], handler: Handler[T], reader: str, after: Callable[[bool], None]
) -> None:
    """Feeds `handler` with all objects of the resource, for ever.

    `after(listed)` follows each event; `listed` says that with it all of a list has been told.

    `reader` names the process in the metrics.
    """
    tracker = Tracker(handler)
    count = EVENTS.labels(reader, resource.kind)
    async with aclosing(list_watch(api, resource)) as events:
        async for event in events:
            count.inc(_size(event))
            with building() if isinstance(event, Page) else nullcontext():
                tracker.apply(event)
            after(isinstance(event, Listed))


def _size(event: Event[T]) -> int:
    """Objects in it."""
    if isinstance(event, Page):
        return len(event.items) + len(event.invalid)
    return 0 if isinstance(event, Listed) else 1
