"""Kubernetes Events about objects: for who looks with `kubectl describe` or `kubectl get events`.

They are core/v1 Events, which kubectl shows for an object; the API server gives them as events.k8s.io/v1, too. An
Event's name follows from its object and reason, so what lasts or comes again raises the count of one Event.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from tidegate.kube.client import ApiError
from tidegate.kube.watch import Unreachable
from tidegate.runtime import metrics
from tidegate.runtime.logging import get_logger
from tidegate.runtime.retry import Backoff

# API servers keep Events for an hour; what lasts is told again before.
REPEAT = 1800.0  # seconds
MOST_TEXT = 1024  # bytes of a message (API documentation of Event)

EVENTS = metrics.counter("events", "Kubernetes Events written, by what became of them.", ("outcome",))

log = get_logger()


class EventApi(Protocol):
    """What is needed of a client to write Events. Raises ApiError, Unreachable."""

    async def get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]: ...

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]: ...

    async def merge(self, path: str, patch: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told of an object, by default a Service."""

    namespace: str
    name: str
    uid: str
    reason: str
    text: str
    warning: bool = True
    kind: str = "Service"
    api_version: str = "v1"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.namespace, self.name


class Events:
    """`tell` never waits and never fails; `run` writes. Without a right to write Events nothing else suffers."""

    def __init__(self, api: EventApi, component: str, leading: Callable[[], bool], repeat: float = REPEAT) -> None:
        """`component` is who tells. While another replica leads (`leading` says no), nothing is written."""
        self._api = api
        self._component = component
        self._leading = leading
        self._repeat = repeat
        self._due: dict[tuple[str, str, str], Notice] = {}  # of each object the latest
        self._lasting: dict[tuple[str, str, str], Notice] = {}
        self._change = asyncio.Event()

    def tell(self, notice: Notice) -> None:
        """A warning lasts, and is told again now and then, until another notice of the object or `forget`."""
        self._due[notice.key] = notice
        if notice.warning:
            self._lasting[notice.key] = notice
        else:
            self._lasting.pop(notice.key, None)
        self._change.set()

    def forget(self, namespace: str, name: str, kind: str = "Service") -> None:
        """The object is gone."""
        self._due.pop((kind, namespace, name), None)
        self._lasting.pop((kind, namespace, name), None)

    def forget_all(self) -> None:
        """Another replica tells, or all is to be looked at anew."""
        self._due.clear()
        self._lasting.clear()

    async def run(self) -> None:
        """Never returns."""
        backoff = Backoff()
        while True:
            try:
                async with asyncio.timeout(self._repeat):
                    await self._change.wait()
            except TimeoutError:
                self._due = self._lasting | self._due
            self._change.clear()
            while self._due and self._leading():
                key, notice = next(iter(self._due.items()))
                try:
                    await self._write(notice)
                except Unreachable as error:
                    log.info("event not written yet", about=f"{notice.namespace}/{notice.name}", reason=str(error))
                    await backoff.wait()
                    continue
                backoff.reset()
                if self._due.get(key) is notice:
                    del self._due[key]

    async def _write(self, notice: Notice) -> None:
        path = f"/api/v1/namespaces/{notice.namespace}/events"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = event(notice, self._component, now)
        try:
            try:
                await self._api.create(path, body)
            except ApiError as error:
                if error.code != 409:
                    raise
                path = f"{path}/{body['metadata']['name']}"
                known = await self._api.get(path)
                again = {"count": int(known.get("count") or 0) + 1, "lastTimestamp": now, "message": body["message"]}
                await self._api.merge(path, again)
        except ApiError as error:
            EVENTS.labels("refused").inc()
            about = f"{notice.namespace}/{notice.name}"
            log.warning("event refused", about=about, text=notice.text, reason=str(error))
            return
        EVENTS.labels("written").inc()


def event(notice: Notice, component: str, now: str) -> dict[str, Any]:
    """The object at the API. Pure."""
    digest = hashlib.sha256(f"{notice.uid}\0{notice.reason}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{notice.name}.{digest}", "namespace": notice.namespace},
        "involvedObject": {
            "apiVersion": notice.api_version,
            "kind": notice.kind,
            "namespace": notice.namespace,
            "name": notice.name,
            "uid": notice.uid,
        },
        "reason": notice.reason,
        "message": notice.text.encode()[:MOST_TEXT].decode(errors="ignore"),
        "type": "Warning" if notice.warning else "Normal",
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": component,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
