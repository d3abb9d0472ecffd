"""The table: what each value of Service, EndpointSlice and Node that matters does to the choice of backends.

Expectations come from the documentation of the API (Service, EndpointSlice), KEP-1669 (terminating endpoints),
KEP-1860 (ipMode), KEP-2086 (internalTrafficPolicy), KEP-2433 and KEP-3015 (hints), and from the cases of kube-proxy's
tests.
The words are those of tests/choice/table.py. The rows are run by tests/node_agent, tests/bpf and tests/cluster.
"""

from tests.choice.table import BOTH, IPV4, IPV6, Object, Row, row

ALL = "a1 a2 a3"
NODE_PORT: Object = {"type": "NodePort"}
BALANCER: Object = {"type": "LoadBalancer"}
EVERYTHING: Object = {**BALANCER, "external": True}
INTERNAL: Object = {"internalTrafficPolicy": "Local"}
EXTERNAL: Object = {"externalTrafficPolicy": "Local"}
UDP: Object = {"port": 53, "protocol": "UDP"}
OTHER_PROXY = {"service.kubernetes.io/service-proxy-name": "other"}
AUTO = {"service.kubernetes.io/topology-mode": "Auto"}
HEADLESS = {"service.kubernetes.io/headless": ""}
EVERYWHERE = """
    cluster  | inside outside           | {0}
    port     | inside outside elsewhere | {0}
    lb       | inside outside           | {0}
    external | inside outside           | {0}
"""
NOBODY = """
    cluster  | inside outside           | passed
    port     | inside outside elsewhere | passed
    lb       | inside outside           | passed
    external | inside outside           | passed
"""


def port_of_slice(name: str, port: int, protocol: str = "TCP") -> Object:
    return {"name": name, "port": port, "protocol": protocol}


KINDS: dict[str, Row] = {
    "ClusterIP": row(
        ALL,
        """
        cluster        | inside outside | a1 a2 a3
        cluster:81     | inside outside | refused
        cluster:80/UDP | inside outside | refused
        """,
    ),
    "ClusterIP, UDP": row(ALL, "cluster | inside outside | a1 a2 a3", UDP),
    "NodePort": row(
        ALL,
        """
        cluster    | inside outside           | a1 a2 a3
        port       | inside outside elsewhere | a1 a2 a3
        loopback   | nodes                    | passed
        host:32767 | inside outside elsewhere | passed
        """,
        **NODE_PORT,
    ),
    "NodePort, UDP": row(ALL, "port | inside outside elsewhere | a1 a2 a3", UDP, **NODE_PORT),
    "load balancer, ipMode VIP and Proxy": row(
        ALL,
        """
        cluster   | inside outside           | a1 a2 a3
        port      | inside outside elsewhere | a1 a2 a3
        lb        | inside outside           | a1 a2 a3
        lb:81     | inside outside           | refused
        lb:80/UDP | inside outside           | refused
        proxy     | inside outside           | passed
        """,
        **BALANCER,
    ),
    "external IPs": row(
        ALL,
        """
        external    | inside outside | a1 a2 a3
        external:81 | inside outside | passed
        """,
        external=True,
    ),
    "external IPs, UDP": row(ALL, "external | inside outside | a1 a2 a3", UDP, external=True),
    "host port of a pod": row(
        "",
        """
        host           | inside@2 outside@2 elsewhere@2       | h2
        host:18081/UDP | inside@2 outside@2 elsewhere@2       | h2
        host           | inside@1,3 outside@1,3 elsewhere@1,3 | passed
        """,
        families=BOTH,
    ),
    "headless": row(
        ALL,
        """
        cluster  | inside outside | passed
        external | inside outside | passed
        """,
        clusterIP="None",
        external=True,
    ),
    "ExternalName": row(
        "", "external | inside outside | passed", type="ExternalName", externalName="example.org", external=True
    ),
    "of another proxy": row(ALL, NOBODY, labels=OTHER_PROXY, **EVERYTHING),
    "labelled headless": row(ALL, NOBODY, labels=HEADLESS, **EVERYTHING),
    "nobody behind any of them": row("", EVERYWHERE.format("refused"), **EVERYTHING),
    "nobody behind any of them, UDP": row("", EVERYWHERE.format("refused"), UDP, **EVERYTHING),
}

