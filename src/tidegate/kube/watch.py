"""List, then watch, then list again when the watch cannot go on: one generator that never ends."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from tidegate.kube import objects
from tidegate.kube.objects import Object
from tidegate.runtime import metrics
from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import Backoff

T = TypeVar("T", bound=Object)

RELISTS = metrics.counter("api_relists", "Kinds listed anew because the API server could not go on.", ("kind",))


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind, and where the API serves it: `path` has all namespaces (`/api/v1/pods`), or one.

    `fields` is a field selector (`metadata.name=NAME`), or empty. An `optional` kind is one that the API server may not
    serve (a CustomResourceDefinition that nobody has made): then there are no objects of it.
    """

    kind: str
    path: str
    type: type[T]
    fields: str = ""
    optional: bool = False


NAMESPACES = Resource("Namespace", "/api/v1/namespaces", objects.Namespace)
NODES = Resource("Node", "/api/v1/nodes", objects.Node)
PODS = Resource("Pod", "/api/v1/pods", objects.Pod)
SERVICES = Resource("Service", "/api/v1/services", objects.Service)
ENDPOINT_SLICES = Resource("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices", objects.EndpointSlice)
NETWORK_POLICIES = Resource("NetworkPolicy", "/apis/networking.k8s.io/v1/networkpolicies", objects.NetworkPolicy)
NETWORK_LOGGING = Resource(
    "NetworkLogging", "/apis/networking.gke.io/v1alpha1/networkloggings", objects.NetworkLogging, optional=True
)

UNSERVED = 30.0  # seconds until an optional kind that is not served is asked for again


