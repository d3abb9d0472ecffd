"""Where everything of a playground is: names of namespaces, directories, addresses. Pure."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

CLUSTER = "playground"
SERVICE_CIDR, SERVICE_CIDR6 = "10.96.0.0/16", "fd96::/112"
ZONES = ("zone-a", "zone-b")


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted. Raises FileNotFoundError where it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise FileNotFoundError("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


@dataclass(frozen=True, slots=True)
class Layout:
    """One playground. Several can stand side by side if their names differ; the empty name is the usual one."""

    name: str = ""

    @property
    def _suffix(self) -> str:
        return f"-{self.name}" if self.name else ""

    @property
    def prefix(self) -> str:
        return f"tg{self.name}"

    @property
    def run(self) -> Path:
        return Path(f"/run/tidegate{self._suffix}")

    @property
    def home(self) -> Path:
        return self.run / "playground"

    @property
    def kubeconfig(self) -> Path:
        return self.home / "kubeconfig"

    @property
    def state(self) -> Path:
        return self.home / "state.json"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def bpffs(self) -> Path:
        return Path(f"/sys/fs/bpf/tidegate{self._suffix}")

    @property
    def cgroup(self) -> Path:
        return cgroup_root() / f"tidegate{self._suffix}"

    @property
    def segment(self) -> str:
        return f"{self.prefix}-segment"

    @property
    def external(self) -> str:
        return f"{self.prefix}-external"

    def node_namespace(self, node: str) -> str:
        return f"{self.prefix}-node.{node}"

    def pod_namespace(self, namespace: str, pod: str) -> str:
        return f"{self.prefix}.{namespace}.{pod}"

    def owns(self, namespace: str) -> bool:
        """Whether a network namespace of that name is this playground's."""
        fixed = (self.segment, self.external)
        return namespace in fixed or namespace.startswith((f"{self.prefix}-node.", f"{self.prefix}."))

    def node_cgroup(self, node: str) -> Path:
        return self.cgroup / node

    def pod_cgroup(self, node: str, namespace: str, pod: str) -> Path:
        return self.node_cgroup(node) / f"{namespace}_{pod}"

    def node_state(self, node: str) -> Path:
        return self.run / node


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Addresses of node number `index` (1 …); IPv6 ones are used with --dual-stack only."""

    index: int

    @property
    def name(self) -> str:
        return f"node-{self.index}"

    @property
    def address(self) -> str:
        return f"172.30.0.{10 + self.index}"

    @property
    def pod_cidr(self) -> str:
        return f"10.200.{self.index}.0/24"

    @property
    def gateway(self) -> str:
        return f"10.200.{self.index}.1"

    def pod(self, number: int) -> str:
        """The pod address of that number, 2 … 254."""
        return f"10.200.{self.index}.{number}"

    @property
    def address6(self) -> str:
        return f"fd30::{10 + self.index:x}"

    @property
    def pod_cidr6(self) -> str:
        return f"fd20:0:0:{self.index:x}::/64"

    @property
    def gateway6(self) -> str:
        return f"fd20:0:0:{self.index:x}::1"

    def pod6(self, number: int) -> str:
        return f"fd20:0:0:{self.index:x}::{number:x}"

    @property
    def zone(self) -> str:
        return ZONES[(self.index - 1) % len(ZONES)]


EXTERNAL_ADDRESS, EXTERNAL_ADDRESS6 = "172.30.0.250", "fd30::250"


def veth(namespace: str, pod: str, uid: str) -> str:
    """Name of the host-side device of a pod: as CNI plugins do it, `veth` and eight digits."""
    return "veth" + hashlib.sha1(f"{namespace}/{pod}/{uid}".encode(), usedforsecurity=False).hexdigest()[:8]