PORTS: dict[str, Row] = {
    "several ports, each with backends of its own": Row(
        """
        cluster:80     | inside outside | a1 a2
        cluster:53/UDP | inside outside | a1 a2
        cluster:81     | inside outside | a2
        cluster:82     | inside outside | refused
        """,
        slices=(
            ((port_of_slice("http", 8080), port_of_slice("dns", 5353, "UDP")), "a1"),
            ((port_of_slice("http", 8080), port_of_slice("dns", 5363, "UDP"), port_of_slice("alt", 8090)), "a2"),
        ),
        ports=(
            port_of_slice("http", 80),
            port_of_slice("dns", 53, "UDP"),
            port_of_slice("alt", 81),
            port_of_slice("gone", 82),
        ),
    ),
    "one number on three protocols": Row(
        """
        cluster:80      | inside outside | a1 a2
        cluster:80/UDP  | inside outside | a2 a3
        cluster:80/SCTP | pods outside   | a1 a3
        """,
        slices=(
            ((port_of_slice("tcp", 8080), port_of_slice("sctp", 9000, "SCTP")), "a1"),
            ((port_of_slice("tcp", 8080), port_of_slice("udp", 5363, "UDP")), "a2"),
            ((port_of_slice("udp", 5353, "UDP"), port_of_slice("sctp", 9001, "SCTP")), "a3"),
        ),
        ports=(port_of_slice("tcp", 80), port_of_slice("udp", 80, "UDP"), port_of_slice("sctp", 80, "SCTP")),
    ),
    "a target port by name, another number at each pod": row(
        "",
        "cluster | inside outside | a1 a2",
        {"port": 80, "targetPort": "web"},
        selector={"named": "yes"},
    ),
    "one address in two slices": Row(
        "cluster | inside outside | a1 a2",
        slices=(((port_of_slice("", 8080),), "a1 a2"), ((port_of_slice("", 8080),), "a2/ending a3/ending")),
    ),
}

FAMILIES: dict[str, Row] = {
    "single stack, IPv6": row(ALL, EVERYWHERE.format(ALL), families=(IPV6,), **EVERYTHING),
    "single stack, IPv6, UDP": row(ALL, EVERYWHERE.format(ALL), UDP, families=(IPV6,), **EVERYTHING),
    "PreferDualStack": row(ALL, EVERYWHERE.format(ALL), families=BOTH, **EVERYTHING),
    "RequireDualStack, IPv6 first": row(
        ALL, EVERYWHERE.format(ALL), families=(IPV6, IPV4), ipFamilyPolicy="RequireDualStack", **EVERYTHING
    ),
    "backends in one of two families": row("4:a1", EVERYWHERE.format("a1 / refused"), families=BOTH, **EVERYTHING),
    "policy Local, local backends in one of two families": row(
        "4:a1 a2",
        """
        cluster | inside@1 outside@1 | a1 / dropped
        cluster | inside@2 outside@2 | a2
        """,
        families=BOTH,
        **INTERNAL,
    ),
}

STATES: dict[str, Row] = {
    "only the ready": row("a1 a2/waiting b2/serving", "cluster | inside outside | a1"),
    "none is ready": row("a1/waiting a2/waiting", EVERYWHERE.format("refused"), **EVERYTHING),
    "serving without being ready is for the terminating only": row(
        "a1/serving a2/serving", "cluster | inside outside | refused"
    ),
    "conditions that are absent": row("a1/unknown a2/waiting", "cluster | inside outside | a1"),
    "terminating beside ready ones": row("a1 a2/ending", EVERYWHERE.format("a1"), **EVERYTHING),
    "all terminate": row("a1/ending a2/ending", EVERYWHERE.format("a1 a2"), **EVERYTHING),
    "all terminate, one no longer serves": row("a1/ending a2/ended", "cluster | inside outside | a1"),
    "all have ended serving": row("a1/ended a2/ended", "cluster | inside outside | refused"),
    "terminating and waiting": row("a1/ending a2/waiting", "cluster | inside outside | a1"),
    "published though they terminate": row("a1/published a2", "cluster | inside outside | a1 a2"),
    "publishNotReadyAddresses": row(
        "",
        "cluster | inside outside | u1",
        {"port": 80, "targetPort": 8080},
        selector={"app": "unready"},
        publishNotReadyAddresses=True,
    ),
    "without publishNotReadyAddresses": row(
        "", "cluster | inside outside | refused", {"port": 80, "targetPort": 8080}, selector={"app": "unready"}
    ),
}

