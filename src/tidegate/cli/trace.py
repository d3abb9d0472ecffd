"""`tidegate services trace`: what the datapath would do with a new connection, from hook to hook."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import click

from tidegate.cli import agents
from tidegate.cli.cluster import Cluster, here, load, reads_cluster
from tidegate.cli.ends import Client, Target, entry_node, find_client, node_with, read_target
from tidegate.cli.output import output_option, show_json
from tidegate.cli.sides import Side, Sides
from tidegate.records import Protocol
from tidegate.records.addresses import pack_address, unpack_address, write_end
from tidegate.runtime.settings import CommonSettings

# Asks the agent of a node: (node, hook, source, destination, port, protocol) → its answer.
Ask = Callable[[str, str, bytes, bytes, int, int], dict[str, Any]]
Answer = dict[str, Any]

SOCKET, POD, NETWORK, OWN = "socket", "from_pod", "from_network", "to_network"
HOOKS = {
    SOCKET: "socket programs in the cgroup",
    POD: "from_pod, at the pod's veth",
    NETWORK: "from_network, at the uplink",
    OWN: "to_network, at the uplink",
}


@dataclass(slots=True)
class Way:
    """One backend: how the packet gets there, and what the policies on both sides say."""

    backend: str
    who: str
    way: str
    policies: list[Side]

    @property
    def denied(self) -> str:
        """The reason of the drop, one of reasons.h; empty where it passes."""
        return next((side.reason for side in self.policies if not side.passes), "")


@dataclass(slots=True)
class Trace:
    """`steps`: (node, hook, what happens there). `made`: whether the connection is made, with whatever backend."""

    client: str
    target: str
    steps: list[tuple[str, str, str]] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    service: str = ""
    outcome: str = ""
    reason: str = ""
    result: str = ""
    made: bool = False

    def tell(self, answer: Answer) -> None:
        self.steps += [(answer["node"], answer["hook"], step) for step in answer["steps"]]

    def end(self, outcome: str, reason: str, result: str, made: bool = False) -> "Trace":
        self.outcome, self.reason, self.result, self.made = outcome, reason, result, made
        return self


class Tracer:
    def __init__(
        self, cluster: Cluster, ask: Ask, client: Client, target: Target, audited_nodes: Collection[str] = ()
    ) -> None:
        """`audited_nodes`: as of Sides."""
        self._cluster = cluster
        self._ask = ask
        self._client = client
        self._target = target
        self._source = client.address(target.address)
        self._sides = Sides(cluster, client, self._source, target.protocol, audited_nodes)
        self._trace = Trace(client.name, target.text)

    def run(self, packets: bool = False) -> Trace:
        """`packets`: no socket program sees the client (it lives outside the cgroup, or that is switched off)."""
        client, node = self._client, entry_node(self._cluster, self._client, self._target)
        if client.kind == "outside":
            return self._at(node, NETWORK)
        if not packets:
            answer = self._look(node, SOCKET)
            if answer["outcome"] in ("chosen", "refused"):
                return self._finish(answer)
        if client.kind == "pod":
            answer = self._look(node, POD)
            return self._finish(answer) if answer["outcome"] != "passed" else self._beyond(node)
        answer = self._look(node, OWN)
        return self._finish(answer) if answer["outcome"] != "passed" else self._beyond(node)

    def _look(self, node: str, hook: str) -> Answer:
        target = self._target
        answer = self._ask(node, hook, self._source, target.address, target.port, target.protocol)
        self._trace.tell(answer)
        return answer

    def _at(self, node: str, hook: str) -> Trace:
        answer = self._look(node, hook)
        return self._finish(answer) if answer["outcome"] != "passed" else self._arrive(node)

    def _beyond(self, node: str) -> Trace:
        """From the client's node to the address itself: another node may see a frontend in it."""
        owner = node_with(self._cluster, self._target.address)
        if owner is None or owner == node:
            return self._arrive(node)
        for side in self._sides.egress(self._target.address, self._target.port) if self._client.kind == "pod" else ():
            self._trace.steps.append((node, POD, side.text))
            if not side.passes:
                return self._denied(side.reason)
        self._trace.steps.append((node, "stack", f"to node {owner}, by the node's routes"))
        return self._at(owner, NETWORK)

    def _arrive(self, node: str) -> Trace:
        """No Service's: the address is who answers, if anybody does."""
        target = self._target
        way = self._way(target.address, target.port, node, "as it is addressed", False)
        self._trace.ways.append(way)
        if way.denied:
            return self._denied(way.denied)
        return self._trace.end("passed", "", f"passed on to {way.who}: no Service here has this address and port", True)

    def _finish(self, answer: Answer) -> Trace:
        trace, service = self._trace, answer["service"]
        if service:
            trace.service = f"{service['namespace']}/{service['name']}"
            trace.left_out = service["left_out"]
        reason = answer["reason"]
        if answer["outcome"] == "refused":
            return trace.end("refused", reason, f"refused: {self._refusal(answer['hook'])} ({reason})")
        if answer["outcome"] == "dropped":
            return trace.end("dropped", reason, f"dropped, without an answer: {answer['reason_text']} ({reason})")
        for backend in answer["backends"]:
            address = pack_address(backend["address"])
            masqueraded = "masqueraded" in backend["way"]
            trace.ways.append(self._way(address, backend["port"], answer["node"], backend["way"], masqueraded))
        allowed = [way for way in trace.ways if not way.denied]
        if not allowed:
            return self._denied(trace.ways[0].denied)
        names = ", ".join(f"{way.who} ({way.backend})" for way in allowed)
        verb = "connected to" if self._target.protocol == Protocol.TCP else "answered by"
        result = f"{verb} {'one of ' if len(allowed) > 1 else ''}{names}"
        denied = ", ".join(way.who for way in trace.ways if way.denied)
        if denied:
            result += f"; dropped where it gets {denied}: a policy does not allow it"
        return trace.end("chosen", "", result, not denied)

    def _refusal(self, hook: str) -> str:
        if hook == SOCKET:
            return "connect() gives ECONNREFUSED at once"
        return "TCP RST" if self._target.protocol == Protocol.TCP else "ICMP port unreachable"

    def _denied(self, reason: str) -> Trace:
        return self._trace.end("dropped", reason, f"dropped, without an answer: a policy does not allow it ({reason})")

    def _way(self, address: bytes, port: int, node: str, way: str, masqueraded: bool) -> Way:
        """`node` is where the backend was chosen; `masqueraded`: there the packet gets that node's address."""
        policies = self._sides.judge(address, port, node, masqueraded)
        return Way(write_end(address, port), self._sides.who(address), way, policies)


