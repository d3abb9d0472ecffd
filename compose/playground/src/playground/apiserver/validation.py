"""What the server refuses: the checks of the real one that matter to a dataplane, in its words. Pure."""

import ipaddress
import re
from typing import Any

from playground.apiserver.kinds import (
    ENDPOINT_SLICE,
    NETWORK_LOGGING,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Kind,
    Object,
    invalid,
)

Causes = list[tuple[str, str]]

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LONGEST_AFFINITY = 86400  # seconds
MOST_ANNOTATIONS = 256 * 1024  # bytes of keys and values
POLICIES = ("Cluster", "Local")
PROTOCOLS = ("TCP", "UDP", "SCTP")
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def validate(kind: Kind, item: Object) -> None:
    """Raises StatusError (422) with all causes."""
    causes: Causes = []
    name = item["metadata"]["name"]
    if not SUBDOMAIN.fullmatch(name) or len(name) > 253:
        causes.append(("metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain is expected'))
    _metadata(item["metadata"], causes)
    check = {
        POD: _pod,
        SERVICE: _service,
        ENDPOINT_SLICE: _slice,
        NETWORK_POLICY: _policy,
        NETWORK_LOGGING: _logging,
    }.get(kind)
    if check:
        check(item, causes)
    if causes:
        raise invalid(kind, name, causes)


def _metadata(metadata: Object, causes: Causes) -> None:
    _labels(metadata.get("labels") or {}, "metadata.labels", causes)
    size = sum(len(key) + len(value) for key, value in (metadata.get("annotations") or {}).items())
    if size > MOST_ANNOTATIONS:
        causes.append(("metadata.annotations", f"Too long: may not be more than {MOST_ANNOTATIONS} bytes"))


def _labels(labels: Object, field: str, causes: Causes) -> None:
    for value in labels.values():
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            causes.append((field, f'Invalid value: "{value}": a valid label must be at most 63 of [-A-Za-z0-9_.]'))


def _address(text: Any, field: str, family: str | None, causes: Causes) -> None:
    """`family` IPv4 or IPv6; None: either. What a packet cannot be sent to from elsewhere is refused, too."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        causes.append((field, f'Invalid value: "{text}": must be a valid {family or "IP"} address'))
        return
    if family not in (None, f"IPv{address.version}"):
        causes.append((field, f'Invalid value: "{text}": must be a valid {family} address'))
    if address.is_loopback or address.is_unspecified or address.is_link_local:
        causes.append((field, f'Invalid value: "{text}": may not be unspecified, loopback or link-local'))


def _port(value: Any, field: str, causes: Causes) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        causes.append((field, f"Invalid value: {value}: must be between 1 and 65535, inclusive"))


def _protocol(value: Any, field: str, causes: Causes) -> None:
    if value not in PROTOCOLS:
        causes.append((field, f'Unsupported value: "{value}": supported values: "SCTP", "TCP", "UDP"'))


def _port_or_name(value: Any, field: str, causes: Causes) -> None:
    if isinstance(value, str):
        if not PORT_NAME.fullmatch(value):
            causes.append((field, f'Invalid value: "{value}": must be a port name of at most 15 characters'))
    else:
        _port(value, field, causes)


def _pod(item: Object, causes: Causes) -> None:
    containers = item["spec"].get("containers") or []
    if not containers:
        causes.append(("spec.containers", "Required value"))
    for index, container in enumerate(containers):
        where = f"spec.containers[{index}]"
        if not LABEL.fullmatch(container.get("name") or ""):
            causes.append((f"{where}.name", f'Invalid value: "{container.get("name", "")}": RFC 1123 label expected'))
        for position, port in enumerate(container.get("ports") or []):
            _port(port.get("containerPort"), f"{where}.ports[{position}].containerPort", causes)
            _protocol(port.get("protocol"), f"{where}.ports[{position}].protocol", causes)


def _service(item: Object, causes: Causes) -> None:
    spec = item["spec"]
    ports = spec.get("ports") or []
    if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        causes.append(("spec.ports", "Required value"))
    if spec["type"] not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
        causes.append(("spec.type", f'Unsupported value: "{spec["type"]}"'))
    _service_fields(spec, causes)
    seen = set()
    names = set()
    for index, port in enumerate(ports):
        where = f"spec.ports[{index}]"
        if port.get("name") in names:
            causes.append((f"{where}.name", f'Duplicate value: "{port["name"]}"'))
        names.add(port.get("name") or index)
        _port(port.get("port"), f"{where}.port", causes)
        _protocol(port.get("protocol"), f"{where}.protocol", causes)
        if len(ports) > 1 and not port.get("name"):
            causes.append((f"{where}.name", "Required value"))
        if port.get("targetPort") is not None:
            _port_or_name(port["targetPort"], f"{where}.targetPort", causes)
        key = port.get("port"), port.get("protocol")
        if key in seen:
            causes.append((where, f"Duplicate value: port {key[0]} {key[1]}"))
        seen.add(key)


def _service_fields(spec: Object, causes: Causes) -> None:
    for index, address in enumerate(spec.get("externalIPs") or []):
        _address(address, f"spec.externalIPs[{index}]", None, causes)
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if spec.get(field, "Cluster") not in POLICIES:
            causes.append(
                (f"spec.{field}", f'Unsupported value: "{spec[field]}": supported values: "Cluster", "Local"')
            )
    seconds = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds", 1)
    if not 0 < seconds <= LONGEST_AFFINITY:
        field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        causes.append((field, f"Invalid value: {seconds}: must be greater than 0 and less than {LONGEST_AFFINITY}"))


def _slice(item: Object, causes: Causes) -> None:
    family = item.get("addressType")
    if family not in ("IPv4", "IPv6", "FQDN"):
        causes.append(("addressType", f'Unsupported value: "{family}"'))
    for index, endpoint in enumerate(item.get("endpoints") or []):
        addresses = endpoint.get("addresses") or []
        if not addresses:
            causes.append((f"endpoints[{index}].addresses", "Required value: must contain at least 1 address"))
        for position, address in enumerate(addresses):
            if family in ("IPv4", "IPv6"):
                _address(address, f"endpoints[{index}].addresses[{position}]", family, causes)
    names = set()
    for index, port in enumerate(item.get("ports") or []):
        # Any number is taken: the real server does not look at it.
        if port.get("name") in names:
            causes.append((f"ports[{index}].name", f'Duplicate value: "{port["name"]}"'))
        names.add(port.get("name"))
        _protocol(port.get("protocol"), f"ports[{index}].protocol", causes)


def _logging(item: Object, causes: Causes) -> None:
    """The rules of compose/kubernetes/crds/."""
    if item["metadata"]["name"] != "default":
        causes.append(("metadata.name", f'Invalid value: "{item["metadata"]["name"]}": must be default'))
    cluster = (item.get("spec") or {}).get("cluster") or {}
    for name in ("allow", "deny"):
        action = cluster.get(name) or {}
        if action.get("delegate") and not action.get("log"):
            causes.append((f"spec.cluster.{name}", "Invalid value: delegate needs log"))


def _policy(item: Object, causes: Causes) -> None:
    spec = item["spec"]
    _selector(spec.get("podSelector") or {}, "spec.podSelector", causes)
    for index, kind in enumerate(spec.get("policyTypes") or []):
        if kind not in ("Ingress", "Egress"):
            causes.append((f"spec.policyTypes[{index}]", f'Unsupported value: "{kind}"'))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or []):
            where = f"spec.{direction}[{index}]"
            for position, port in enumerate(rule.get("ports") or []):
                _policy_port(port, f"{where}.ports[{position}]", causes)
            for position, peer in enumerate(rule.get(peers) or []):
                _peer(peer, f"{where}.{peers}[{position}]", causes)


def _policy_port(port: Object, where: str, causes: Causes) -> None:
    _protocol(port.get("protocol"), f"{where}.protocol", causes)
    first, last = port.get("port"), port.get("endPort")
    if first is not None:
        _port_or_name(first, f"{where}.port", causes)
    if last is not None:
        if not isinstance(first, int):
            causes.append((f"{where}.endPort", f"Invalid value: {last}: may not be specified without a numeric port"))
        elif not first <= last <= 65535:
            causes.append((f"{where}.endPort", f"Invalid value: {last}: must be greater than or equal to `port`"))


def _peer(peer: Object, where: str, causes: Causes) -> None:
    if not peer:
        causes.append((where, "Required value: must specify a peer"))
    for name in ("podSelector", "namespaceSelector"):
        if peer.get(name) is not None:
            _selector(peer[name], f"{where}.{name}", causes)
    block = peer.get("ipBlock")
    if block is None:
        return
    if len(peer) > 1:
        causes.append((where, "Forbidden: may not specify both ipBlock and another peer"))
    try:
        network = ipaddress.ip_network(block.get("cidr", ""), strict=False)
    except ValueError:
        causes.append((f"{where}.ipBlock.cidr", f'Invalid value: "{block.get("cidr")}": must be a valid CIDR value'))
        return
    for index, text in enumerate(block.get("except") or []):
        try:
            inner = ipaddress.ip_network(text, strict=False)
            within = inner.version == network.version and inner.subnet_of(network) and inner != network  # type: ignore[arg-type]
        except ValueError:
            within = False
        if not within:
            text = f'Invalid value: "{text}": must be a strict subset of `cidr`'
            causes.append((f"{where}.ipBlock.except[{index}]", text))


def _selector(selector: Object, where: str, causes: Causes) -> None:
    _labels(selector.get("matchLabels") or {}, f"{where}.matchLabels", causes)
    for index, item in enumerate(selector.get("matchExpressions") or []):
        field = f"{where}.matchExpressions[{index}]"
        operator, values = item.get("operator"), item.get("values") or []
        if operator not in OPERATORS:
            causes.append((f"{field}.operator", f'Invalid value: "{operator}": not a valid selector operator'))
        elif operator in ("In", "NotIn") and not values:
            causes.append((f"{field}.values", "Required value: must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            text = "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            causes.append((f"{field}.values", text))
