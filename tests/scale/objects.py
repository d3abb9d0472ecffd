"""API objects of realistic size of a cluster as tests.scale.population describes it, as JSON. Pure.

What the services do not look at is there as well, as an API server gives it out: managedFields, probes, volumes,
conditions with their times, a node's images. A pod has 5 KB, a node 11, an EndpointSlice 0.3 for each endpoint.

Pods of one workload, and nodes of one zone, differ in a few values: they are encoded once with placeholders, and then
only joined.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec
from tests.scale.population import Namespace, Node, Object, Pod, Policy, Service

CREATED = "2026-05-04T08:15:30Z"
SLICE = 100  # endpoints: what the EndpointSlice controller puts into one
IMAGES = 40  # on a node
TEMPLATES = 64  # that are kept: pods are asked for workload by workload
_PLACE = re.compile(rb"<(\w+)>")


class Template:
    """JSON with placeholders: strings in which `<name>` stands for a value."""

    def __init__(self, item: Object) -> None:
        # Odd parts are the names of placeholders.
        self._parts = [
            part if number % 2 == 0 else part.decode()
            for number, part in enumerate(_PLACE.split(msgspec.json.encode(item)))
        ]

    def fill(self, values: dict[str, bytes]) -> bytes:
        return b"".join([values[part] if isinstance(part, str) else part for part in self._parts])


def pod(item: Pod, version: int, *, ready: bool = True) -> bytes:
    workload = item.workload
    labels, ports = tuple(workload.labels.items()), tuple(workload.ports.items())
    template = _pod_template(workload.namespace.name, workload.name, workload.template_hash, labels, ports, ready)
    return template.fill(
        {
            "name": item.name.encode(),
            "uid": item.uid.encode(),
            "version": b"%d" % version,
            "node": item.node.name.encode(),
            "host": item.node.address.encode(),
            "address": item.address.encode(),
            "token": item.uid[:5].encode(),
            "container": (item.uid.replace("-", "") * 2).encode(),
        }
    )


@lru_cache(TEMPLATES)
def _pod_template(
    namespace: str,
    name: str,
    template_hash: str,
    own: tuple[tuple[str, str], ...],
    ports: tuple[tuple[str, int], ...],
    ready: bool,
) -> Template:
    """`own`: labels that are the workload's."""
    replica_set = f"{name}-{template_hash}"
    labels = {**dict(own), "pod-template-hash": template_hash}
    image = f"registry.example.com/{namespace}/{name}:{template_hash}"
    return Template(
        {
            "metadata": {
                "name": "<name>",
                "generateName": f"{replica_set}-",
                "namespace": namespace,
                "uid": "<uid>",
                "resourceVersion": "<version>",
                "creationTimestamp": CREATED,
                "labels": labels,
                "annotations": {"checksum/config": "0f343b0931126a20f133d67c2b018a3b"},
                "ownerReferences": [_owner("apps/v1", "ReplicaSet", replica_set)],
                "managedFields": [
                    _managed("kube-controller-manager", _fields_of_template(labels)),
                    _managed("kubelet", FIELDS_OF_POD_STATUS, "status"),
                ],
            },
            "spec": _pod_spec(name, image, ports),
            "status": _pod_status(name, image, ready),
        }
    )


