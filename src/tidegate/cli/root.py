"""The `tidegate` command with all that belongs to it."""

from importlib.metadata import entry_points

import click

from tidegate.cli import commands, monitor, policy, services, status
from tidegate.runtime.settings import CONTEXT_SETTINGS

PLUGINS = "tidegate.commands"


class Commands(click.Group):
    """The commands here, and those that other packages add under the entry point `tidegate.commands`."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *(point.name for point in entry_points(group=PLUGINS))})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        found = super().get_command(context, name)
        if found is not None:
            return found
        for point in entry_points(group=PLUGINS, name=name):
            command = point.load()
            if isinstance(command, click.Command):
                return command
        return None


@click.group(cls=Commands, context_settings=CONTEXT_SETTINGS)
def tidegate() -> None:
    """Services and NetworkPolicy in eBPF: what is in etcd, what is in the kernel, and why."""


for command in (
    status.status,
    services.services,
    commands.identities,
    commands.endpoints,
    commands.decode,
    commands.etcd_roles,
    policy.policy,
    monitor.monitor,
    commands.version,
):
    tidegate.add_command(command)
