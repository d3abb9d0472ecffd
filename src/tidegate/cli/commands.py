"""`tidegate identities`, `endpoints`, `decode`, `version`."""

import base64
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tidegate.cli import render
from tidegate.cli.cluster import load, reads_cluster
from tidegate.cli.output import output_option, show_json, show_table
from tidegate.records import Endpoint, Identity, Keyspace, RecordError
from tidegate.records.addresses import unpack_address
from tidegate.records.codec import unpack
from tidegate.records.grants import WRITTEN, script
from tidegate.runtime.settings import CommonSettings


def _words(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


@click.command()
@reads_cluster
@output_option
def identities(common: CommonSettings, output: str) -> None:
    """Identities: pods of equal namespace and labels, how many of them, and the rules that hold for them."""
    cluster = load(common)
    pods: dict[int, int] = {}
    for endpoint in cluster.all(Endpoint).values():
        pods[endpoint.identity] = pods.get(endpoint.identity, 0) + 1
    rows: list[dict[str, Any]] = []
    for (number,), identity in sorted(cluster.all(Identity).items(), key=lambda item: (item[1].namespace, item[0])):
        rules = cluster.rules_of(int(number))
        rows.append(
            {
                "id": int(number),
                "namespace": identity.namespace,
                "labels": identity.labels,
                "pods": pods.get(int(number), 0),
                "judged": rules is not None,
                "policies": list(rules.policies) if rules else [],
            }
        )
    if output == "json":
        show_json(rows)
        return
    show_table(
        ("id", "namespace", "labels", "pods", "policies"),
        (
            (
                row["id"],
                row["namespace"],
                _words(row["labels"]),
                row["pods"],
                (" ".join(row["policies"]) or "none") if row["judged"] else "rules not made yet",
            )
            for row in rows
        ),
    )


@click.command()
@reads_cluster
@click.option("-n", "--namespace", help="Only this namespace.")
@output_option
def endpoints(common: CommonSettings, namespace: str | None, output: str) -> None:
    """Endpoints: pods with their addresses, nodes and identities."""
    cluster = load(common)
    rows = [
        {
            "namespace": name[0],
            "name": name[1],
            "addresses": [unpack_address(address) for address in endpoint.addresses],
            "node": endpoint.node,
            "identity": endpoint.identity,
            "workload": f"{endpoint.workload_kind}/{endpoint.workload_name}",
        }
        for name, endpoint in sorted(cluster.all(Endpoint).items())
        if not namespace or name[0] == namespace
    ]
    if output == "json":
        show_json(rows)
        return
    show_table(
        ("pod", "addresses", "node", "identity", "workload"),
        (
            (f"{r['namespace']}/{r['name']}", " ".join(r["addresses"]), r["node"], r["identity"], r["workload"])  # type: ignore[arg-type]
            for r in rows
        ),
    )


def decoded(key: str, value: bytes) -> dict[str, Any]:
    """One key and value as etcd has them, readable; a value that is no record stays as it is."""
    try:
        return {"key": key, "value": render.plain(unpack(value))}
    except RecordError as error:
        return {"key": key, "text": value.decode(errors="replace"), "note": str(error)}


@click.command()
def decode() -> None:
    """Reads what `etcdctl get … -w json` printed, from standard input, and shows keys and values."""
    raw = sys.stdin.read()
    try:
        answer = json.loads(raw)
        found = [
            decoded(base64.b64decode(item["key"]).decode(), base64.b64decode(item.get("value", "")))
            for item in answer.get("kvs", [])
        ]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        text = "standard input is not the output of etcdctl get … -w json"
        raise click.ClickException(
            f"{text} ({error}). Use: etcdctl get --prefix KEY -w json | tidegate decode"
        ) from error
    show_json(found)


def _password_files(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> Mapping[str, Path]:
    found = {}
    for text in value:
        service, _, path = text.partition("=")
        if service not in WRITTEN or not path:
            raise click.BadParameter(f"{text!r}: write SERVICE=FILE, with one of {', '.join(WRITTEN)}")
        found[service] = Path(path)
    return found


@click.command(name="etcd-roles")
@click.option("--cluster", default="default", envvar="TIDEGATE_CLUSTER", show_default=True)
@click.option(
    "--user-prefix", default="", help="Of the users' names: Common Names of clusters that share an etcd differ."
)
@click.option(
    "--password-file",
    "password_files",
    multiple=True,
    callback=_password_files,
    metavar="SERVICE=FILE",
    help="A service that logs in with a password, one word, which the shell reads there: through etcd's grpc-proxy.",
)
def etcd_roles(cluster: str, user_prefix: str, password_files: Mapping[str, Path]) -> None:
    """Commands for an etcd with authentication: the roles and users of the three services; `… | sh` runs them.

    etcdctl takes its endpoints and certificates from its own variables (ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, …).
    """
    try:
        keys = Keyspace(cluster)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--cluster") from error
    click.echo("\n".join(script(keys, user_prefix, password_files)))


@click.command()
def version() -> None:
    """The version of this command."""
    click.echo(importlib.metadata.version("tidegate"))
