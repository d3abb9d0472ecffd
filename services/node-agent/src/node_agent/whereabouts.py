"""`agent.json` in an agent's state directory: where the command finds what belongs to the node."""

import json
import os

from node_agent.nodesettings import NodeSettings


def write_whereabouts(settings: NodeSettings, cluster: str, etcd: tuple[str, ...], version: str) -> None:
    settings.state.mkdir(parents=True, exist_ok=True)
    about = {
        "node": settings.node,
        "cluster": cluster,
        "etcd": list(etcd),
        "bpffs": str(settings.bpffs),
        "cgroup": str(settings.cgroup),
        "cni": str(settings.cni) if settings.cni else None,
        "pid": os.getpid(),
        "version": version,
    }
    beside = settings.state / ".agent.json"
    beside.write_text(json.dumps(about, indent=1) + "\n")
    beside.replace(settings.state / "agent.json")
