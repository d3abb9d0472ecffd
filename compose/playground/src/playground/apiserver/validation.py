"""What the server refuses: the checks of the real one that matter to a dataplane, in its words. Pure."""

import ipaddress
import re
from typing import Any

from playground.apiserver.kinds import ENDPOINT_SLICE, NETWORK_POLICY, POD, SERVICE, Kind, Object, invalid

Causes = list[tuple[str, str]]

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
PROTOCOLS = ("TCP", "UDP", "SCTP")
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def validate(kind: Kind, item: Object) -> None:
    """Raises StatusError (422) with all causes."""
    causes: Causes = []
    name = item["metadata"]["name"]
    if not SUBDOMAIN.fullmatch(name) or len(name) > 253:
        causes.append(("metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain is expected'))
    check = {POD: _pod, SERVICE: _service, ENDPOINT_SLICE: _slice, NETWORK_POLICY: _policy}.get(kind)
    if check:
        check(item, causes)
    if causes:
        raise invalid(kind, name, causes)


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
    seen = set()
    for index, port in enumerate(ports):
        where = f"spec.ports[{index}]"
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


def _slice(item: Object, causes: Causes) -> None:
    family = item.get("addressType")
    if family not in ("IPv4", "IPv6", "FQDN"):
        causes.append(("addressType", f'Unsupported value: "{family}"'))
    for index, endpoint in enumerate(item.get("endpoints") or []):
        addresses = endpoint.get("addresses") or []
        if not addresses:
            causes.append((f"endpoints[{index}].addresses", "Required value: must contain at least 1 address"))
        for position, address in enumerate(addresses):
            if family in ("IPv4", "IPv6") and _family(address) != family:
                text = f'Invalid value: "{address}": must be a valid {family} address'
                causes.append((f"endpoints[{index}].addresses[{position}]", text))
    for index, port in enumerate(item.get("ports") or []):
        if port.get("port") is not None:
            _port(port["port"], f"ports[{index}].port", causes)
        _protocol(port.get("protocol"), f"ports[{index}].protocol", causes)


def _family(address: str) -> str | None:
    try:
        return f"IPv{ipaddress.ip_address(address).version}"
    except ValueError:
        return None


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
