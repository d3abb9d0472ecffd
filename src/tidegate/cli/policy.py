"""`tidegate policy`: which rules hold for whom, and what they say about two pods."""

from dataclasses import dataclass

import click

from tidegate.cli import render
from tidegate.cli.cluster import Cluster, load, reads_cluster
from tidegate.cli.output import output_option, show_json, show_table
from tidegate.records import ANY_SET, Direction, Endpoint, Protocol, Rule, Rules, Subject
from tidegate.records.addresses import is_ipv4
from tidegate.runtime.settings import CommonSettings

PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "sctp": Protocol.SCTP, "icmp": Protocol.ICMP}


@click.group()
def policy() -> None:
    """NetworkPolicies as compiled: who is isolated, what is allowed, and why."""


@policy.command(name="list")
@reads_cluster
@output_option
def list_(common: CommonSettings, output: str) -> None:
    """All rules in force, and how many identities each of them is for."""
    cluster = load(common)
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
@reads_cluster
@click.argument("pod")
@output_option
def show(common: CommonSettings, pod: str, output: str) -> None:
    """The rules that hold for POD (NAMESPACE/NAME), in words."""
    cluster = load(common)
    rules = cluster.rules_of(endpoint(cluster, pod).identity)
    if rules is None:
        raise click.ClickException(f"no rules have been made for {pod} yet: it is closed until they are")
    rows = [
        {
            "direction": render.DIRECTIONS[rule.direction],
            "ports": render.ports(rule.protocol, rule.port, rule.prefix),
            "peers": [cluster.set_text(group) for group in (*rule.sets, rule.blocks) if group],
        }
        for rule in rules.rules
    ]
    if output == "json":
        show_json({"policies": list(rules.policies), "isolated": _isolated(rules), "rules": rows})
        return
    click.echo(f"policies: {' '.join(rules.policies) or 'none'}\nisolated: {_isolated(rules)}\n")
    if rows:
        show_table(("allowed", "ports", "peers"), ((r["direction"], r["ports"], "; ".join(r["peers"])) for r in rows))


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    why: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Rules see a peer by its identity and its address."""

    identity: int
    address: bytes


def judge(cluster: Cluster, subject: int, peer: Peer, direction: Direction, protocol: int, port: int) -> Verdict:
    """What the subject's rules say about a peer, as the datapath looks them up. Pure."""
    rules = cluster.rules_of(subject)
    if rules is None:
        return Verdict(False, "its rules have not been made yet")
    isolated = rules.ingress_isolated if direction == Direction.INGRESS else rules.egress_isolated
    if not isolated:
        return Verdict(True, f"no policy isolates its {render.DIRECTIONS[direction]}")
    for rule in rules.rules:
        if rule.direction != direction or not _covers(rule, protocol, port):
            continue
        for group in filter(None, (*rule.sets, rule.blocks)):
            if is_in(cluster, group, peer):
                ports = render.ports(rule.protocol, rule.port, rule.prefix)
                return Verdict(True, f"allowed: {ports} for {cluster.set_text(group)} ({' '.join(rules.policies)})")
    return Verdict(False, f"isolated by {' '.join(rules.policies)}, and nothing allows it")


def is_in(cluster: Cluster, group: int, peer: Peer) -> bool:
    if group == ANY_SET or peer.identity in cluster.members(group):
        return True
    number = int.from_bytes(peer.address, "big")
    around = [
        (prefix, needed)
        for (start, prefix), needed in cluster.blocks(group).items()
        if (number ^ int.from_bytes(start, "big")) >> (128 - prefix) == 0
    ]
    return bool(around) and is_in(cluster, max(around)[1], peer)


def _covers(rule: Rule, protocol: int, port: int) -> bool:
    if rule.protocol == Protocol.ANY:
        return True
    return rule.protocol == protocol and port >> (16 - rule.prefix) == rule.port >> (16 - rule.prefix)


@policy.command()
@reads_cluster
@click.argument("source")
@click.argument("destination")
@click.option("--port", default=80, type=click.IntRange(0, 65535), show_default=True)
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="tcp", show_default=True)
@click.pass_context
def check(
    context: click.Context, common: CommonSettings, source: str, destination: str, port: int, protocol: str
) -> None:
    """Whether pod SOURCE may open a connection to pod DESTINATION, and why. Exits with 1 where it may not."""
    cluster = load(common)
    client, server = endpoint(cluster, source), endpoint(cluster, destination)
    number = PROTOCOLS[protocol]
    source_address, destination_address = _addresses(client, server)
    at, by = Peer(server.identity, destination_address), Peer(client.identity, source_address)
    out = judge(cluster, client.identity, at, Direction.EGRESS, number, port)
    into = judge(cluster, server.identity, by, Direction.INGRESS, number, port)
    allowed = source == destination or (out.allowed and into.allowed)
    click.echo(f"{source} -> {destination} {protocol.upper()} {port}: {'allowed' if allowed else 'denied'}")
    click.echo(f"  egress of {source}: {out.why}\n  ingress of {destination}: {into.why}")
    context.exit(0 if allowed else 1)


def _addresses(client: Endpoint, server: Endpoint) -> tuple[bytes, bytes]:
    """Those by which the two meet: of one family, the first that both have. Raises ClickException."""
    for server_address in server.addresses:
        for address in client.addresses:
            if is_ipv4(address) == is_ipv4(server_address):
                return address, server_address
    raise click.ClickException("the two have no addresses of one family")
