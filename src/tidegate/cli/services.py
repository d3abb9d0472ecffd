"""`tidegate services`."""

from typing import Any

import click

from tidegate.cli import agents, render
from tidegate.cli.cluster import backends, here, load, reads_cluster
from tidegate.cli.output import output_option, show_json, show_table
from tidegate.cli.trace import trace
from tidegate.records import Backend, Service, ServicePort
from tidegate.records.addresses import unpack_address
from tidegate.runtime.settings import CommonSettings


def _state(backend: Backend) -> str:
    if backend.ready:
        return ""
    return "terminating" if backend.terminating else "serving" if backend.serving else "not ready"


def _service_row(
    name: tuple[str, ...], service: Service, port: ServicePort, known: tuple[Backend, ...]
) -> dict[str, Any]:
    return {
        "namespace": name[0],
        "name": name[1],
        "type": service.type,
        "addresses": [unpack_address(address) for address in service.cluster_ips],
        "external_addresses": [
            unpack_address(address) for address in (*service.load_balancer_ips, *service.external_ips)
        ],
        "node_port": port.node_port or None,
        "port": port.port,
        "port_name": port.name,
        "protocol": render.protocol(port.protocol),
        "id": port.id,
        "backends": [
            {
                "address": unpack_address(backend.address),
                "port": backend.ports[port.name],
                "node": backend.node,
                "state": _state(backend) or "ready",
            }
            for backend in known
            if port.name in backend.ports
        ],
    }


def _service_rows(namespace: str | None, common: CommonSettings) -> list[dict[str, Any]]:
    cluster = load(common)
    rows: list[dict[str, Any]] = []
    for name, service in sorted(cluster.all(Service).items()):
        if namespace in (None, name[0]):
            rows += [_service_row(name, service, port, backends(cluster, name).backends) for port in service.ports]
    return rows


@click.group(invoke_without_command=True)
@reads_cluster
@click.option("-n", "--namespace", help="Only this namespace.")
@click.option("--node", help="What that node, of this machine, gives to whom, and why it leaves out the others.")
@output_option
@click.pass_context
def services(
    context: click.Context, common: CommonSettings, namespace: str | None, node: str | None, output: str
) -> None:
    """Services: frontends and backends, as etcd has them, or as a node chooses among them."""
    if context.invoked_subcommand is not None:
        return
    if node is not None:
        _show_choice(node, namespace, output)
        return
    rows = _service_rows(namespace, common)
    if output == "json":
        show_json(rows)
        return
    show_table(
        ("service", "frontend", "backends"),
        (
            (
                f"{row['namespace']}/{row['name']}",
                " ".join(_frontends(row)),
                " ".join(
                    f"{b['address']}:{b['port']}" + ("" if b["state"] == "ready" else f" ({b['state']})")
                    for b in row["backends"]
                )
                or "none",
            )
            for row in rows
        ),
    )


def _frontends(row: dict[str, Any]) -> list[str]:
    addresses = [*row["addresses"], *row["external_addresses"]]
    found = [f"{address}:{row['port']}/{row['protocol']}" for address in addresses]
    return [*found, f"<node>:{row['node_port']}/{row['protocol']}"] if row["node_port"] else found


def _show_choice(node: str, namespace: str | None, output: str) -> None:
    choices = agents.answered(agents.need(here(), node), agents.services)
    rows = [row for row in choices if namespace in (None, row["namespace"])]
    if output == "json":
        show_json(rows)
        return
    show_table(
        ("service", "type", "frontends", "policy", "backends", "left out"),
        (
            (
                f"{row['namespace']}/{row['name']}",
                row["type"],
                "\n".join(f"{frontend}/{render.protocol(row['protocol'])}" for frontend in row["frontends"]),
                row["traffic_policy"],
                "\n".join(row["backends"]) or f"none: {row['refusal']}",
                "\n".join(f"{backend}: {reason}" for backend, reason in row["left_out"].items()),
            )
            for row in rows
        ),
    )


services.add_command(trace)
