"""Objects in YAML or JSON files, made whole so that the sync services can read them. Pure but for reading files."""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

KINDS = ("Namespace", "Node", "Pod", "Service", "EndpointSlice", "NetworkPolicy")
OF_CLUSTER = ("Namespace", "Node")
# Whose pods are made from a template: one of each, as all are alike to policies.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), ("spec", "template")),
    "ReplicationController": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
SUFFIXES = (".yaml", ".yml", ".json")
NODE = "nowhere"  # of pods that no node has
# RFC 5737 and RFC 3849 keep these for examples: they meet no ipBlock but by purpose.
MADE_UP = ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8:ffff::/112")


class ManifestError(ValueError):
    """A file cannot be read as objects; the text says which, and why."""


def read_objects(places: Sequence[Path], base: Iterable[Object] = ()) -> list[Object]:
    """All objects that concern us, each once, and namespaces are there. Those of `base` are as an API server has them;
    pods that are written in files have addresses. Raises ManifestError."""
    found = {_key(item): item for item in base}
    written = set()
    for file in _files(places):
        for item in _documents(file):
            made = _whole(item, file)
            if made is not None:
                key = _key(made)
                found[key] = _in_place(found.get(key), made)
                written.add(key)
    for name in sorted({namespace for _, namespace, _ in found if namespace}):
        found.setdefault(("Namespace", "", name), {"kind": "Namespace", "metadata": {"name": name, "labels": {}}})
    _address([found[key] for key in sorted(written) if key[0] == "Pod"])
    return list(found.values())


def _key(item: Object) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _in_place(before: Object | None, made: Object) -> Object:
    """A pod stays where it is, and keeps its addresses, where what takes its place says nothing of them."""
    if before is None or made["kind"] != "Pod":
        return made
    node = (before.get("spec") or {}).get("nodeName")
    spec = {**({"nodeName": node} if node else {}), **(made.get("spec") or {})}
    return {"status": before.get("status"), **made, "spec": spec}


def _files(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if not place.exists():
            raise ManifestError(f"{place}: no such file or directory")
        files = sorted(p for p in place.rglob("*") if p.suffix in SUFFIXES) if place.is_dir() else [place]
        if not files:
            raise ManifestError(f"{place}: holds no {', '.join(SUFFIXES)} file")
        yield from files


def _documents(file: Path) -> Iterator[Object]:
    try:
        documents = list(yaml.safe_load_all(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ManifestError(f"{file}: {error}") from error
    while documents:
        item = documents.pop(0)
        if item is None:
            continue
        if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
            raise ManifestError(f"{file}: holds something that is no object with a kind")
        if item["kind"].endswith("List"):  # as kubectl get -o yaml prints
            documents[:0] = item.get("items") or []
        else:
            yield item


def _whole(item: Object, file: Path) -> Object | None:
    kind, metadata = item["kind"], item.get("metadata")
    if kind not in KINDS and kind not in TEMPLATES:
        return None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ManifestError(f"{file}: a {kind} without metadata.name")
    if kind not in OF_CLUSTER:
        metadata = {"namespace": "default", **metadata}
    if kind not in TEMPLATES:
        return {**item, "metadata": metadata}
    template: Any = item
    for part in TEMPLATES[kind]:
        template = template.get(part) if isinstance(template, dict) else None
    if not isinstance(template, dict):
        raise ManifestError(f"{file}: {kind} {metadata['name']} without {'.'.join(TEMPLATES[kind])}")
    labels = (template.get("metadata") or {}).get("labels") or {}
    named = {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels}
    return {"kind": "Pod", "metadata": named, "spec": template.get("spec") or {}}


def _address(pods: Sequence[Object]) -> None:
    """Pods that have no address yet, or are only written down, get one that nobody else has."""
    hosts = [iter(network.hosts()) for network in MADE_UP]
    for pod in pods:
        pod["spec"] = {"nodeName": NODE, **(pod.get("spec") or {})}
        if (pod.get("status") or {}).get("podIP"):
            continue
        ips = [str(next(each, None) or _too_many()) for each in hosts]
        pod["status"] = {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}


def _too_many() -> str:
    raise ManifestError("more than 254 pods without an address: give them one in status.podIP")
