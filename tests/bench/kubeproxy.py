"""An nftables ruleset laid out as kube-proxy lays out its own in its nftables mode, for the same Services. Pure.

Verdict maps from address, protocol and port to a chain of the Service; there a random choice among chains of the
endpoints, each with its DNAT; a mark for what is to be masqueraded; checks for Services without endpoints and for
unused ports of ClusterIPs. IPv4, as the measurements are.
"""

from collections.abc import Iterator, Sequence

from tests.bench.population import Spec

MARK = 0x4000
TABLE = "ip kube-proxy"
TOGETHER = 500  # Services in a transaction

BASE = f"""
set cluster-ips {{ type ipv4_addr; }}
set nodeport-ips {{ type ipv4_addr; }}
map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
map service-nodeports {{ type inet_proto . inet_service : verdict; }}
chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
chain filter-input {{
  type filter hook input priority -110;
  ct state new jump nodeport-endpoints-check
  ct state new jump service-endpoints-check
}}
chain filter-forward {{
  type filter hook forward priority -110
  ct state new jump service-endpoints-check
  ct state new jump cluster-ips-check
}}
chain filter-output {{
  type filter hook output priority -110;
  ct state new jump service-endpoints-check
  ct state new jump firewall-check
}}
chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
chain nat-output {{ type nat hook output priority -100; jump services; }}
chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
chain nodeport-endpoints-check {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
chain reject-chain {{ reject; }}
chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
chain services {{
  ip daddr . meta l4proto . th dport vmap @service-ips
  ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}}
chain mark-for-masquerade {{ meta mark set meta mark | {MARK:#x}; }}
chain masquerading {{
  meta mark & {MARK:#x} == 0 return
  meta mark set meta mark ^ {MARK:#x}
  masquerade fully-random
}}
"""


def transactions(specs: Sequence[Spec], node: str, pods: str) -> Iterator[str]:
    """Inputs of `nft -f`, in order. `node`: its address for NodePorts; `pods`: the network of the cluster's pods, whose
    clients keep their address. Services of IPv6 are left out. In pieces, because the kernel's time for one grows faster
    than what is in it."""
    nodes = f"add element {TABLE} nodeport-ips {{ {node} }}"
    yield f"table {TABLE} {{{BASE}}}\n{nodes}\n"
    specs = [spec for spec in specs if ":" not in spec.vip]
    for start in range(0, len(specs), TOGETHER):
        yield _services(specs[start : start + TOGETHER], pods)


def _services(specs: Sequence[Spec], pods: str) -> str:
    served = [spec for spec in specs if spec.backends]
    on_nodes = [spec for spec in served if spec.node_port]
    elements = {
        "cluster-ips": [spec.vip for spec in specs],
        "no-endpoint-services": [f"{_end(spec)} : goto reject-chain" for spec in specs if not spec.backends],
        "service-ips": [f"{_end(spec)} : goto service-{spec.name}" for spec in served],
        "service-nodeports": [f"tcp . {spec.node_port} : goto external-{spec.name}" for spec in on_nodes],
    }
    chains = "\n".join(chain for spec in served for chain in _chains(spec, pods))
    lines = [f"table {TABLE} {{\n{chains}\n}}"]
    lines += [f"add element {TABLE} {name} {{ {', '.join(items)} }}" for name, items in elements.items() if items]
    return "\n".join(lines) + "\n"


def _end(spec: Spec) -> str:
    return f"{spec.vip} . tcp . {spec.port}"


def _chains(spec: Spec, pods: str) -> Iterator[str]:
    chains = [f"endpoint-{spec.name}-{number}" for number in range(len(spec.backends))]
    for chain, (address, port) in zip(chains, spec.backends, strict=True):
        yield f"""chain {chain} {{
  ip saddr {address} jump mark-for-masquerade
  meta l4proto tcp dnat to {address}:{port}
}}"""
    choice = ", ".join(f"{number} : goto {chain}" for number, chain in enumerate(chains))
    yield f"""chain service-{spec.name} {{
  ip daddr {spec.vip} tcp dport {spec.port} ip saddr != {pods} jump mark-for-masquerade
  numgen random mod {len(chains)} vmap {{ {choice} }}
}}"""
    if spec.node_port:
        yield f"chain external-{spec.name} {{ jump mark-for-masquerade; goto service-{spec.name}; }}"
