"""What clients ask before they ask for objects: groups, resources, versions, and enough OpenAPI for kubectl."""

from playground.apiserver.kinds import KINDS, Kind, Object

VERSION = {
    "major": "1",
    "minor": "33",
    "gitVersion": "v1.33.0-playground",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]

IN_ALL = ("Pod", "Service")  # what `kubectl get all` means


def groups() -> Object:
    found = []
    for group in sorted({kind.group for kind in KINDS if kind.group}):
        versions = [{"groupVersion": k.api_version, "version": k.version} for k in KINDS if k.group == group]
        found.append({"name": group, "versions": versions[:1], "preferredVersion": versions[0]})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def core_versions() -> Object:
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def resources(path: str) -> Object | None:
    """The resources of `/api/v1` or `/apis/<group>/<version>`; None where nothing is served."""
    kinds = [kind for kind in KINDS if kind.path == path]
    if not kinds:
        return None
    found: list[Object] = []
    for kind in kinds:
        shown: Object = {"categories": ["all"]} if kind.kind in IN_ALL else {}
        entry: Object = {"name": kind.plural, "singularName": kind.kind.lower(), "namespaced": kind.namespaced}
        found.append({**entry, "kind": kind.kind, "verbs": VERBS, "shortNames": list(kind.short), **shown})
        if kind.status:
            name = f"{kind.plural}/status"
            more: Object = {"name": name, "singularName": "", "namespaced": kind.namespaced}
            found.append({**more, "kind": kind.kind, "verbs": ["get", "patch", "update"]})
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": kinds[0].api_version, "resources": found}


def openapi_index() -> Object:
    paths = sorted({kind.path.lstrip("/") for kind in KINDS})
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash=1"} for path in paths}}


def openapi(path: str) -> Object | None:
    """The least document from which kubectl learns that the server itself checks fields (fieldValidation)."""
    kinds = [kind for kind in KINDS if kind.path == f"/{path}"]
    if not kinds:
        return None
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
        "paths": {_item_path(kind): {"patch": _patch(kind)} for kind in kinds},
        "components": {"schemas": {}},
    }


def _item_path(kind: Kind) -> str:
    where = "/namespaces/{namespace}" if kind.namespaced else ""
    return f"{kind.path}{where}/{kind.plural}/{{name}}"


def _patch(kind: Kind) -> Object:
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string", "uniqueItems": True}}
    return {
        "operationId": f"patch{kind.kind}",
        "parameters": [parameter],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": {"group": kind.group, "kind": kind.kind, "version": kind.version},
    }
