"""node-agent: copies what etcd says into the eBPF maps of this node's kernel, and writes nothing else."""

import importlib.metadata
import socket
from pathlib import Path

import click

from node_agent import nft
from node_agent.agent import Agent
from node_agent.loader import CACHE
from node_agent.loading import LoadError, run_loader
from node_agent.machine import allow_open_files, check
from node_agent.masquerade import parse_ports
from node_agent.monitor import Monitor
from node_agent.nodesettings import NodeSettings
from node_agent.policylog import DEFAULT_PATH
from node_agent.reading import Reading
from node_agent.status import KernelCollector, routes
from node_agent.sysctl import SYSCTL, enable_forwarding
from node_agent.uplinks import default_route_devices
from node_agent.whereabouts import write_whereabouts
from tidegate.records import Keyspace
from tidegate.records.capacity import DEFAULT, Amount, map_sizes
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.http import Health, serve
from tidegate.runtime.lifecycle import Stop, run
from tidegate.runtime.metrics import REGISTRY
from tidegate.runtime.settings import CONTEXT_SETTINGS, CommonSettings, common_options
from tidegate.store.etcd import EtcdStore


def _ports(_context: click.Context, _parameter: click.Parameter, value: str) -> range:
    try:
        return parse_ports(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _default_uplinks() -> tuple[str, ...]:
    found = default_route_devices()
    if not found:
        raise click.UsageError("this machine has no default route: name the device to other nodes with --uplink")
    return found


_ROOM = click.IntRange(1)
# Whether they can be read is asked later: who is not root shall hear of that first.
_DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)
_FILE = click.Path(path_type=Path, dir_okay=False, readable=False)


@click.command(context_settings=CONTEXT_SETTINGS)
@common_options
@click.option("--node", default=socket.gethostname, show_default="the host's name", help="Name of this Node.")
@click.option("--bpffs", type=_DIRECTORY, default=None, help="Directory for pins. [default: /sys/fs/bpf/tidegate/NODE]")
@click.option("--state", type=_DIRECTORY, default=None, help="Manifest and socket. [default: /run/tidegate/NODE]")
@click.option("--cache", type=_DIRECTORY, default=CACHE, help="For compiled programs: no source is compiled twice.")
@click.option("--cgroup", type=_DIRECTORY, default=Path("/sys/fs/cgroup"), help="cgroup v2 directory of the pods.")
@click.option(
    "--uplink",
    multiple=True,
    help="Device to other nodes and the outside; may be repeated. [default: those of the default routes]",
)
@click.option("--pod-interfaces", default="veth*", help="Names of the host-side devices of pods.")
@click.option("--attach", type=click.Choice(["auto", "tcx", "clsact"]), default="auto", help="Hooks for programs.")
@click.option(
    "--socket-lb",
    type=click.Choice(["all", "node"]),
    default="all",
    help="Whose sockets are translated: all in the cgroup, or the node's own; the packets of the others are.",
)
@click.option(
    "--node-port-range",
    default="30000-32767",
    callback=_ports,
    help="The API server's --service-node-port-range: no source ports of ours.",
)
@click.option("--backends", type=_ROOM, default=None, help="As of endpoint-sync: maps are made for so many.")
@click.option("--frontends", type=_ROOM, default=None, help="The same.")
@click.option("--source-ranges", type=_ROOM, default=None, help="The same.")
@click.option(
    "--policy-log",
    type=_FILE,
    default=DEFAULT_PATH,
    show_default=True,
    help="Where policy decisions go, as the NetworkLogging object says.",
)
@click.option(
    "--cni-config",
    type=_FILE,
    default=None,
    metavar="FILE",
    help="Where the container runtime finds the configuration of ptp and host-local that the agent writes "
    "(/etc/cni/net.d/05-tidegate.conflist, for example). [default: none is written]",
)
@click.option(
    "--sysctl",
    type=_DIRECTORY,
    default=SYSCTL,
    help="Where forwarding is turned on: containers see theirs read-only, so there another mount of it.",
)
@click.option(
    "--policy-audit",
    is_flag=True,
    help="What policies deny passes on this node, and is logged. Namespaces: annotation policy.tidegate.dev/audit.",
)
@click.option(
    "--visitor",
    type=_FILE,
    default=None,
    metavar="SOCKET",
    help="Where tidegate-node-visitor listens, which enters pods' network namespaces. [default: the agent does, by "
    "CAP_SYS_ADMIN and CAP_SYS_PTRACE]",
)
@click.option("--map-size", multiple=True, metavar="MAP=N", help="Entries of a map; may be repeated.")
def main(
    common: CommonSettings,
    node: str,
    bpffs: Path | None,
    state: Path | None,
    cache: Path,
    cgroup: Path,
    uplink: tuple[str, ...],
    pod_interfaces: str,
    attach: str,
    socket_lb: str,
    backends: int | None,
    frontends: int | None,
    source_ranges: int | None,
    policy_log: Path,
    cni_config: Path | None,
    sysctl: Path,
    policy_audit: bool,
    visitor: Path | None,
    map_size: tuple[str, ...],
    node_port_range: range,
) -> None:
    """Programs the node's kernel from etcd. Stopping it, or killing it, leaves traffic as it is."""
    settings = NodeSettings(
        node=node,
        bpffs=bpffs or Path("/sys/fs/bpf/tidegate") / node,
        state=state or Path("/run/tidegate") / node,
        cache=cache,
        cgroup=cgroup,
        uplinks=uplink or _default_uplinks(),
        pod_interfaces=pod_interfaces,
        attach=attach,
        socket_lb=socket_lb,
        node_ports=node_port_range,
        policy_log=policy_log,
        cni=cni_config,
        sysctl=sysctl,
        policy_audit=policy_audit,
        visitor=visitor,
        # What is said of a map itself comes last, and counts.
        sizes=(*made_for(backends, frontends, source_ranges), *map_size),
    )

    async def work(_: Stop) -> None:
        await serve_node(common, settings)

    run(work, common, "node-agent")


