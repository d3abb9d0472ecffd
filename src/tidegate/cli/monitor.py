"""`tidegate monitor`: drops and verdicts as they happen."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
import click
from rich.console import Console
from rich.text import Text

from tidegate.cli import agents, render
from tidegate.cli.cluster import here, load, reads_cluster
from tidegate.cli.output import output_option
from tidegate.records.addresses import unpack_address
from tidegate.runtime.settings import CommonSettings


@click.command()
@reads_cluster
@click.option("--node", help="Only this node.")
@click.option("--drops/--no-drops", default=True, show_default=True)
@click.option("--verdicts/--no-verdicts", default=False, show_default=True, help="Connections that are allowed.")
@output_option
def monitor(common: CommonSettings, node: str | None, drops: bool, verdicts: bool, output: str) -> None:
    """Shows drops, and with --verdicts new connections, of the nodes on this machine until you stop it."""
    found = agents.find(here(), node)
    if not found:
        which = f"no agent of node {node}" if node else "no agent"
        raise click.ClickException(f"{which} on this machine (none under {here()})")
    names = {} if output == "json" else {unpack_address(a): name for a, name in load(common).addresses().items()}
    with suppress(KeyboardInterrupt):
        asyncio.run(_follow_all(found, drops, verdicts, names, output))


async def _follow_all(
    found: list[agents.Found], drops: bool, verdicts: bool, names: dict[str, str], output: str
) -> None:
    console = Console(highlight=False, soft_wrap=True)

    async def follow(agent: agents.Found) -> None:
        try:
            async for event in agents.events(agent, drops, verdicts):
                if output == "json":
                    click.echo(json.dumps(event))
                else:
                    console.print(line(event, names))
        except (aiohttp.ClientError, OSError) as error:
            click.echo(f"{agent.node}: the agent does not answer on {agent.socket}: {error}", err=True)

    async with asyncio.TaskGroup() as group:
        for agent in found:
            group.create_task(follow(agent))


def line(event: dict[str, Any], names: dict[str, str]) -> Text:
    """One event in one line. Pure."""
    if "lost" in event:
        return Text(f"{event['node']:10} {event['lost']} events lost: this command reads too slowly", style="yellow")
    forwarded = event["reason"] == "FORWARDED"
    ends = []
    for end in ("source", "destination"):
        address = event[end]
        name = names.get(address)
        port = f":{event[f'{end}_port']}" if event[f"{end}_port"] else ""
        ends.append(f"{name}({address}{port})" if name else f"{address}{port}")
    text = Text(f"{event['node']:10} {event['hook']:12} ")
    text.append(f"{'allowed' if forwarded else event['reason']:16}", style="green" if forwarded else "red")
    text.append(f" {render.protocol(event['protocol']):4} {ends[0]} -> {ends[1]}")
    return text
