"""Where records come from that a command looks at: etcd, a snapshot of it, or objects, in files or of an API server."""

import asyncio
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import click

from tidegate.cli.cluster import Cluster, load, parse, playground, problems, read_all, reads_cluster
from tidegate.records import Keyspace
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.settings import CommonSettings
from tidegate.store import StoreError
from tidegate.store.local import EtcdProcess

F = TypeVar("F", bound=Callable[..., Any])
OFFLINE = "tidegate.offline"  # entry points: the library itself imports no service
NO_OBJECTS = (
    "etcd does not hold what rules are made of: policies as they are written, labels of namespaces, and those of pods "
    "that no policy asks for"
)

_PATH = click.Path(path_type=Path, exists=True)
_OPTIONS = (
    click.option(
        "--from-etcd-snapshot", "snapshot", type=_PATH, help="Instead of etcd: what etcdctl snapshot save wrote."
    ),
    click.option(
        "--manifests", type=_PATH, multiple=True, help="Instead of etcd: objects in a YAML or JSON file or directory."
    ),
    click.option("--kubeconfig", type=_PATH, help="Instead of etcd: objects of the API server that it names."),
)


@dataclass(frozen=True, slots=True)
class Origin:
    """One of these; etcd, where there is none."""

    common: CommonSettings
    snapshot: Path | None = None
    manifests: Sequence[Path] = ()
    kubeconfig: Path | None = None

    @property
    def is_live(self) -> bool:
        """Whether it is the cluster as it is now."""
        return not (self.snapshot or self.manifests)

    def read(self) -> Cluster:
        """Raises ClickException."""
        if self.snapshot:
            return asyncio.run(_restored(self.common, self.snapshot))
        if self.manifests:
            return self._compiled(self.manifests)
        return self._compiled((), _listed(self.kubeconfig)) if self.kubeconfig else load(self.common)

    def read_with(self, change: Sequence[Path]) -> tuple[Cluster, Cluster]:
        """The state, and what it would be with the objects in files in addition, or in place. Raises ClickException.

        Where no other objects are named, they are the API server's that kubectl would ask.
        """
        if self.snapshot:
            text = f"--change goes with --manifests, or with an API server: a snapshot will not do, since {NO_OBJECTS}"
            raise click.UsageError(text)
        objects: Sequence[dict[str, Any]] = ()
        if not self.manifests:
            try:
                objects = _listed(self.kubeconfig or _usual())
            except click.ClickException as error:
                text = (
                    f"{error.message}. --change asks the API server, since {NO_OBJECTS}; or name files by --manifests"
                )
                raise click.ClickException(text) from error
        return self._compiled(self.manifests, objects), self._compiled((*self.manifests, *change), objects)

    def _compiled(self, places: Sequence[Path], objects: Sequence[dict[str, Any]] = ()) -> Cluster:
        """What the sync services would write for these objects, and those in files. Raises ClickException."""
        found = next(iter(entry_points(group=OFFLINE, name="records")), None)
        if found is None:
            text = "this installation has no part that makes records of objects (the package offline)"
            raise click.ClickException(text)
        name = self.common.cluster
        try:
            read = parse(Keyspace(name), found.load()(places, name, objects))
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        for _, kind, namespace, name, reason in problems(read):
            click.echo(f"refused: {kind} {namespace}/{name}: {reason}", err=True)
        return read


def reads_any(command: F) -> F:
    """The etcd options, and those for other sources; the command gets them as `origin`."""

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        common: CommonSettings,
        snapshot: Path | None,
        manifests: Sequence[Path],
        kubeconfig: Path | None,
        **kwargs: Any,
    ) -> Any:
        if bool(snapshot) + bool(manifests) + bool(kubeconfig) > 1:
            raise click.UsageError("--from-etcd-snapshot, --manifests and --kubeconfig exclude each other")
        return command(*args, origin=Origin(common, snapshot, manifests, kubeconfig), **kwargs)

    decorated: Any = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return reads_cluster(decorated)  # type: ignore[no-any-return]


def _usual() -> Path | None:
    """The playground's kubeconfig, where one is up and the user has named none; None: as kubectl looks for it."""
    path = playground().get("kubeconfig")
    return Path(path) if path and "KUBECONFIG" not in os.environ else None


def _listed(kubeconfig: Path | None) -> list[dict[str, Any]]:
    """The objects that matter to policies. Raises ClickException."""
    # Half a second, that no other command takes.
    from tidegate.kube.client import KubeClient
    from tidegate.kube.listing import read_objects
    from tidegate.kube.watch import NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICES, GoneError, Unreachable

    async def read() -> list[dict[str, Any]]:
        async with await KubeClient.load(kubeconfig) as api:
            return await read_objects(api, (NAMESPACES, NODES, PODS, SERVICES, NETWORK_POLICIES))

    try:
        return asyncio.run(read())
    except (SettingsError, Unreachable, GoneError) as error:
        raise click.ClickException(str(error)) from error


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