def show(trace: Trace) -> None:
    click.echo(f"{trace.client} -> {trace.target}" + (f"  (Service {trace.service})" if trace.service else ""))
    before = ("", "")
    for node, hook, step in trace.steps:
        if (node, hook) != before:
            click.echo(f"\n{node}, {HOOKS.get(hook, hook)}:")
            before = node, hook
        click.echo(f"  {step}")
    if trace.ways:
        click.echo("\nbackends:" if trace.service else "\ndestination:")
    for way in trace.ways:
        click.echo(f"  {way.backend} {way.who}: {way.way}")
        for side in way.policies:
            click.echo(f"    {side.text}")
    if trace.left_out:
        click.echo("\nleft out:")
    for backend, reason in trace.left_out.items():
        click.echo(f"  {backend}: {reason}")
    click.echo(f"\n{trace.result}")


def ask_agent(node: str, hook: str, source: bytes, destination: bytes, port: int, protocol: int) -> Answer:
    question = {
        "hook": hook,
        "source": unpack_address(source),
        "destination": unpack_address(destination),
        "port": str(port),
        "protocol": str(protocol),
    }
    return agents.answered(agents.need(here(), node), partial(agents.trace, question=question))


@click.command()
@reads_cluster
@click.option("--from", "client", required=True, help="A pod (NAMESPACE/NAME), a node, or an address outside.")
@click.option("--to", "target", required=True, help="ADDRESS:PORT[/PROTOCOL]; TCP if nothing else is said.")
@click.option("--via", help="The node at which a client outside arrives, where the address is not a node's own.")
@click.option("--packets", is_flag=True, help="The client lives outside the pods' cgroup: no socket program sees it.")
@output_option
@click.pass_context
def trace(
    context: click.Context,
    common: CommonSettings,
    client: str,
    target: str,
    via: str | None,
    packets: bool,
    output: str,
) -> None:
    """What the datapath would do with a new connection, step by step; nothing is sent, and nothing changed.

    Asks the agents of the nodes on the way, which must be of this machine. Exits with 1 where the connection would not
    be made, or not with every backend that the client may get.
    """
    cluster = load(common)
    asked = find_client(cluster, client, via)
    found = Tracer(cluster, ask_agent, asked, read_target(target), agents.audited_nodes(here())).run(packets)
    if output == "json":
        show_json(asdict(found))
    else:
        show(found)
    context.exit(0 if found.made else 1)
