"""`tidegate policy`: which rules hold for whom, what they say about two ends, and what would be otherwise."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from tidegate.cli import agents, render
from tidegate.cli.cluster import Cluster, here
from tidegate.cli.ends import PROTOCOLS, Client, find_client
from tidegate.cli.output import output_option, show_json, show_table
from tidegate.cli.reach import changes
from tidegate.cli.sides import Side, Sides
from tidegate.cli.sources import Origin, reads_any
from tidegate.records import Endpoint, Protocol, Rules, Service, Subject
from tidegate.records.addresses import is_ipv4, unpack_address


@click.group()
def policy() -> None:
    """NetworkPolicies as compiled: who is isolated, what is allowed, why, and what a change would do."""


@policy.command(name="list")
@reads_any
@output_option
def list_(origin: Origin, output: str) -> None:
    """All rules in force, and how many identities each of them is for."""
    cluster = origin.read()
    users: dict[int, int] = {}
    for subject in cluster.all(Subject).values():
        users[subject.policy] = users.get(subject.policy, 0) + 1
    rows = [
        {
            "policy": int(number),
            "policies": list(rules.policies),
            "isolated": _isolated(rules),
            "rules": len(rules.rules),
            "identities": users.get(int(number), 0),
        }
        for (number,), rules in sorted(cluster.all(Rules).items(), key=lambda item: item[1].policies)
    ]
    if output == "json":
        show_json(rows)
        return
    show_table(
        ("policies", "isolated", "rules", "identities", "number"),
        (
            (" ".join(row["policies"]) or "none", row["isolated"], row["rules"], row["identities"], row["policy"])  # type: ignore[arg-type]
            for row in rows
        ),
    )


def _isolated(rules: Rules) -> str:
    found = [name for name, on in (("ingress", rules.ingress_isolated), ("egress", rules.egress_isolated)) if on]
    return " and ".join(found) or "no"


def endpoint(cluster: Cluster, name: str) -> Endpoint:
    namespace, slash, pod = name.partition("/")
    found = cluster.all(Endpoint).get((namespace, pod)) if slash else None
    if found is None:
        raise click.ClickException(f"no endpoint {name}: name a pod as NAMESPACE/POD (tidegate endpoints lists them)")
    return found


@policy.command()
@reads_any
@click.argument("pod")
@output_option
def show(origin: Origin, pod: str, output: str) -> None:
    """The rules that hold for POD (NAMESPACE/NAME), in words."""
    cluster = origin.read()
    rules = cluster.rules_of(endpoint(cluster, pod).identity)
    if rules is None:
        raise click.ClickException(f"no rules have been made for {pod} yet: it is closed until they are")
    rows = [
        {
            "direction": render.DIRECTIONS[rule.direction],
            "ports": render.ports(rule.protocol, rule.port, rule.prefix),
            "peers": cluster.set_text(group),
            "policies": list(policies),
        }
        for rule in rules.rules
        for group, policies in rules.by_policies(rule)
    ]
    if output == "json":
        show_json({"policies": list(rules.policies), "isolated": _isolated(rules), "rules": rows})
        return
    click.echo(f"policies: {' '.join(rules.policies) or 'none'}\nisolated: {_isolated(rules)}\n")
    if rows:
        show_table(
            ("allowed", "ports", "peers", "by"),
            ((r["direction"], r["ports"], r["peers"], " ".join(r["policies"])) for r in rows),
        )


def read_port(text: str) -> tuple[int, int]:
    """`80`, `53/UDP`, `ICMP` as protocol and port. Raises ClickException."""
    number, _, name = text.partition("/")
    if text.lower() in PROTOCOLS and not name:
        number, name = "0", text
    protocol = PROTOCOLS.get((name or "tcp").lower())
    ported = protocol not in (None, Protocol.ICMP)
    if protocol is None or not number.isdecimal() or not (not ported or 1 <= int(number) <= 65535):
        raise click.ClickException(f"--port {text}: write a port and a protocol, as in 80/TCP, 53/UDP, or ICMP")
    return protocol, int(number) if ported else 0


@policy.command()
@reads_any
@click.option("--from", "source", required=True, help="A pod (NAMESPACE/NAME), a node, or an address.")
@click.option("--to", "target", required=True, help="The same; of a Service, name a backend.")
@click.option("--port", required=True, help="PORT[/PROTOCOL], or ICMP; TCP if nothing else is said.")
@output_option
@click.pass_context
def explain(
    context: click.Context,
    origin: Origin,
    source: str,
    target: str,
    port: str,
    output: str,
) -> None:
    """What the policies of each side say to a new connection, and which rules are behind it: from the records alone.

    Exits with 1 where it does not pass: what is denied in audit does.
    """
    protocol, number = read_port(port)
    cluster = origin.read()
    client, server = find_client(cluster, source, None), find_client(cluster, target, None)
    _is_no_service(cluster, server)
    address = _meeting(client, server)
    own = client.address(address)
    audited = agents.audited_nodes(here()) if origin.is_live else frozenset[str]()
    sides = Sides(cluster, client, own, protocol, audited).judge(address, number, client.node, False)
    allowed, passes = all(side.allowed for side in sides), all(side.passes for side in sides)
    if output == "json":
        ends = {"from": unpack_address(own), "to": unpack_address(address)}
        show_json(
            {
                **ends,
                "protocol": render.protocol(protocol),
                "port": number,
                "allowed": allowed,
                "passes": passes,
                "sides": [asdict(side) for side in sides],
            }
        )
    else:
        where = render.protocol(protocol) if protocol == Protocol.ICMP else f"{render.protocol(protocol)} {number}"
        click.echo(f"{client.name} -> {server.name} {where}: {_outcome(sides, passes)}")
        for side in sides or [_nobody(own == address)]:
            click.echo(f"  {side.rules}: allowed by" if side.grounds else f"  {side.text}")
            for ground in side.grounds:
                click.echo(f"    {ground.text}")
    context.exit(0 if passes else 1)


def _outcome(sides: Sequence[Side], passes: bool) -> str:
    audits = dict.fromkeys(side.audit for side in sides if side.audit)
    if not passes:
        return "denied"
    return f"denied, but passes: {', '.join(audits)}" if audits else "allowed"


def _nobody(itself: bool) -> Side:
    return Side("policies", True, "", "a pod reaches itself" if itself else "neither end is a pod")


def _meeting(client: Client, server: Client) -> bytes:
    """An address of the server of a family that the client has. Raises ClickException."""
    for address in server.addresses:
        if any(is_ipv4(own) == is_ipv4(address) for own in client.addresses):
            return address
    raise click.ClickException(f"{client.name} and {server.name} have no addresses of one family")


def _is_no_service(cluster: Cluster, server: Client) -> None:
    for name, service in cluster.all(Service).items():
        if set(server.addresses) & {*service.cluster_ips, *service.external_ips, *service.load_balancer_ips}:
            hint = "policies see the backend: name that, or ask tidegate services trace"
            raise click.ClickException(f"{server.name} is an address of the Service {'/'.join(name)}; {hint}")


_PATH = click.Path(path_type=Path, exists=True)


@policy.command()
@reads_any
@click.option("--change", type=_PATH, multiple=True, help="These objects in addition, or in place.")
@click.option("--to-etcd-snapshot", type=_PATH, help="What it is to become: a snapshot of etcd.")
@click.option("--to-manifests", type=_PATH, multiple=True, help="What it is to become: all objects in files.")
@output_option
@click.pass_context
def diff(
    context: click.Context,
    origin: Origin,
    change: Sequence[Path],
    to_etcd_snapshot: Path | None,
    to_manifests: Sequence[Path],
    output: str,
) -> None:
    """Who reaches whom otherwise than now, if a change were made. Exits with 1 where anything differs.

    Of what policies deny anew, and audit lets pass, a column of its own tells.

    Looked at are pods that are there in both states, the nodes, and an address of each ipBlock and of none.
    """
    if bool(change) + bool(to_etcd_snapshot) + bool(to_manifests) != 1:
        raise click.UsageError("name what it is to become: one of --change, --to-etcd-snapshot, --to-manifests")
    if change:
        before, after = origin.read_with(change)
    else:
        before = origin.read()
        after = Origin(origin.common, to_etcd_snapshot, to_manifests).read()
    found = changes(before, after)
    rows = [
        {
            "from": each.source,
            "to": each.target,
            "opened": str(each.opened) if each.opened else "",
            "closed": str(each.closed) if each.closed else "",
            "audited": str(each.audited) if each.audited else "",
            "isolated_by": list(each.policies),
        }
        for each in found
    ]
    if output == "json":
        show_json(rows)
    elif rows:
        columns = ["from", "to", "opened", "closed", *(["audited"] if any(row["audited"] for row in rows) else [])]
        show_table(
            (*columns, "isolated by"),
            ((*(row[column] for column in columns), " ".join(row["isolated_by"])) for row in rows),
        )
    else:
        click.echo("everybody reaches whom they reached before")
    context.exit(1 if rows else 0)
