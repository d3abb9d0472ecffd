"""For people: what is behind each frontend of this node, who gets it, and why a backend is left out. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any

from node_agent.choice import why_not
from node_agent.frontends import HOST_PORT, IPV6, LOCAL, family, frontends
from node_agent.hostports import HostPortView
from node_agent.services import Key, ServiceView, Wanted
from tidegate.records import Backend, Service
from tidegate.records.addresses import unpack_cidr, write_end

Row = dict[str, Any]


def explain(services: ServiceView, host_ports: HostPortView) -> Iterator[Row]:
    """Each selection of each Service's ports, then each host port of this node's pods."""
    for key, service in sorted(services.services.items()):
        yield from _explain_service(services, key, service)
    yield from host_ports.explain()


def explain_selection(services: ServiceView, host_ports: HostPortView, selection: int) -> Row | None:
    """The row of that selection; None where it is not wanted (any more)."""
    if selection & HOST_PORT:
        rows: Iterable[Row] = host_ports.explain()
    else:
        key = services.owner(selection)
        rows = _explain_service(services, key, services.services[key]) if key else ()
    return next((row for row in rows if row["selection"] == selection), None)


def _explain_service(services: ServiceView, key: Key, service: Service) -> Iterator[Row]:
    order = {port.id: index for index, port in enumerate(service.ports)}
    found = list(services.wanted(key, service))
    for wanted in sorted(found, key=lambda w: (order[w.port.id], w.number & IPV6, w.number & LOCAL)):
        selection, local = wanted.selection, bool(wanted.number & LOCAL)
        chosen, left_out = [], {}
        for backend in sorted(wanted.among, key=lambda backend: backend.address):
            reason = why_not(backend, selection, services.place, local)
            text = write_end(backend.address, backend.ports[wanted.port.name])
            if reason:
                left_out[text] = reason
            else:
                chosen.append(text)
        for backend in services.backends(key):
            if wanted.port.name not in backend.ports and family(backend.address) == wanted.number & IPV6:
                left_out[_without_port(backend)] = f"its EndpointSlice has no port {wanted.port.name!r}"
        leading, ranged = _leading_to(services, service, wanted)
        yield {
            "namespace": key[0],
            "name": key[1],
            "type": service.type,
            "selection": wanted.number,
            "port": wanted.port.port,
            "protocol": wanted.port.protocol,
            "family": "IPv6" if wanted.number & IPV6 else "IPv4",
            "traffic_policy": "Local" if local else "Cluster",
            "affinity_seconds": service.affinity_seconds,
            "source_ranges": [unpack_cidr(*each) for each in service.source_ranges] if ranged else [],
            "frontends": leading,
            "backends": chosen,
            "left_out": left_out,
            "refusal": selection.refusal.value if selection.refusal else "",
        }


def _without_port(backend: Backend) -> str:
    return write_end(backend.address, 0).removesuffix(":0")


def _leading_to(services: ServiceView, service: Service, wanted: Wanted) -> tuple[list[str], bool]:
    """Frontends behind which some clients get this selection, and which clients; whether one has source ranges."""
    found, ranged = [], False
    for frontend in frontends(service, services.own):
        inside, outside = frontend.service == wanted.number, frontend.outside == wanted.number
        if frontend.port and frontend.protocol == wanted.port.protocol and (inside or outside):
            ranged = ranged or frontend.ranges
            whom = "" if inside and outside else " (in the cluster)" if inside else " (outside)"
            limited = " (source ranges)" if frontend.ranges else ""
            found.append(f"{write_end(frontend.address, frontend.port)}{whom}{limited}")
    return found, ranged
