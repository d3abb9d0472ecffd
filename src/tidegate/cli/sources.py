"""Where records come from that a command looks at: etcd, a snapshot of it, or files with objects."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import click

from tidegate.cli.cluster import Cluster, load, parse, problems, read_all, reads_cluster
from tidegate.records import Keyspace
from tidegate.runtime.settings import CommonSettings
from tidegate.store import StoreError
from tidegate.store.local import EtcdProcess

F = TypeVar("F", bound=Callable[..., Any])
OFFLINE = "tidegate.offline"  # entry points: the library itself imports no service

_PATH = click.Path(path_type=Path, exists=True)


def reads_any(command: F) -> F:
    """The etcd options, and those for other sources; the command gets `common`, `snapshot` and `manifests`."""
    manifests = click.option(
        "--manifests", type=_PATH, multiple=True, help="Instead of etcd: objects in a YAML or JSON file or directory."
    )
    snapshot = click.option(
        "--from-etcd-snapshot", "snapshot", type=_PATH, help="Instead of etcd: a file of etcdctl snapshot save."
    )
    return reads_cluster(manifests(snapshot(command)))


def cluster_from(common: CommonSettings, snapshot: Path | None, manifests: Sequence[Path]) -> Cluster:
    """Raises ClickException."""
    if snapshot and manifests:
        raise click.UsageError("--from-etcd-snapshot and --manifests exclude each other")
    if snapshot:
        return asyncio.run(_restored(common, snapshot))
    return of_objects(manifests, common.cluster) if manifests else load(common)


def of_objects(places: Sequence[Path], cluster: str) -> Cluster:
    """What the sync services would write for the objects in the files. Raises ClickException."""
    found = next(iter(entry_points(group=OFFLINE, name="records")), None)
    if found is None:
        raise click.ClickException("this installation has no part that reads objects from files (the package offline)")
    try:
        read = parse(Keyspace(cluster), found.load()(places, cluster))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for _, kind, namespace, name, reason in problems(read):
        click.echo(f"refused: {kind} {namespace}/{name}: {reason}", err=True)
    return read


async def _restored(common: CommonSettings, snapshot: Path) -> Cluster:
    """By an etcd of its own that lives for a moment. Raises ClickException."""
    with tempfile.TemporaryDirectory(prefix="tidegate-snapshot-") as name:
        etcd = EtcdProcess(Path(name))
        command = ["etcdctl", "snapshot", "restore", str(snapshot.absolute()), f"--data-dir={etcd.data}"]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        try:
            restored = await asyncio.to_thread(
                subprocess.run, command, env=environment, capture_output=True, text=True, check=False
            )
            if restored.returncode:
                raise click.ClickException(f"{snapshot}: {restored.stderr.strip() or restored.stdout.strip()}")
            await etcd.start()
            return await read_all(replace(common, etcd=(etcd.endpoint,)))
        except (OSError, StoreError) as error:
            raise click.ClickException(f"{snapshot}: {error}") from error
        finally:
            etcd.stop()
