"""What is no object of its kind: refused before anything looks into it. Pure."""

from typing import Any

import msgspec

from playground.apiserver.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    NAMESPACE,
    NETWORK_LOGGING,
    NETWORK_POLICY,
    NODE,
    POD,
    SERVICE,
    Kind,
    Object,
    StatusError,
)
from tidegate.kube import objects

TYPES: dict[Kind, type[objects.Object]] = {
    NAMESPACE: objects.Namespace,
    NODE: objects.Node,
    POD: objects.Pod,
    SERVICE: objects.Service,
    CONFIG_MAP: objects.ConfigMap,
    ENDPOINT_SLICE: objects.EndpointSlice,
    NETWORK_POLICY: objects.NetworkPolicy,
    NETWORK_LOGGING: objects.NetworkLogging,
}


def check_types(kind: Kind, item: Any) -> Object:
    """The item. As far as a dataplane reads it: of other fields anything is taken. Raises StatusError (400)."""
    try:
        msgspec.convert(_without_null(item), TYPES.get(kind, objects.Object))
    except msgspec.ValidationError as error:
        text = f"{kind.kind} in version {kind.version!r} cannot be handled as a {kind.kind}: {error}"
        raise StatusError(400, "BadRequest", text) from error
    found: Object = item
    return found


def _without_null(value: Any) -> Any:
    """Null is as if absent."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value