POLICIES: dict[str, Row] = {
    "internal Local": row(
        "a1 b1 a2",
        """
        cluster | inside@1 outside@1       | a1 b1
        cluster | inside@2 outside@2       | a2
        cluster | inside@3 outside@3       | dropped
        port    | inside outside elsewhere | a1 b1 a2
        """,
        **NODE_PORT,
        **INTERNAL,
    ),
    "internal Local, UDP": row(
        "a1 a2",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@3 outside@3 | dropped
        """,
        UDP,
        **INTERNAL,
    ),
    "internal Local, nobody anywhere": row("", "cluster | inside outside | refused", **INTERNAL),
    "internal Local, nobody ready anywhere": row("a1/waiting", "cluster | inside outside | refused", **INTERNAL),
    "internal Local, no node is said": row("a1/homeless", "cluster | inside outside | dropped", **INTERNAL),
    "internal Local, here they terminate": row(
        "a1/ending b1/ended a2",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@2 outside@2 | a2
        cluster | inside@3 outside@3 | dropped
        """,
        **INTERNAL,
    ),
    "internal Local, here one is ready and one terminates": row(
        "a1/ending b1 a2", "cluster | inside@1 outside@1 | b1", **INTERNAL
    ),
    "internal Local, here nobody serves any more": row(
        "a1/ended b1/waiting a2", "cluster | inside@1 outside@1 | dropped", **INTERNAL
    ),
    "internal Local, elsewhere they only terminate": row(
        "a1/waiting a2/ending",
        """
        cluster | inside@1 outside@1 | dropped
        cluster | inside@2 outside@2 | a2
        """,
        **INTERNAL,
    ),
    "external Local": row(
        "a1 a2",
        """
        cluster  | inside outside   | a1 a2
        port     | inside elsewhere | a1 a2
        lb       | inside           | a1 a2
        external | inside           | a1 a2
        port     | outside@1        | a1
        lb       | outside@1        | a1
        external | outside@1        | a1
        port     | outside@2        | a2
        lb       | outside@2        | a2
        external | outside@2        | a2
        port     | outside@3        | dropped
        lb       | outside@3        | dropped
        external | outside@3        | dropped
        """,
        **EVERYTHING,
        **EXTERNAL,
    ),
    "external Local, UDP": row(
        "a1 a2",
        """
        port | inside elsewhere | a1 a2
        port | outside@1        | a1
        port | outside@3        | dropped
        """,
        UDP,
        **NODE_PORT,
        **EXTERNAL,
    ),
    "external Local, nobody anywhere": row("", EVERYWHERE.format("refused"), **EVERYTHING, **EXTERNAL),
    "external Local, here they terminate": row(
        "a1/ending a2",
        """
        port | inside elsewhere | a2
        port | outside@1        | a1
        port | outside@2        | a2
        """,
        **NODE_PORT,
        **EXTERNAL,
    ),
    "external Local, all terminate": row(
        "a1/ending a2/ending",
        """
        port | inside elsewhere | a1 a2
        port | outside@1        | a1
        port | outside@3        | dropped
        """,
        **NODE_PORT,
        **EXTERNAL,
    ),
    "both Local": row(
        "a1 a2",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@3 outside@3 | dropped
        lb      | inside             | a1 a2
        lb      | outside@2          | a2
        lb      | outside@3          | dropped
        """,
        families=BOTH,
        **BALANCER,
        **INTERNAL,
        **EXTERNAL,
    ),
}

HINTS: dict[str, Row] = {
    "zones": row(
        "a1@zone-a a2@zone-b a3@zone-b",
        """
        cluster | inside@1 outside@1             | a1
        cluster | inside@2 outside@2             | a2 a3
        cluster | inside@3 outside@3             | a1 a2 a3
        port    | inside@1 outside@1 elsewhere@1 | a1
        """,
        families=BOTH,
        **NODE_PORT,
    ),
    "zones, one endpoint without a hint": row("a1@zone-a a2", "cluster | inside outside | a1 a2"),
    "zones, nobody for this one": row("a1@zone-b a2@zone-c", "cluster | inside@1 outside@1 | a1 a2"),
    "zones, several to an endpoint": row(
        "a1@zone-a,zone-b a2@zone-b b2@zone-c",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@2 outside@2 | a1 a2
        """,
    ),
    "zones, who is not ready needs no hint": row("a1@zone-a b1/waiting a2@zone-b", "cluster | inside@1 outside@1 | a1"),
    "zones, this one's is not ready": row("a1/waiting@zone-a a2@zone-b", "cluster | inside@1 outside@1 | a2"),
    "zones, while all terminate": row("a1/ending@zone-a a2/ending@zone-b", "cluster | inside@1 outside@1 | a1 a2"),
    "zones and the policy Local": row(
        "a1@zone-b b1@zone-a a2@zone-a",
        """
        cluster | inside@1 outside@1 | a1 b1
        cluster | inside@3 outside@3 | dropped
        """,
        **INTERNAL,
    ),
    "zones for some clients, the policy Local for others": row(
        "a1@zone-a b1@zone-b a2@zone-a b2@zone-b",
        """
        port | inside@1 elsewhere@1 | a1 a2
        port | outside@1            | a1 b1
        port | inside@2 elsewhere@2 | b1 b2
        port | outside@2            | a2 b2
        """,
        **NODE_PORT,
        **EXTERNAL,
    ),
    "nodes": row(
        "a1%node-1 a2%node-2 a3%node-3",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@2 outside@2 | a2
        cluster | inside@3 outside@3 | a3
        """,
        families=BOTH,
    ),
    "nodes before zones": row(
        "a1@zone-a%node-1 b1@zone-a%node-3 a2@zone-b%node-2",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@2 outside@2 | a2
        cluster | inside@3 outside@3 | b1
        """,
    ),
    "nodes, nobody for this one, but for its zone": row(
        "a1@zone-a%node-8 a2@zone-b%node-9",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@3 outside@3 | a1 a2
        """,
    ),
    "nodes, one endpoint without a hint": row("a1%node-1 a2", "cluster | inside outside | a1 a2"),
    "trafficDistribution PreferClose": row(
        "",
        """
        cluster | inside@1 outside@1 | a1 b1
        cluster | inside@2 outside@2 | a2
        cluster | inside@3 outside@3 | a1 b1 a2
        """,
        {"port": 80, "targetPort": 8080},
        selector={"app": "near"},
        trafficDistribution="PreferClose",
    ),
    "trafficDistribution PreferSameZone": row(
        "",
        """
        cluster | inside@1 outside@1 | a1 b1
        cluster | inside@2 outside@2 | a2
        cluster | inside@3 outside@3 | a1 b1 a2
        """,
        {"port": 80, "targetPort": 8080},
        selector={"app": "near"},
        trafficDistribution="PreferSameZone",
    ),
    "trafficDistribution PreferSameZone, a pod in no zone": row(
        "",
        "cluster | inside outside | b2 a3",
        {"port": 80, "targetPort": 8080},
        selector={"app": "far"},
        trafficDistribution="PreferSameZone",
    ),
    "trafficDistribution PreferSameNode": row(
        "",
        """
        cluster | inside@1 outside@1 | b2 a3
        cluster | inside@2 outside@2 | b2
        cluster | inside@3 outside@3 | a3
        """,
        {"port": 80, "targetPort": 8080},
        selector={"app": "far"},
        trafficDistribution="PreferSameNode",
    ),
    "topology-mode Auto, a node in no zone": row(
        "",
        "cluster | inside outside | a1 b1 a2",
        {"port": 80, "targetPort": 8080},
        selector={"app": "near"},
        annotations=AUTO,
    ),
    "topology-mode Auto, as the controller hints": row(
        "a1@zone-a b1@zone-b a2@zone-b",
        """
        cluster | inside@1 outside@1 | a1
        cluster | inside@2 outside@2 | b1 a2
        cluster | inside@3 outside@3 | a1 b1 a2
        """,
        annotations=AUTO,
    ),
    "no trafficDistribution": row(
        "", "cluster | inside outside | a1 b1 a2", {"port": 80, "targetPort": 8080}, selector={"app": "near"}
    ),
}

CLIENTS: dict[str, Row] = {
    "sessionAffinity": row(
        ALL,
        "cluster | inside outside | a1 a2 a3",
        families=BOTH,
        sessionAffinity="ClientIP",
    ),
    "sessionAffinity, NodePort": row(
        ALL,
        "port | inside outside elsewhere | a1 a2 a3",
        families=BOTH,
        sessionAffinity="ClientIP",
        **NODE_PORT,
    ),
    "sessionAffinity within the policy Local": row(
        ALL, "cluster | inside@1 outside@1 | a1", sessionAffinity="ClientIP", **INTERNAL
    ),
    "source ranges: a client outside": row(
        ALL,
        """
        lb      | outside                  | a1 a2 a3
        lb      | inside                   | dropped
        cluster | inside outside           | a1 a2 a3
        port    | inside outside elsewhere | a1 a2 a3
        lb:81   | inside outside           | refused
        """,
        loadBalancerSourceRanges=["172.30.0.250/32"],
        **BALANCER,
    ),
    "source ranges: the pods of one node": row(
        ALL,
        """
        lb | pods@1   | a1 a2 a3
        lb | pods@2,3 | dropped
        lb | nodes    | dropped
        lb | outside  | dropped
        """,
        loadBalancerSourceRanges=["10.200.1.0/24"],
        **BALANCER,
    ),
    "source ranges: of one family": row(
        ALL,
        """
        lb | outside nodes | a1 a2 a3 / dropped
        lb | pods          | dropped
        """,
        families=BOTH,
        loadBalancerSourceRanges=["172.30.0.0/16"],
        **BALANCER,
    ),
    "source ranges: of both families": row(
        ALL,
        """
        lb | outside | a1 a2 a3
        lb | pods@1  | dropped / a1 a2 a3
        lb | pods@2  | dropped
        lb | nodes   | a1 a2 a3 / dropped
        """,
        families=BOTH,
        loadBalancerSourceRanges=["172.30.0.0/16", "fd30::250/128", "fd20:0:0:1::/64"],
        **BALANCER,
    ),
    "source ranges with host bits": row(
        ALL,
        """
        lb | outside nodes | a1 a2 a3
        lb | pods          | dropped
        """,
        loadBalancerSourceRanges=["172.30.0.77/24"],
        **BALANCER,
    ),
    "source ranges without a load balancer": row(
        ALL, "cluster | inside outside | a1 a2 a3", loadBalancerSourceRanges=["192.0.2.0/24"]
    ),
    "source ranges leave external IPs alone": row(
        ALL,
        """
        external | inside outside | a1 a2 a3
        lb       | inside outside | dropped
        """,
        loadBalancerSourceRanges=["192.0.2.0/24"],
        **EVERYTHING,
    ),
    "a client that is the only backend": row("c1", "cluster | pods@1 | c1", families=BOTH),
}

ROWS: dict[str, Row] = {**KINDS, **PORTS, **FAMILIES, **STATES, **POLICIES, **HINTS, **CLIENTS}
NUMBERS = {name: number for number, name in enumerate(ROWS, 1)}
