"""What the policy suite goes through: three namespaces of three pods, and at each step who reaches whom.

In the manner of the Kubernetes end-to-end tests of network policies. Pods are written namespace/name: x/a … z/c. Each
step says which policies and labels there are, from then on, and by hand what follows; the model says it once more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

NAMESPACES, NAMES = ("x", "y", "z"), ("a", "b", "c")
PODS = [f"{home}/{name}" for home in NAMESPACES for name in NAMES]
NUMBERS = (80, 81)


@dataclass(frozen=True)
class Probe:
    source: str
    target: str
    protocol: str
    port: int

    @property
    def pair(self) -> tuple[str, str]:
        return self.source, self.target

    def to(self, home: str, *names: str) -> bool:
        return self.target.startswith(f"{home}/") and (not names or self.target[-1] in names)

    def by(self, home: str, *names: str) -> bool:
        return self.source.startswith(f"{home}/") and (not names or self.source[-1] in names)


Truth = Callable[[Probe], bool]


@dataclass(frozen=True)
class Step:
    name: str
    policies: Sequence[Object]
    truth: Truth  # but for a pod to itself, which is always allowed
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # beside `ns`
    pod_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # beside `pod`


def policy(where: str, pods: Object | None = None, **spec: Any) -> Object:
    home, name = where.split("/")
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": home},
        "spec": {"podSelector": pods or {}, **spec},
    }


def match(**labels: str) -> Object:
    return {"matchLabels": labels}


def expression(key: str, operator: str, *values: str) -> Object:
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


def pods(**labels: str) -> Object:
    return {"podSelector": match(**labels)}


def spaces(selector: Object, **labels: str) -> Object:
    return {"namespaceSelector": selector, **(pods(**labels) if labels else {})}


def block(cidr: str, *excepts: str) -> Object:
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepts)} if excepts else {})}}


A, X, Y = match(pod="a"), match(ns="x"), match(ns="y")
TO_A: Truth = lambda p: not p.to("x", "a")  # noqa: E731
BOTH, OUT = ["Ingress", "Egress"], ["Egress"]


def steps(addresses: Mapping[str, str]) -> list[Step]:
    """`addresses`: pod → IPv4 address."""
    host = {pod: f"{address}/32" for pod, address in addresses.items()}
    return [
        Step("no policy", [], lambda _: True),
        Step("a namespace that nobody may enter", [policy("x/deny")], lambda p: not p.to("x")),
        Step(
            "a namespace that nobody may enter or leave",
            [policy("x/deny", policyTypes=BOTH)],
            lambda p: not p.to("x") and not p.by("x"),
        ),
        Step("egress alone", [policy("x/deny", policyTypes=OUT)], lambda p: not p.by("x")),
        Step(
            "pods of the namespace, by label",
            [policy("x/p", A, ingress=[{"from": [pods(pod="b")]}])],
            lambda p: TO_A(p) or p.by("x", "b"),
        ),
        Step(
            "all pods of the namespace",
            [policy("x/p", A, ingress=[{"from": [pods()]}])],
            lambda p: TO_A(p) or p.by("x"),
        ),
        Step(
            "namespaces by label",
            [policy("x/p", A, ingress=[{"from": [spaces(Y)]}])],
            lambda p: TO_A(p) or p.by("y"),
        ),
        Step(
            "a namespace by its name",
            [policy("x/p", A, ingress=[{"from": [spaces(match(**{"kubernetes.io/metadata.name": "z"}))]}])],
            lambda p: TO_A(p) or p.by("z"),
        ),
        Step(
            "namespaces and pods by expressions",
            [
                policy(
                    "x/p",
                    expression("pod", "In", "a", "c"),
                    ingress=[
                        {
                            "from": [
                                {
                                    "namespaceSelector": expression("ns", "NotIn", "x"),
                                    "podSelector": expression("pod", "NotIn", "c"),
                                }
                            ]
                        }
                    ],
                )
            ],
            lambda p: not p.to("x", "a", "c") or (not p.by("x") and p.source[-1] != "c"),
        ),
        Step(
            "a namespace and a pod in one peer",
            [policy("x/p", A, ingress=[{"from": [spaces(Y, pod="b")]}])],
            lambda p: TO_A(p) or p.by("y", "b"),
        ),
        Step(
            "a namespace or a pod, as two peers",
            [policy("x/p", A, ingress=[{"from": [spaces(Y), pods(pod="b")]}])],
            lambda p: TO_A(p) or p.by("y") or p.by("x", "b"),
        ),
        Step(
            "one port of one protocol",
            [policy("x/p", A, ingress=[{"ports": [{"port": 81, "protocol": "TCP"}]}])],
            lambda p: TO_A(p) or (p.protocol, p.port) == ("TCP", 81),
        ),
        Step(
            "a protocol",
            [policy("x/p", A, ingress=[{"ports": [{"protocol": "UDP"}]}])],
            lambda p: TO_A(p) or p.protocol == "UDP",
        ),
        Step(
            "a port name",
            [policy("x/p", A, ingress=[{"ports": [{"port": "serve-81-udp", "protocol": "UDP"}]}])],
            lambda p: TO_A(p) or (p.protocol, p.port) == ("UDP", 81),
        ),
        Step(
            "a range of ports for SCTP, a port for TCP",
            [policy("x/p", A, ingress=[{"ports": [{"port": 80, "endPort": 90, "protocol": "SCTP"}, {"port": 80}]}])],
            lambda p: TO_A(p) or p.protocol == "SCTP" or (p.protocol, p.port) == ("TCP", 80),
        ),
        Step(
            "ports for some, everything for others",
            [
                policy(
                    "x/p", A, ingress=[{"from": [spaces(Y)], "ports": [{"port": 80}]}, {"from": [spaces({}, pod="c")]}]
                )
            ],
            lambda p: TO_A(p) or p.source[-1] == "c" or (p.by("y") and (p.protocol, p.port) == ("TCP", 80)),
        ),
        Step(
            "policies add up",
            [
                policy("x/deny"),
                policy("x/p", A, ingress=[{"from": [spaces(Y)], "ports": [{"port": 80}]}]),
                policy("x/q", A, ingress=[{"from": [pods(pod="b")], "ports": [{"port": 81}]}]),
            ],
            lambda p: (
                not p.to("x")
                or (p.to("x", "a") and p.by("y") and (p.protocol, p.port) == ("TCP", 80))
                or (p.to("x", "a") and p.by("x", "b") and (p.protocol, p.port) == ("TCP", 81))
            ),
        ),
        Step("a policy becomes one that allows everything", [policy("x/deny", ingress=[{}])], lambda _: True),
        Step("and one that allows nothing", [policy("x/deny", ingress=[])], lambda p: not p.to("x")),
        Step(
            "egress to pods elsewhere",
            [policy("x/p", A, policyTypes=OUT, egress=[{"to": [spaces(Y, pod="b")]}])],
            lambda p: not p.by("x", "a") or p.to("y", "b"),
        ),
        Step(
            "egress to a port name of each receiver",
            [policy("x/p", A, policyTypes=OUT, egress=[{"to": [spaces(Y)], "ports": [{"port": "serve-80-tcp"}]}])],
            lambda p: not p.by("x", "a") or (p.to("y") and (p.protocol, p.port) == ("TCP", 80)),
        ),
        Step(
            "both ends must allow",
            [
                policy("x/p", A, policyTypes=OUT, egress=[{"to": [spaces({}, pod="b")]}]),
                policy(
                    "y/p", policyTypes=["Ingress"], ingress=[{"from": [spaces(X, pod="a")], "ports": [{"port": 80}]}]
                ),
            ],
            lambda p: (
                (not p.by("x", "a") or p.target[-1] == "b")
                and (not p.to("y") or (p.by("x", "a") and (p.protocol, p.port) == ("TCP", 80)))
            ),
        ),
        Step(
            "a namespace that has not the label yet",
            [policy("x/p", A, ingress=[{"from": [spaces(match(team="red"))]}])],
            TO_A,
        ),
        Step(
            "and gets it",
            [policy("x/p", A, ingress=[{"from": [spaces(match(team="red"))]}])],
            lambda p: TO_A(p) or p.by("z"),
            namespace_labels={"z": {"team": "red"}},
        ),
        Step(
            "another one does, and the first has another",
            [policy("x/p", A, ingress=[{"from": [spaces(match(team="red"))]}])],
            lambda p: TO_A(p) or p.by("y"),
            namespace_labels={"z": {"team": "blue"}, "y": {"team": "red"}},
        ),
        Step(
            "pods get the label that a policy selects, and that it allows",
            [policy("x/p", match(role="db"), ingress=[{"from": [pods(role="client")]}])],
            lambda p: not p.to("x", "a") or p.by("x", "c"),
            pod_labels={"x/a": {"role": "db"}, "x/c": {"role": "client"}},
        ),
        Step(
            "they change places",
            [policy("x/p", match(role="db"), ingress=[{"from": [pods(role="client")]}])],
            lambda p: not p.to("x", "c") or p.by("x", "a"),
            pod_labels={"x/c": {"role": "db"}, "x/a": {"role": "client"}},
        ),
        Step(
            "a block of one pod's address",
            [policy("x/p", A, ingress=[{"from": [block(host["y/b"])]}])],
            lambda p: TO_A(p) or p.by("y", "b"),
        ),
        Step(
            "a block of everything, but for one pod",
            [policy("x/p", A, ingress=[{"from": [block("0.0.0.0/0", host["y/b"])]}])],
            lambda p: TO_A(p) or not p.by("y", "b"),
        ),
        Step(
            "its exceptions become others",
            [policy("x/p", A, ingress=[{"from": [block("0.0.0.0/0", host["z/a"], host["z/c"])]}])],
            lambda p: TO_A(p) or not p.by("z", "a", "c"),
        ),
        Step(
            "what one policy excepts another allows",
            [
                policy("x/p", A, ingress=[{"from": [block("0.0.0.0/0", host["y/b"])]}]),
                policy("x/q", A, ingress=[{"from": [block(host["y/b"])], "ports": [{"port": 81}]}]),
            ],
            lambda p: TO_A(p) or not p.by("y", "b") or (p.protocol, p.port) == ("TCP", 81),
        ),
        Step(
            "egress to blocks, with a port name",
            [
                policy(
                    "x/p",
                    A,
                    policyTypes=OUT,
                    egress=[{"to": [block("10.0.0.0/8", host["z/b"])], "ports": [{"port": "serve-81-tcp"}]}],
                )
            ],
            lambda p: not p.by("x", "a") or (p.target != "z/b" and (p.protocol, p.port) == ("TCP", 81)),
        ),
        Step("and all policies gone", [], lambda _: True),
    ]
