"""The ways to patch: JSON patch (RFC 6902), JSON merge patch (RFC 7386), strategic merge patch. Pure."""

import copy
from typing import Any

from playground.apiserver.kinds import StatusError

# Lists that a strategic merge patch merges by a key of their elements (patchMergeKey in the API's types).
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "conditions": "type",
    "addresses": "type",
    "env": "name",
    "volumes": "name",
    "ownerReferences": "uid",
    "podIPs": "ip",
    "hostIPs": "ip",
}


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Any, patch: Any, path: tuple[str, ...] = ()) -> Any:
    """A strategic merge patch: like `merge`, but lists with a merge key are merged element by element."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$setElementOrder/") or key in ("$patch", "$retainKeys"):
            continue
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.split("/", 1)[1]
            result[field] = [item for item in result.get(field, []) if item not in value]
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list):
            result[key] = _strategic_list(result.get(key), value, (*path, key))
        else:
            result[key] = strategic(result.get(key), value, (*path, key))
    return result


def _merge_key(path: tuple[str, ...]) -> str | None:
    if path[-1] == "ports":
        if path == ("spec", "ports"):
            return "port"  # Service
        if len(path) > 1 and path[-2] in ("containers", "initContainers"):
            return "containerPort"
        return None  # EndpointSlice, NetworkPolicy: replaced as a whole
    return MERGE_KEYS.get(path[-1])


def _strategic_list(target: Any, patch: list[Any], path: tuple[str, ...]) -> list[Any]:
    key = _merge_key(path)
    if key is None or not all(isinstance(item, dict) for item in patch):
        return copy.deepcopy(patch)
    if any(item.get("$patch") == "replace" for item in patch):
        return [copy.deepcopy(item) for item in patch if item.get("$patch") != "replace"]
    result = [copy.deepcopy(item) for item in target or []]
    for item in patch:
        index = next((i for i, known in enumerate(result) if known.get(key) == item.get(key)), None)
        if item.get("$patch") == "delete":
            if index is not None:
                del result[index]
        elif index is None:
            result.append(strategic({}, item, path))
        else:
            result[index] = strategic(result[index], item, path)
    return result


def json_patch(target: Any, operations: list[dict[str, Any]]) -> Any:
    """RFC 6902. Raises StatusError (422) for a path that is not there or a test that fails."""
    result = copy.deepcopy(target)
    for operation in operations:
        result = _operate(result, operation)
    return result


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    kind, path = operation["op"], _pointer(operation["path"])
    if kind in ("move", "copy"):
        source = _pointer(operation["from"])
        value = copy.deepcopy(_find(document, source))
        if kind == "move":
            document = _operate(document, {"op": "remove", "path": operation["from"]})
        return _operate(document, {"op": "add", "path": operation["path"], "value": value})
    if kind == "test":
        if _find(document, path) != operation["value"]:
            raise StatusError(422, "Invalid", f"the test of {operation['path']} failed")
        return document
    if not path:
        return copy.deepcopy(operation.get("value"))
    parent, last = _find(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if kind == "add":
            parent.insert(index, copy.deepcopy(operation["value"]))
        elif kind == "remove":
            del parent[index]
        else:
            parent[index] = copy.deepcopy(operation["value"])
    elif kind == "remove":
        _find(document, path)
        del parent[last]
    else:
        parent[last] = copy.deepcopy(operation["value"])
    return document


def _pointer(text: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _find(document: Any, path: list[str]) -> Any:
    for part in path:
        try:
            document = document[int(part)] if isinstance(document, list) else document[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise StatusError(422, "Invalid", f"the path /{'/'.join(path)} is not there") from error
    return document
