"""What requests do to objects: create, replace, patch, delete, with defaults, checks and the rules of deletion."""

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from playground.apiserver.admission import Admission
from playground.apiserver.kinds import (
    ENDPOINT_SLICE,
    KINDS,
    NAMESPACE,
    POD,
    SERVICE,
    Kind,
    Object,
    StatusError,
    conflict,
    not_found,
)
from playground.apiserver.patch import json_patch, merge, strategic
from playground.apiserver.storage import Key, Storage
from playground.apiserver.typed import check_types
from playground.apiserver.validation import validate

SYSTEM_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
IMMUTABLE = ("uid", "creationTimestamp", "name", "namespace", "deletionTimestamp", "deletionGracePeriodSeconds")


class Actions:
    def __init__(self, storage: Storage, service_cidr: str, checked: bool) -> None:
        self.storage = storage
        self._admission = Admission(storage, service_cidr)
        self._checked = checked

    def prepare(self) -> None:
        """What is there from the beginning."""
        for name in SYSTEM_NAMESPACES:
            if self.storage.get(NAMESPACE, ("", name)) is None:
                self.create(NAMESPACE, "", {"metadata": {"name": name}})
        if self.storage.get(SERVICE, ("default", "kubernetes")) is None:
            ports = [{"name": "https", "port": 443, "targetPort": 6443}]
            self.create(SERVICE, "default", {"metadata": {"name": "kubernetes"}, "spec": {"ports": ports}})

    def read(self, kind: Kind, key: Key) -> Object:
        found = self.storage.get(kind, key)
        if found is None:
            raise not_found(kind, key[1])
        return found

    def create(self, kind: Kind, namespace: str, item: Object, dry_run: bool = False) -> Object:
        self._check_types(kind, item)
        metadata = item.setdefault("metadata", {})
        if kind.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                text = "the namespace of the provided object does not match the namespace sent on the request"
                raise StatusError(400, "BadRequest", text)
            self._check_namespace(namespace)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        if not metadata.get("name"):
            raise StatusError(422, "Invalid", f"{kind.kind}: metadata.name: Required value: name is required")
        key = metadata.get("namespace", ""), metadata["name"]
        if self.storage.get(kind, key) is not None:
            raise StatusError(409, "AlreadyExists", f'{kind.qualified} "{key[1]}" already exists')
        item["apiVersion"], item["kind"] = kind.api_version, kind.kind
        self._admission.create(kind, item)
        self._check(kind, item)
        return item if dry_run else self.storage.put(kind, item)

    def _check_namespace(self, namespace: str) -> None:
        found = self.storage.get(NAMESPACE, ("", namespace))
        if found is None:
            raise not_found(NAMESPACE, namespace)
        if found["metadata"].get("deletionTimestamp"):
            raise StatusError(403, "Forbidden", f"namespace {namespace} is being terminated")

    def _check_types(self, kind: Kind, item: Any) -> None:
        if self._checked:
            check_types(kind, item)

    def _check(self, kind: Kind, item: Object) -> None:
        if self._checked:
            validate(kind, item)

    def replace(self, kind: Kind, key: Key, item: Object, status: bool, dry_run: bool = False) -> Object:
        before = self.read(kind, key)
        self._check_types(kind, item)
        wanted = (item.get("metadata") or {}).get("resourceVersion")
        if wanted and wanted != before["metadata"]["resourceVersion"]:
            raise conflict(kind, key[1])
        return self._store(kind, before, item, status, dry_run)

    def _store(self, kind: Kind, before: Object, item: Object, status: bool, dry_run: bool) -> Object:
        self._check_types(kind, item)
        if status:
            item = {**before, "status": item.get("status", {})}
        elif kind.status and "status" in before:
            item = {**item, "status": before["status"]}
        metadata = item.setdefault("metadata", {})
        for name in IMMUTABLE:
            if name in before["metadata"]:
                metadata[name] = before["metadata"][name]
        metadata.pop("managedFields", None)
        item["apiVersion"], item["kind"] = kind.api_version, kind.kind
        if not status:
            self._admission.default(kind, item, before)
            if "generation" in before["metadata"]:
                changed = item.get("spec") != before.get("spec")
                metadata["generation"] = before["metadata"]["generation"] + changed
            self._check(kind, item)
        return item if dry_run else self.storage.put(kind, item)

    def patch(
        self, kind: Kind, key: Key, form: str, raw: bytes, status: bool, dry_run: bool = False
    ) -> tuple[Object, bool]:
        """The object, and whether it is new. `form` is the content type."""
        if form == "application/apply-patch+yaml":
            return self._apply(kind, key, yaml.safe_load(raw), status, dry_run)
        before = self.read(kind, key)
        body: Any = json.loads(raw)
        if form == "application/json-patch+json":
            item = json_patch(before, body)
        elif form == "application/merge-patch+json":
            item = merge(before, body)
        elif form == "application/strategic-merge-patch+json":
            item = strategic(before, body)
        else:
            raise StatusError(415, "UnsupportedMediaType", f"patches of type {form} are not supported")
        wanted = (body.get("metadata") or {}).get("resourceVersion") if isinstance(body, dict) else None
        if wanted and wanted != before["metadata"]["resourceVersion"]:
            raise conflict(kind, key[1])
        return self._store(kind, before, item, status, dry_run), False

    def _apply(self, kind: Kind, key: Key, item: Object, status: bool, dry_run: bool) -> tuple[Object, bool]:
        """Server-side apply without owners of fields: what is named is set, nothing is taken away."""
        before = self.storage.get(kind, key)
        if before is None:
            return self.create(kind, key[0], item, dry_run), True
        return self._store(kind, before, strategic(before, item), status, dry_run), False

    def bind(self, key: Key, node: str) -> None:
        pod = self.read(POD, key)
        if pod["spec"].get("nodeName"):
            raise StatusError(409, "Conflict", f"pod {key[1]} is already assigned to node {pod['spec']['nodeName']}")
        pod["spec"]["nodeName"] = node
        self.storage.put(POD, pod)

    def delete(self, kind: Kind, key: Key, grace: int | None) -> Object:
        """Pods on a node first get a deletionTimestamp; their kubelet ends the deletion with a grace of 0 seconds."""
        item = self.read(kind, key)
        if kind is NAMESPACE:
            return self._delete_namespace(key, item)
        if kind is POD and item["spec"].get("nodeName") and grace != 0:
            if item["metadata"].get("deletionTimestamp"):
                return item
            seconds = grace if grace is not None else item["spec"].get("terminationGracePeriodSeconds", 30)
            if seconds:
                when = datetime.now(UTC) + timedelta(seconds=seconds)
                item["metadata"]["deletionTimestamp"] = when.strftime("%Y-%m-%dT%H:%M:%SZ")
                item["metadata"]["deletionGracePeriodSeconds"] = seconds
                return self.storage.put(kind, item)
        gone = self.storage.remove(kind, key)
        if kind is SERVICE:
            self._collect_slices(key)
        elif kind is POD:
            self._finish_namespace(key[0])
        return gone

    def _collect_slices(self, key: Key) -> None:
        """EndpointSlices that the Service owns go with it, as the garbage collector has it."""
        for item in self.storage.all(ENDPOINT_SLICE, key[0]):
            owners = item["metadata"].get("ownerReferences") or []
            if any(owner.get("kind") == "Service" and owner.get("name") == key[1] for owner in owners):
                self.storage.remove(ENDPOINT_SLICE, (key[0], item["metadata"]["name"]))

    def _delete_namespace(self, key: Key, item: Object) -> Object:
        if key[1] in SYSTEM_NAMESPACES:
            raise StatusError(
                403, "Forbidden", f'namespaces "{key[1]}" is forbidden: this namespace may not be deleted'
            )
        item["metadata"]["deletionTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        item["status"] = {"phase": "Terminating"}
        stored = self.storage.put(NAMESPACE, item)
        for kind in KINDS:
            if kind.namespaced:
                for inner in list(self.storage.all(kind, key[1])):
                    where = key[1], inner["metadata"]["name"]
                    if self.storage.get(kind, where) is not None:
                        self.delete(kind, where, None)
        self._finish_namespace(key[1])
        return stored

    def _finish_namespace(self, name: str) -> None:
        """A namespace that is to go goes with the last pod in it."""
        found = self.storage.get(NAMESPACE, ("", name))
        if found is not None and found["metadata"].get("deletionTimestamp") and not self.storage.all(POD, name):
            self.storage.remove(NAMESPACE, ("", name))
