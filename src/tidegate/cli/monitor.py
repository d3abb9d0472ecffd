"""`tidegate monitor`: drops and verdicts as they happen."""

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import aiohttp
import click
from rich.console import Console
from rich.text import Text

from tidegate.cli import agents, render
from tidegate.cli.cluster import Cluster, here, load, read_all, reads_cluster, resolve
from tidegate.cli.output import output_option
from tidegate.cli.verdicts import Peer, judge
from tidegate.records import Direction, Rules
from tidegate.records.addresses import pack_address, unpack_address
from tidegate.runtime.settings import CommonSettings
from tidegate.store import StoreError

# Reasons of events that policies are behind, by what they say.
VERDICTS = {
    "allow": ("FORWARDED",),
    "deny": ("POLICY_EGRESS", "POLICY_INGRESS"),
    "audit": ("AUDITED_EGRESS", "AUDITED_INGRESS"),
}
REREAD = 2.0  # seconds


@click.command()
@reads_cluster
@click.option("--node", help="Only this node.")
@click.option("--drops/--no-drops", default=True, show_default=True)
@click.option("--verdicts/--no-verdicts", default=False, show_default=True, help="Connections that are allowed.")
@click.option(
    "--verdict",
    type=click.Choice(list(VERDICTS)),
    help="Only what policies allow, deny, or would deny but for audit, and which of them do.",
)
@click.option("-f", "--follow", is_flag=True, help="As it always does.")
@output_option
def monitor(
    common: CommonSettings,
    node: str | None,
    drops: bool,
    verdicts: bool,
    verdict: str | None,
    follow: bool,  # noqa: ARG001  # habit of those who write it
    output: str,
) -> None:
    """Shows drops, and with --verdicts new connections, of the nodes on this machine until you stop it."""
    found = agents.find(here(), node)
    if not found:
        which = f"no agent of node {node}" if node else "no agent"
        raise click.ClickException(f"{which} on this machine (none under {here()})")
    if verdict:
        drops, verdicts = verdict == "deny", verdict != "deny"
    cluster = load(common) if verdict or output != "json" else Cluster()
    with suppress(KeyboardInterrupt):
        asyncio.run(_follow_all(found, (drops, verdicts), verdict, Records(common, cluster), output))


class Records:
    """What etcd says, read again when events name rules that were not there, at most once in some seconds."""

    def __init__(self, common: CommonSettings, cluster: Cluster) -> None:
        self._common = common
        self._read = time.monotonic()
        self.cluster = cluster
        self.names = {unpack_address(address): name for address, name in cluster.addresses().items()}

    async def know(self, policy: int) -> None:
        if (str(policy),) in self.cluster.all(Rules) or time.monotonic() - self._read < REREAD:
            return
        self._read = time.monotonic()
        with suppress(StoreError):  # what is known is better than nothing
            self.cluster = await read_all(resolve(self._common))
            self.names = {unpack_address(address): name for address, name in self.cluster.addresses().items()}


async def _follow_all(
    found: list[agents.Found], kinds: tuple[bool, bool], verdict: str | None, records: Records, output: str
) -> None:
    console = Console(highlight=False, soft_wrap=True)

    async def follow(agent: agents.Found) -> None:
        try:
            async for event in agents.events(agent, *kinds):
                if verdict:
                    if "lost" not in event and event["reason"] not in VERDICTS[verdict]:
                        continue
                    await records.know(event.get("policy", 0))
                    event["why"] = why(event, records.cluster)
                if output == "json":
                    click.echo(json.dumps(event))
                else:
                    console.print(line(event, records.names))
        except (aiohttp.ClientError, OSError) as error:
            click.echo(f"{agent.node}: the agent does not answer on {agent.socket}: {error}", err=True)

    async with asyncio.TaskGroup() as group:
        for agent in found:
            group.create_task(follow(agent))


def line(event: dict[str, Any], names: dict[str, str]) -> Text:
    """One event in one line. Pure."""
    if "lost" in event:
        return Text(f"{event['node']:10} {event['lost']} events lost: this command reads too slowly", style="yellow")
    allowed, audited = (event["reason"] in VERDICTS[verdict] for verdict in ("allow", "audit"))
    ends = []
    for end in ("source", "destination"):
        address = event[end]
        name = names.get(address)
        port = f":{event[f'{end}_port']}" if event[f"{end}_port"] else ""
        ends.append(f"{name}({address}{port})" if name else f"{address}{port}")
    text = Text(f"{event['node']:10} {event['hook']:12} ")
    style = "green" if allowed else "yellow" if audited else "red"
    text.append(f"{'allowed' if allowed else event['reason']:16}", style=style)
    text.append(f" {render.protocol(event['protocol']):4} {ends[0]} -> {ends[1]}")
    if event.get("why"):
        text.append(f"  ({event['why']})", style="dim")
    return text


def why(event: dict[str, Any], cluster: Cluster) -> str:
    """The policies behind a verdict; nothing where the records say something else by now. Pure."""
    if "lost" in event:
        return ""
    allowed = event["reason"] in VERDICTS["allow"]
    # The direction of a drop may be the hook's.
    egress = event["direction"] == "egress" if allowed else event["reason"].endswith("_EGRESS")
    direction = Direction.EGRESS if egress else Direction.INGRESS
    subject, peer = ("source", "destination") if direction == Direction.EGRESS else ("destination", "source")
    other = Peer(event[f"{peer}_identity"], pack_address(event[peer]))
    arguments = event[f"{subject}_identity"], other, direction, event["protocol"], event["destination_port"]
    found = judge(cluster, *arguments)
    return f"{render.DIRECTIONS[direction]}: {found.why}" if found.allowed == allowed else ""