@dataclass(frozen=True, slots=True)
class Invalid:
    """An object that could not be decoded. Whoever had a good state of it keeps that."""

    namespace: str
    name: str
    reason: str
    labels: Mapping[str, str] = field(default_factory=dict)  # as far as they could be read


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of what there is. With the `first` page a list begins: pages of one that was not ended do not count.

    `version` is the one from which on to watch after the last page.
    """

    items: Sequence[T]
    invalid: Sequence[Invalid]
    first: bool
    version: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """The list has ended; what a reader knew and did not find in its pages, neither valid nor invalid, is gone."""


@dataclass(frozen=True, slots=True)
class Changed(Generic[T]):
    """Added or modified."""

    item: T


@dataclass(frozen=True, slots=True)
class Deleted:
    namespace: str
    name: str


Event = Page[T] | Listed | Changed[T] | Deleted | Invalid


class GoneError(Exception):
    """The watch cannot go on from that resource version: most often the history is gone (410). List again."""


class Unreachable(Exception):
    """The API server cannot be reached, or answers with an error; the text says which."""


class NotServed(Unreachable):
    """The API server does not know the kind (404)."""


class Api(Protocol):
    """What the generator needs of a client; raw JSON, so that one bad object costs that object alone."""

    def pages(self, path: str, fields: str) -> AsyncGenerator[bytes, None]: ...

    def watch(self, path: str, fields: str, resource_version: str) -> AsyncGenerator[bytes, None]: ...


class _ListMetadata(objects.Part, frozen=True):
    resource_version: str = ""


class _List(objects.Part, frozen=True):
    metadata: _ListMetadata = _ListMetadata()
    items: tuple[msgspec.Raw, ...] | None = None


class _WatchEvent(objects.Part, frozen=True):
    type: str
    object: msgspec.Raw


class _Status(objects.Part, frozen=True):
    code: int = 0
    message: str = ""


class _Named(objects.Part, frozen=True):
    metadata: dict[str, Any] | None = None


_DECODE_LIST = msgspec.json.Decoder(_List)
_DECODE_EVENT = msgspec.json.Decoder(_WatchEvent)
_DECODE_STATUS = msgspec.json.Decoder(_Status)
_DECODE_NAMED = msgspec.json.Decoder(_Named)


class _Decoder(Generic[T]):
    def __init__(self, resource: Resource[T]) -> None:
        self._decoder = msgspec.json.Decoder(resource.type)

    def __call__(self, raw: bytes | msgspec.Raw) -> T | Invalid:
        try:
            return self._decoder.decode(raw)
        except objects.UNDECODABLE as error:
            return invalid(raw, str(error))


def invalid(raw: bytes | msgspec.Raw, reason: str) -> Invalid:
    try:
        metadata = _DECODE_NAMED.decode(raw).metadata or {}
    except objects.UNDECODABLE:
        metadata = {}
    labels = metadata.get("labels")
    readable = {k: v for k, v in labels.items() if isinstance(v, str)} if isinstance(labels, dict) else {}
    return Invalid(str(metadata.get("namespace", "")), str(metadata.get("name", "")), reason, readable)


async def list_watch(api: Api, resource: Resource[T]) -> AsyncGenerator[Event[T], None]:
    """All events of a resource, beginning with Pages and Listed. Never ends and never raises for trouble of the API
    server.

    After trouble it goes on where it was; where the server cannot (410), it lists again. No more than a page of the
    list is held at a time.
    """
    log = get_logger(kind=resource.kind)
    decode = _Decoder(resource)
    backoff = Backoff()
    version = ""
    while True:
        try:
            if not version:
                async with aclosing(_list(api, resource, decode)) as pages:
                    async for page in pages:
                        yield page
                version = page.version
                yield Listed()
            async with aclosing(api.watch(resource.path, resource.fields, version)) as lines:
                async for line in lines:
                    event, version = _event(line, decode, version)
                    backoff.reset()
                    if event is not None:
                        yield event
        except GoneError as error:
            log.info("listing again", reason=str(error))
            RELISTS.labels(resource.kind).inc()
            version = ""
        except NotServed as error:
            if not resource.optional:
                if not backoff.attempts:
                    log.warning("the API server does not serve the kind; trying until it does", reason=str(error))
                await asyncio.sleep(backoff.next())
                continue
            log.debug("not served", reason=str(error))
            version = ""
            yield Page((), (), first=True)
            yield Listed()
            await asyncio.sleep(UNSERVED)
            continue
        except Unreachable as error:
            if not backoff.attempts:
                log.warning("cannot read the API server; trying until it answers", reason=str(error))
        # Also where the server ended the watch in good order, which it does every few minutes.
        await asyncio.sleep(backoff.next())


async def _list(api: Api, resource: Resource[T], decode: _Decoder[T]) -> AsyncGenerator[Page[T], None]:
    """At least one page. Raises Unreachable, GoneError."""
    first = True
    async with aclosing(api.pages(resource.path, resource.fields)) as pages:
        async for raw in pages:
            try:
                page = _DECODE_LIST.decode(raw)
            except objects.UNDECODABLE as error:
                raise Unreachable(f"{resource.path}: no list of objects: {error}") from error
            # What is taken for an empty list empties the cluster: a JSON answer of something in between is none.
            if not page.metadata.resource_version:
                raise Unreachable(f"{resource.path}: no list of objects: it has no resourceVersion")
            items: list[T] = []
            bad: list[Invalid] = []
            for item in page.items or ():
                decoded = decode(item)
                if isinstance(decoded, Invalid):
                    bad.append(decoded)
                else:
                    items.append(decoded)
            yield Page(items, bad, first, page.metadata.resource_version)
            first = False


def _event(line: bytes, decode: _Decoder[T], version: str) -> tuple[Event[T] | None, str]:
    # Opened anew at the same version, a watch that failed by what it said would fail by the same.
    try:
        event = _DECODE_EVENT.decode(line)
        if event.type == "ERROR":
            status = _DECODE_STATUS.decode(event.object)
            raise GoneError(f"the watch ended with {status.code}: {status.message}")
    except objects.UNDECODABLE as error:
        raise GoneError(f"a line of the watch is no event: {error}") from error
    if event.type == "BOOKMARK":
        return None, _version(event.object) or version
    decoded = decode(event.object)
    version = (decoded.metadata.resource_version if isinstance(decoded, Object) else _version(event.object)) or version
    if isinstance(decoded, Invalid):
        return (Deleted(decoded.namespace, decoded.name) if event.type == "DELETED" else decoded), version
    return (Deleted(*decoded.key) if event.type == "DELETED" else Changed(decoded)), version


def _version(raw: msgspec.Raw) -> str:
    try:
        return str((_DECODE_NAMED.decode(raw).metadata or {}).get("resourceVersion", ""))
    except objects.UNDECODABLE:
        return ""