def _pod_spec(name: str, image: str, ports: Iterable[tuple[str, int]]) -> Object:
    listed = [{"name": port, "containerPort": number, "protocol": "TCP"} for port, number in ports]
    probe = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
    probes = {
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, **probe},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http", "scheme": "HTTP"}, **probe},
    }
    return {
        "volumes": [{"name": "kube-api-access-<token>", "projected": {"sources": TOKEN_SOURCES, "defaultMode": 420}}],
        "containers": [
            {
                "name": name,
                "image": image,
                **({"ports": listed} if listed else {}),
                "env": [
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                    {"name": "LOG_LEVEL", "value": "info"},
                ],
                "resources": {
                    "limits": {"cpu": "500m", "memory": "512Mi"},
                    "requests": {"cpu": "100m", "memory": "256Mi"},
                },
                "volumeMounts": [
                    {
                        "name": "kube-api-access-<token>",
                        "readOnly": True,
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    }
                ],
                **(probes if listed else {}),
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": name,
        "serviceAccount": name,
        "nodeName": "<node>",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            for what in ("not-ready", "unreachable")
        ],
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    }


def _pod_status(name: str, image: str, ready: bool) -> Object:
    states = {
        "PodReadyToStartContainers": True,
        "Initialized": True,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": True,
    }
    return {
        "phase": "Running",
        "conditions": [
            {"type": kind, "status": str(holds), "lastProbeTime": None, "lastTransitionTime": CREATED}
            for kind, holds in states.items()
        ],
        "hostIP": "<host>",
        "hostIPs": [{"ip": "<host>"}],
        "podIP": "<address>",
        "podIPs": [{"ip": "<address>"}],
        "startTime": CREATED,
        "containerStatuses": [
            {
                "name": name,
                "state": {"running": {"startedAt": CREATED}},
                "lastState": {},
                "ready": ready,
                "restartCount": 0,
                "image": image,
                "imageID": f"{image}@sha256:{0:064}",
                "containerID": "containerd://<container>",
                "started": True,
            }
        ],
        "qosClass": "Burstable",
    }


def node(item: Node, version: int, heartbeat: str = CREATED) -> bytes:
    """`heartbeat` is a time as the API writes it."""
    pool = f"pool-{item.zone}"
    return _node_template(pool, item.zone).fill(
        {
            "name": item.name.encode(),
            "version": b"%d" % version,
            "address": item.address.encode(),
            "cidr": item.pod_cidr.encode(),
            "heartbeat": heartbeat.encode(),
            "number": b"%012d" % item.index,
        }
    )


@lru_cache
def _node_template(pool: str, zone: str) -> Template:
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": "<name>",
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "standard-8",
        "node-pool": pool,
        "topology.kubernetes.io/region": "region-1",
        "topology.kubernetes.io/zone": zone,
    }
    conditions = {
        "NetworkUnavailable": "RouteCreated",
        "MemoryPressure": "KubeletHasSufficientMemory",
        "DiskPressure": "KubeletHasNoDiskPressure",
        "PIDPressure": "KubeletHasSufficientPID",
        "Ready": "KubeletReady",
    }
    return Template(
        {
            "metadata": {
                "name": "<name>",
                "uid": "8c1ad9f0-5a31-4ef1-9c21-<number>",
                "resourceVersion": "<version>",
                "creationTimestamp": CREATED,
                "labels": labels,
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
                "managedFields": [
                    _managed("kubelet", {"f:metadata": {"f:labels": _marks(labels)}}),
                    _managed("kube-controller-manager", {"f:spec": {"f:podCIDR": {}, "f:podCIDRs": {}}}),
                    _managed("kubelet", {"f:status": {"f:conditions": _marks(conditions), "f:images": {}}}, "status"),
                ],
            },
            "spec": {"podCIDR": "<cidr>", "podCIDRs": ["<cidr>"], "providerID": f"example://{zone}/<name>"},
            "status": {
                "capacity": {"cpu": "8", "ephemeral-storage": "98831908Ki", "memory": "32871Mi", "pods": "110"},
                "allocatable": {"cpu": "7910m", "ephemeral-storage": "47060071478", "memory": "29Gi", "pods": "110"},
                "conditions": [
                    {
                        "type": kind,
                        "status": str(kind == "Ready"),
                        "lastHeartbeatTime": "<heartbeat>",
                        "lastTransitionTime": CREATED,
                        "reason": reason,
                        "message": f"kubelet says {reason}",
                    }
                    for kind, reason in conditions.items()
                ],
                "addresses": [
                    {"type": "InternalIP", "address": "<address>"},
                    {"type": "Hostname", "address": "<name>"},
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "nodeInfo": {
                    "machineID": "5d3c91a4d7e14a9fa3b1<number>",
                    "systemUUID": "5d3c91a4-d7e1-4a9f-a3b1-<number>",
                    "kernelVersion": "6.18.0",
                    "osImage": "Linux",
                    "containerRuntimeVersion": "containerd://2.1.4",
                    "kubeletVersion": "v1.36.2",
                    "operatingSystem": "linux",
                    "architecture": "amd64",
                },
                "images": [
                    {
                        "names": [
                            f"registry.example.com/system/image-{number}@sha256:{number:064x}",
                            f"registry.example.com/system/image-{number}:v1.{number}.0",
                        ],
                        "sizeBytes": 10_000_000 + number,
                    }
                    for number in range(IMAGES)
                ],
            },
        }
    )


def namespace(item: Namespace, version: int) -> bytes:
    return _object("", item.name, version, {"status": {"phase": "Active"}}, labels=item.labels)


def service(item: Service, version: int) -> bytes:
    port: Object = {"name": item.port_name, "protocol": "TCP", "port": item.port, "targetPort": item.target}
    spec: Object = {
        "ports": [port],
        "selector": {"app": item.workload.name},
        "clusterIP": item.cluster_ip,
        "clusterIPs": [item.cluster_ip],
        "type": "ClusterIP",
        "sessionAffinity": "None",
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "internalTrafficPolicy": "Cluster",
    }
    status: Object = {"loadBalancer": {}}
    if item.load_balancer_ip:
        port["nodePort"] = item.node_port
        spec |= {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": True}
        status = {"loadBalancer": {"ingress": [{"ip": item.load_balancer_ip, "ipMode": "VIP"}]}}
    fields = {"f:spec": _marks(spec)}
    return _object(
        item.workload.namespace.name,
        item.name,
        version,
        {"spec": spec, "status": status},
        uid=item.uid,
        labels={
            "app": item.workload.name,
            "app.kubernetes.io/part-of": item.workload.labels["app.kubernetes.io/part-of"],
        },
        managed=[_managed("kubectl-client-side-apply", fields)],
    )


def slices(item: Service, pods: Iterable[Pod]) -> Iterator[tuple[str, Sequence[Pod]]]:
    """The Service's EndpointSlices: name → its pods."""
    rest, number = iter(pods), 0
    while chunk := list(islice(rest, SLICE)):
        yield f"{item.name}-{item.uid[:4]}{number}", chunk
        number += 1


def endpoint_slice(item: Service, name: str, pods: Iterable[Pod], version: int, unready: Collection[str] = ()) -> bytes:
    """`unready`: names of pods that are not."""
    marks = _marks({"addressType": 1, "endpoints": 1, "ports": 1})
    content = {
        "addressType": "IPv4",
        "endpoints": [_endpoint(each, each.name not in unready) for each in pods],
        "ports": [{"name": item.port_name, "protocol": "TCP", "port": item.target}],
    }
    return _object(
        item.workload.namespace.name,
        name,
        version,
        content,
        labels={
            "app": item.workload.name,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            "kubernetes.io/service-name": item.name,
        },
        generateName=f"{item.name}-",
        generation=1,
        ownerReferences=[_owner("v1", "Service", item.name)],
        managed=[_managed("kube-controller-manager", marks)],
    )


def _endpoint(item: Pod, ready: bool) -> Object:
    return {
        "addresses": [item.address],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "targetRef": {"kind": "Pod", "namespace": item.workload.namespace.name, "name": item.name, "uid": item.uid},
        "nodeName": item.node.name,
        "zone": item.node.zone,
    }


def policy(item: Policy, version: int, spec: Object | None = None) -> bytes:
    """With another `spec` than its own, if one is given."""
    spec = spec or item.spec
    managed = [_managed("kubectl-client-side-apply", {"f:spec": _marks(spec)})]
    return _object(item.namespace, item.name, version, {"spec": spec}, uid=item.uid, managed=managed)


def _object(
    where: str,
    name: str,
    version: int,
    content: Object,
    *,
    uid: str = "0f6b86a2-41c7-4f6b-9b9e-6a6c7d1e2f30",
    managed: Sequence[Object] = (),
    **metadata: Any,
) -> bytes:
    located = {"namespace": where} if where else {}
    common = {"name": name, **located, "uid": uid, "resourceVersion": str(version), "creationTimestamp": CREATED}
    return msgspec.json.encode({"metadata": {**common, **metadata, "managedFields": list(managed)}, **content})


def _owner(version: str, kind: str, name: str) -> Object:
    return {
        "apiVersion": version,
        "kind": kind,
        "name": name,
        "uid": "3b7e1c52-0d3f-4b6e-8a52-9f0c1d2e3f40",
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _managed(manager: str, fields: Object, subresource: str = "") -> Object:
    entry = {"manager": manager, "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1"}
    return {**entry, "fieldsV1": fields, **({"subresource": subresource} if subresource else {})}


def _marks(fields: Iterable[str]) -> Object:
    return {f"f:{name}": {} for name in fields}


def _fields_of_template(labels: Iterable[str]) -> Object:
    container = (
        "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports", "readinessProbe", "resources",
        "securityContext", "terminationMessagePath", "terminationMessagePolicy",
    )  # fmt: skip
    spec = (
        "dnsPolicy", "enableServiceLinks", "restartPolicy", "schedulerName", "securityContext", "serviceAccount",
        "serviceAccountName", "terminationGracePeriodSeconds",
    )  # fmt: skip
    return {
        "f:metadata": {
            "f:annotations": _marks(["checksum/config"]),
            "f:generateName": {},
            "f:labels": {".": {}, **_marks(labels)},
            "f:ownerReferences": {".": {}, 'k:{"uid":"3b7e1c52-0d3f-4b6e-8a52-9f0c1d2e3f40"}': {}},
        },
        "f:spec": {"f:containers": {'k:{"name":"app"}': {".": {}, **_marks(container)}}, **_marks(spec)},
    }


FIELDS_OF_POD_STATUS: Object = {
    "f:status": {
        "f:conditions": {
            f'k:{{"type":"{kind}"}}': {".": {}, **_marks(["lastTransitionTime", "status"])}
            for kind in ("PodReadyToStartContainers", "ContainersReady", "Initialized", "Ready")
        },
        **_marks(["containerStatuses", "hostIP", "hostIPs", "phase", "podIP", "podIPs", "startTime"]),
    }
}
TOKEN_SOURCES: list[Object] = [
    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {
        "downwardAPI": {
            "items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]
        }
    },
]
