"""`tidegate status`: whether it works, and what does not."""

import asyncio
from typing import Any

import click

from tidegate.cli import agents, fullness
from tidegate.cli.cluster import Cluster, UnreadableError, here, load, problems, reads_cluster
from tidegate.cli.output import output_option, show_json, show_table
from tidegate.records import (
    Endpoint,
    Identity,
    Node,
    Problem,
    Record,
    Rules,
    Service,
    Subject,
    Synced,
)
from tidegate.runtime.settings import CommonSettings

WRITERS = ("endpoint-sync", "policy-sync")
COUNTED: dict[str, type[Record]] = {
    "nodes": Node,
    "endpoints": Endpoint,
    "identities": Identity,
    "services": Service,
    "rules": Rules,
    "subjects": Subject,
}


async def _ask_all() -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(agents.status(agent) for agent in agents.find(here()))))


def collect(cluster: Cluster, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything as one value; `healthy` says whether there is nothing to do. Pure."""
    synced = cluster.all(Synced)
    writers = [
        {
            "writer": writer,
            "leader": cluster.leaders.get(writer),
            "synced": (writer,) in synced,
            "epoch": synced[(writer,)].epoch if (writer,) in synced else None,
        }
        for writer in WRITERS
    ]
    refused = [
        {"writer": writer, "kind": kind, "namespace": "" if space == "-" else space, "name": name, "reason": reason}
        for writer, kind, space, name, reason in problems(cluster)
    ]
    capacity = fullness.services(cluster)
    warnings = fullness.warnings(capacity, nodes)
    healthy = (
        all(writer["leader"] and writer["synced"] for writer in writers)
        and all(node.get("ready") and not node.get("full") and not node.get("problems") for node in nodes)
        and not any(node.get("refused") for node in nodes)
        and not any(problem.held_back for problem in cluster.all(Problem).values())
        and not cluster.unreadable
        and not warnings
    )
    return {
        "healthy": healthy,
        "revision": cluster.revision,
        "bytes": cluster.size,
        "records": {name: len(cluster.all(kind)) for name, kind in COUNTED.items()},
        "writers": writers,
        "capacity": capacity,
        "warnings": warnings,
        "problems": refused,
        "unreadable": cluster.unreadable,
        "audit": sorted(cluster.audited),
        "nodes": nodes,
    }


@click.command()
@reads_cluster
@output_option
@click.pass_context
def status(context: click.Context, common: CommonSettings, output: str) -> None:
    """Writers, records, refused objects, and the agents of this machine. Exits with 1 where something is wrong."""
    nodes = asyncio.run(_ask_all())
    try:
        cluster = load(common)
    except UnreadableError as error:
        # Traffic goes on without etcd, and so does what can be said of it.
        _show_agents(nodes, output, error)
        raise
    found = collect(cluster, nodes)
    if output == "json":
        show_json(found)
    else:
        _print(found)
    context.exit(0 if found["healthy"] else 1)


def _show_agents(nodes: list[dict[str, Any]], output: str, error: UnreadableError) -> None:
    if output == "json":
        warnings = fullness.warnings({}, nodes)
        show_json({"healthy": False, "error": error.message, "warnings": warnings, "nodes": nodes})
    else:
        _print_nodes(nodes)
        _print_warnings(fullness.warnings({}, nodes))


def _print(found: dict[str, Any]) -> None:
    show_table(
        ("writer", "leader", "state"),
        (
            (w["writer"], w["leader"] or "nobody", f"complete, epoch {w['epoch']}" if w["synced"] else "not complete")
            for w in found["writers"]
        ),
    )
    records = ", ".join(f"{count} {name}" for name, count in found["records"].items())
    click.echo(f"\netcd: revision {found['revision']}, {found['bytes']} bytes of values: {records}\n")
    if found["capacity"]:
        taken = (f"{s['entries']} of {s['capacity']} {n.replace('_', ' ')}" for n, s in found["capacity"].items())
        click.echo(f"all Services: {', '.join(taken)}\n")
    _print_nodes(found["nodes"])
    if found["audit"]:
        click.echo(f"in audit, their policies deny nothing: namespaces {', '.join(found['audit'])}")
    _print_warnings(found["warnings"])
    for problem in found["problems"]:
        where = "/".join(filter(None, (problem["namespace"], problem["name"])))
        click.echo(f"refused by {problem['writer']}: {problem['kind']} {where}: {problem['reason']}")
    for key, reason in found["unreadable"].items():
        click.echo(f"unreadable: {key}: {reason}")


def _print_warnings(warnings: list[str]) -> None:
    for text in warnings:
        click.echo(f"warning: {text}")


def _print_nodes(nodes: list[dict[str, Any]]) -> None:
    if nodes:
        show_table(("node", "state", "hooks", "pods", "fullest map", "writes", "memory", "drops"), map(_row, nodes))
    answering = [node for node in nodes if "error" not in node]
    if answering:
        click.echo()
        show_table(fullness.columns(answering), fullness.rows(answering))
        click.echo()
    for node in nodes:
        click.echo(_audit(node), nl=False)
        for name, text in node.get("refused", {}).items():
            click.echo(f"{node['node']}: {name} keeps its last state: {text}")
        for name, text in {**node.get("full", {}), **node.get("problems", {})}.items():
            click.echo(f"{node['node']}: {name}: {text}")


def _audit(node: dict[str, Any]) -> str:
    """A line, or nothing."""
    audit = node.get("audit", {})
    scopes = ["the whole node"] if audit.get("node") else [f"namespace {name}" for name in audit.get("namespaces", ())]
    if not scopes:
        return ""
    passed = ", ".join(f"{count} by {reason}" for reason, count in audit["verdicts"].items())
    return f"{node['node']}: in audit: {', '.join(scopes)}; passed so far: {passed or 'nothing'}\n"


def _row(node: dict[str, Any]) -> tuple[Any, ...]:
    if "error" in node:
        return node["node"], node["error"], "", "", "", "", "", ""
    waiting = "; ".join(text for text in node["components"].values() if text != "ready")
    maps = {name: state for name, state in node["maps"].items() if not state.get("evicts")}
    fullest, state = max(maps.items(), key=lambda item: fullness.share(item[1]))
    drops = " ".join(f"{reason}={values['packets']}" for reason, values in node["drops"].items())
    return (
        node["node"],
        "ready" if node["ready"] else waiting,
        node["attached_by"],
        len(node["endpoints"]),
        f"{fullest} {fullness.percent(state)}",
        node["map_writes_total"],
        f"{node['memory_mib']} MiB",
        drops or "none",
    )
