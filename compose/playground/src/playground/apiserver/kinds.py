"""The kinds that are served. Pure."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    group: str
    version: str
    plural: str
    kind: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    status: bool = False  # has a status subresource

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def qualified(self) -> str:
        """As in messages: `networkpolicies.networking.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


NAMESPACE = Kind("", "v1", "namespaces", "Namespace", ("ns",), namespaced=False, status=True)
NODE = Kind("", "v1", "nodes", "Node", ("no",), namespaced=False, status=True)
POD = Kind("", "v1", "pods", "Pod", ("po",), status=True)
SERVICE = Kind("", "v1", "services", "Service", ("svc",), status=True)
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap", ("cm",))
EVENT = Kind("", "v1", "events", "Event", ("ev",))
ENDPOINT_SLICE = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", ("netpol",))
NETWORK_LOGGING = Kind("networking.gke.io", "v1alpha1", "networkloggings", "NetworkLogging", namespaced=False)

KINDS = (NAMESPACE, NODE, POD, SERVICE, CONFIG_MAP, EVENT, ENDPOINT_SLICE, NETWORK_POLICY, NETWORK_LOGGING)
BY_PATH = {(kind.path, kind.plural): kind for kind in KINDS}


class StatusError(Exception):
    """What the server answers instead of an object: a Status of the API."""

    def __init__(self, code: int, reason: str, message: str, causes: list[Object] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.causes = causes or []

    def body(self) -> Object:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "details": {"causes": self.causes} if self.causes else {},
            "code": self.code,
        }


def not_found(kind: Kind, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{kind.qualified} "{name}" not found')


def conflict(kind: Kind, name: str) -> StatusError:
    text = (
        f'Operation cannot be fulfilled on {kind.qualified} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    return StatusError(409, "Conflict", text)


def expired() -> StatusError:
    return StatusError(410, "Expired", "The resourceVersion for the provided watch is too old.")


def invalid(kind: Kind, name: str, causes: list[tuple[str, str]]) -> StatusError:
    """`causes`: (field, message) pairs."""
    details = [{"reason": "FieldValueInvalid", "field": field, "message": text} for field, text in causes]
    joined = ", ".join(f"{field}: {text}" for field, text in causes)
    many = f"[{joined}]" if len(causes) > 1 else joined
    return StatusError(
        422, "Invalid", f'{kind.kind}.{kind.group} "{name}" is invalid: {many}'.replace(". ", " "), details
    )
