"""What an agent is told about its node."""

from dataclasses import dataclass
from pathlib import Path

from node_agent.policylog import DEFAULT_PATH
from node_agent.sysctl import SYSCTL


@dataclass(frozen=True, slots=True)
class NodeSettings:
    node: str
    bpffs: Path
    state: Path
    cache: Path
    cgroup: Path
    uplinks: tuple[str, ...]
    pod_interfaces: str
    attach: str
    sizes: tuple[str, ...]
    node_ports: range
    policy_log: Path = DEFAULT_PATH
    sysctl: Path = SYSCTL
    cni: Path | None = None  # where the container runtime looks for its configuration; None: it is not ours to write
    policy_audit: bool = False  # what policies deny passes, on the whole node
    socket_lb: str = "all"  # whose sockets are translated: all, or those of the node's own network namespace ("node")
    visitor: Path | None = None  # socket of who enters pods' network namespaces; None: the agent itself
