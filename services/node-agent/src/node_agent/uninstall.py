"""`tidegate cleanup`: everything that an agent has left on its node goes; run it once the agent is stopped."""

import asyncio
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from node_agent import filters, links, nft, routes, takeover
from node_agent.attach import ALL_PROTOCOLS, HANDLE, HANDLE6, PRIORITY
from node_agent.loader.pins import is_bpffs


class UninstallError(Exception):
    """It was not done, or not to its end; the text says why."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the agent's things lie. `cni`: what the container runtime looks at, if the agent has written that."""

    state: Path
    bpffs: Path
    cni: Path | None = None


def places(node: str, state: Path | None, bpffs: Path | None) -> Places:
    """Of the agent that ran last, by what it has written; else where an agent of that name would have it."""
    state = state or Path("/run/tidegate") / node
    try:
        about: dict[str, Any] = json.loads((state / "agent.json").read_text())
    except (OSError, ValueError):
        about = {}
    noted = Path(about.get("bpffs") or f"/sys/fs/bpf/tidegate/{node}")
    return Places(state, bpffs or noted, Path(about["cni"]) if about.get("cni") else None)


def is_running(state: Path) -> bool:
    """Whether an agent answers on its socket there."""
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(os.fsencode(state / "agent.sock")) == 0


def uninstall(where: Places) -> list[str]:
    """A line for each thing that was removed. Connections go on as far as the kernel alone can carry them.

    First the CNI configuration, so that no pod starts that nobody judges; the guard before the programs, without which
    it would let nothing pass. Raises UninstallError.
    """
    if where.state.is_dir() and any(where.state.iterdir()) and not (where.state / "agent.json").exists():
        raise UninstallError(f"{where.state} has no agent.json: it is no agent's directory; is --state right?")
    if where.bpffs.is_dir() and not is_bpffs(where.bpffs):
        raise UninstallError(f"{where.bpffs} is in no bpf file system: is --bpffs right?")
    if is_running(where.state):
        raise UninstallError(f"an agent is running ({where.state / 'agent.sock'} answers): stop it first")
    try:
        return [
            *_cni(where.cni),
            *asyncio.run(_tables()),
            *_programs(where.bpffs),
            *_routes(),
            *_directory(where.bpffs, "maps, programs and links"),
            *_directory(where.state, "state"),
        ]
    except (OSError, NetlinkError, nft.GuardError) as error:
        raise UninstallError(f"{error}; run it again once that is mended") from error


def _cni(link: Path | None) -> Iterator[str]:
    if link is not None and link.is_symlink():
        link.unlink()
        yield f"CNI configuration {link}"


async def _tables() -> list[str]:
    """The guard, and what an agent that took over from kube-proxy needs until the last such connection has ended."""
    there = [table for table in (nft.TABLE, takeover.TABLE) if await nft.has_table(table)]
    for table in there:
        await nft.run_script(f"delete table {table}\n")
    return [f"nftables: table {table}" for table in there]


def _programs(bpffs: Path) -> Iterator[str]:
    """Links of tcx and cgroups hold as long as they are pinned; filters of clsact are taken off their devices."""
    pinned = list((bpffs / "links").glob("*"))
    for path in pinned:
        path.unlink()
    if pinned:
        yield f"{len(pinned)} links in {bpffs / 'links'}"
    ours = _numbers(bpffs)
    with IPRoute() as route:
        for link in route.get_links():
            index, name = link["index"], link.get_attr("IFLA_IFNAME")
            if sum(_filters(route, index, hook, ours) for hook in filters.PARENT):
                yield f"filters of device {name}"
                if not any(filters.programs(index, hook) for hook in filters.PARENT):
                    route.tc("del", "clsact", index=index)
                    yield f"qdisc clsact of device {name}"


def _numbers(bpffs: Path) -> set[int]:
    """The kernel's numbers of all programs that are pinned there."""
    found = set()
    for path in (bpffs / "programs").glob("*/*"):
        fd = links.open_pin(path)
        try:
            found.add(links.program_id(fd))
        finally:
            os.close(fd)
    return found


def _filters(route: IPRoute, index: int, hook: str, ours: set[int]) -> bool:
    """Removes our filters there; whether there were any."""
    removed = False
    for handle, program in filters.programs(index, hook).items():
        if handle in (HANDLE, HANDLE6) and program in ours:
            place = {"parent": filters.PARENT[hook], "prio": PRIORITY, "protocol": ALL_PROTOCOLS}
            route.tc("del-filter", "bpf", index=index, handle=handle, **place)
            removed = True
    return removed


def _routes() -> list[str]:
    ours = [(route.cidr, route.via) for route in asyncio.run(routes.read())]
    for index, code in routes.change([("del", cidr, via) for cidr, via in ours]).items():
        if code != errno.ESRCH:  # gone already
            raise OSError(code, f"remove the route to {ours[index][0]}: {os.strerror(code)}")
    return [f"route {cidr} via {via}" for cidr, via in ours]


def _directory(path: Path, what: str) -> Iterator[str]:
    if path.is_dir():
        shutil.rmtree(path)
        yield f"{what} in {path}"


@click.command()
@click.option("--node", default=socket.gethostname, show_default="the host's name", help="As the agent's.")
@click.option("--state", type=click.Path(path_type=Path), help="As the agent's. [default: /run/tidegate/NODE]")
@click.option("--bpffs", type=click.Path(path_type=Path), help="As the agent's. [default: what it has noted]")
def cleanup(node: str, state: Path | None, bpffs: Path | None) -> None:
    """Removes from this node what its agent has left: programs, maps, links, routes, the guard, the CNI configuration.

    Stop the agent first. Services are served no more and policies not enforced; pods reach each other as the kernel
    forwards. The policy log, compiled programs (/var/cache/tidegate) and forwarding stay.
    """
    if os.geteuid() != 0:
        raise click.ClickException("this needs root: run it as root, or with sudo")
    try:
        done = uninstall(places(node, state, bpffs))
    except UninstallError as error:
        raise click.ClickException(str(error)) from error
    for line in done or ["nothing of an agent's is here"]:
        click.echo(line)
