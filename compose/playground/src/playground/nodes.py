"""Node objects for the playground's nodes."""

from typing import Any

from playground.layout import NodeAddresses
from tidegate.kube.client import ApiError, KubeClient


def node_object(node: NodeAddresses, dual_stack: bool) -> dict[str, Any]:
    cidrs = [node.pod_cidr, *([node.pod_cidr6] if dual_stack else [])]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": node.zone,
                "topology.kubernetes.io/region": "playground",
            },
        },
        "spec": {"podCIDR": node.pod_cidr, "podCIDRs": cidrs},
    }


def node_status(node: NodeAddresses, dual_stack: bool) -> dict[str, Any]:
    addresses = [node.address, *([node.address6] if dual_stack else [])]
    return {
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": address} for address in addresses),
                {"type": "Hostname", "address": node.name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Playground", "message": "a namespace"}],
            "nodeInfo": {
                "kubeletVersion": "playground",
                "operatingSystem": "linux",
                "architecture": "amd64",
                "osImage": "network namespace",
                "kernelVersion": "",
                "containerRuntimeVersion": "",
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
                "kubeProxyVersion": "",
            },
        }
    }


async def register(api: KubeClient, node: NodeAddresses, dual_stack: bool) -> None:
    try:
        await api.create("/api/v1/nodes", node_object(node, dual_stack))
    except ApiError as error:
        if error.code != 409:  # there from an earlier run
            raise
    await api.merge(f"/api/v1/nodes/{node.name}/status", node_status(node, dual_stack))