def made_for(backends: int | None, frontends: int | None, source_ranges: int | None) -> tuple[str, ...]:
    """Sizes of maps (MAP=N) for a capacity; without any of it, the defaults of maps.h, which are made for the default.

    >>> made_for(None, None, None)
    ()
    >>> made_for(1_000_000, None, None)[:3]
    ('backends=2000512', 'slots=2000000', 'ring=1000000')
    """
    if backends is None and frontends is None and source_ranges is None:
        return ()
    capacity = Amount(
        backends or DEFAULT.backends, frontends or DEFAULT.frontends, source_ranges or DEFAULT.source_ranges
    )
    return tuple(f"{name}={size}" for name, size in map_sizes(capacity).items())


async def serve_node(common: CommonSettings, settings: NodeSettings) -> None:
    """Never returns. Raises SettingsError for what this machine lacks."""
    check(settings.bpffs, settings.cgroup)
    allow_open_files()
    write_whereabouts(settings, common.cluster, common.etcd, importlib.metadata.version("tidegate"))
    keys = Keyspace(common.cluster)
    store = EtcdStore(common)
    reading = Reading(store, keys)
    try:
        reading.begin()  # while the programs are loaded
        await _serve(common, settings, keys, reading)
    finally:
        try:
            await reading.close()
        finally:
            await store.close()


async def _serve(common: CommonSettings, settings: NodeSettings, keys: Keyspace, reading: Reading) -> None:
    try:
        # Changes nothing of what is forwarded, and may refuse what it is asked for.
        manifest = await run_loader(settings)
        # Before any program is attached: from here on nothing is forwarded that our programs have not seen.
        await nft.install(settings.pod_interfaces)
        enable_forwarding(settings.uplinks, settings.sysctl)
    except (nft.GuardError, LoadError, OSError) as error:
        raise SettingsError(str(error)) from error
    health = Health("programs", "snapshot")
    agent = Agent(settings, reading, keys, manifest, health)
    try:
        await agent.open()
        monitor = Monitor(manifest, settings.node, agent.monitor)
        agent.monitor(0)
        REGISTRY.register(KernelCollector(agent))
        socket_path = common.http_socket or settings.state / "agent.sock"
        extra = routes(agent, monitor, health, settings.node)
        async with serve(health, listen=common.listen, unix_socket=socket_path, routes=extra):
            await agent.run()
    finally:
        await agent.close()


if __name__ == "__main__":
    main()
