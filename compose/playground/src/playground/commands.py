"""`tidegate playground …`: a cluster of network namespaces on this machine."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from playground.cleanup import clean
from playground.detached import NotUpError, start
from playground.layout import Layout
from playground.machine import check_machine
from playground.processes import ours, read_register, ways_in
from playground.shell import inside
from playground.supervisor import Options, Supervisor
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.lifecycle import supervise
from tidegate.runtime.logging import configure


@click.group()
@click.option("--name", default="", envvar="TIDEGATE_PLAYGROUND", help="For a second playground beside the first.")
@click.pass_context
def playground(context: click.Context, name: str) -> None:
    """A whole cluster on one machine: nodes and pods are network namespaces."""
    context.obj = Layout(name)


def _fail(text: str) -> None:
    raise click.ClickException(text)


@playground.command()
@click.option("--nodes", default=3, type=click.IntRange(1, 50), show_default=True)
@click.option(
    "--kubeconfig", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="An API server to use."
)
@click.option(
    "--dual-stack", is_flag=True, help="IPv6 as well: nodes, pods and Services get addresses of both families."
)
@click.option("--detach", is_flag=True, help="Return when everything is ready; `down` ends it.")
@click.option("--no-endpointslice-controller", is_flag=True, help="EndpointSlices are made by hand, or by the cluster.")
@click.option("--sync-replicas", default=1, type=click.IntRange(0, 5), show_default=True)
@click.option("--attach", type=click.Choice(["auto", "tcx", "clsact"]), default="auto", show_default=True)
@click.option("--socket-lb", type=click.Choice(["all", "node"]), default="all", show_default=True)
@click.option("--secure", is_flag=True, help="As in a cluster: three members of etcd, TLS, a role for each service.")
@click.option("--etcd", metavar="ENDPOINTS", help="An etcd to use, which the nodes' network namespaces reach.")
@click.pass_obj
def up(
    layout: Layout,
    nodes: int,
    kubeconfig: Path | None,
    dual_stack: bool,
    detach: bool,
    no_endpointslice_controller: bool,
    sync_replicas: int,
    attach: str,
    socket_lb: str,
    secure: bool,
    etcd: str | None,
) -> None:
    """Starts a playground; what an earlier one left is removed first.

    The API server is the one of --kubeconfig, or a kube-apiserver in the directory that KUBEBUILDER_ASSETS names,
    or else a small one of the playground's own. With --sync-replicas 0 the sync services run elsewhere.
    """
    if etcd and secure:
        raise click.UsageError("--secure is about an etcd of the playground's own: leave out --etcd")
    try:
        check_machine(etcd=etcd is None)
    except SettingsError as error:
        _fail(str(error))
    if detach:
        _detach(layout)
        return
    slices = not no_endpointslice_controller
    options = Options(
        nodes, kubeconfig, dual_stack, slices, sync_replicas, attach, socket_lb=socket_lb, secure=secure, etcd=etcd
    )
    configure("info", None, "playground")
    sys.exit(asyncio.run(supervise(lambda _: _up(layout, options), grace=30.0)))


async def _up(layout: Layout, options: Options) -> None:
    supervisor = Supervisor(layout, options, lambda text: click.echo(text))
    try:
        await supervisor.run(lambda: _tell(read_register(layout.state)))
    finally:
        await clean(layout, spare=os.getpid())


def _tell(register: dict[str, Any]) -> None:
    click.echo(ways_in(register))
    sys.stdout.flush()


def _detach(layout: Layout) -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    try:
        register = start(layout, _after_group(arguments))
    except NotUpError as error:
        raise click.ClickException(str(error)) from error
    _tell(register)


def _after_group(arguments: list[str]) -> list[str]:
    """The command line from `up` on: it may have been called as `tidegate playground up`."""
    return arguments[arguments.index("up") :]


@playground.command()
@click.pass_obj
def down(layout: Layout) -> None:
    """Ends the playground and removes all that it made; does nothing where there is none."""
    asyncio.run(clean(layout))


def _running(layout: Layout) -> dict[str, Any]:
    register = read_register(layout.state)
    processes = register.get("processes")
    supervisor = processes.get("supervisor") if isinstance(processes, dict) else None
    if not supervisor or not ours(supervisor):
        _fail("no playground is up: tidegate playground up --detach")
    return register


@playground.command()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
@click.pass_obj
def status(layout: Layout, output: str) -> None:
    """What runs, and where."""
    register = _running(layout)
    processes = {name: {**entry, "running": ours(entry)} for name, entry in register["processes"].items()}
    found = {**register, "processes": processes}
    if output == "json":
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(ways_in(register))
    for name, entry in processes.items():
        click.echo(f"{name:24} pid {entry['pid']:>8}  {'running' if entry['running'] else 'not running'}")


@playground.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("pod")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(layout: Layout, pod: str, command: tuple[str, ...]) -> None:
    """Runs COMMAND in the pod NAMESPACE/NAME, or with NODE instead of it on a node: in its network and its cgroup."""
    namespace, cgroup = _whereabouts(layout, pod)
    line = inside(namespace, cgroup, command)
    os.execvp(line[0], line)  # noqa: S606  # no shell: the words are given as they are


def _whereabouts(layout: Layout, pod: str) -> tuple[str, Path]:
    space, slash, name = pod.partition("/")
    if not slash:
        cgroup = layout.node_cgroup(space)
        if not cgroup.is_dir():
            _fail(f"no node {space}: nodes are {', '.join(_running(layout)['nodes'])}")
        return layout.node_namespace(space), cgroup / "agent"
    found = list(layout.cgroup.glob(f"*/{space}_{name}"))
    if not found:
        _fail(f"no pod {pod} runs here: kubectl get pods -A")
    network = layout.pod_namespace(space, name)
    if not Path("/run/netns", network).exists():
        network = layout.node_namespace(found[0].parent.name)  # a pod of the host network
    return network, found[0]
