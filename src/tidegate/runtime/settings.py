"""Settings that all services share: flags, each of them also an environment variable.

`--etcd-ca` is `TIDEGATE_ETCD_CA`, and so on. A service writes:

    @click.command(context_settings=CONTEXT_SETTINGS)
    @common_options
    @click.option("--kubeconfig")
    def main(common: CommonSettings, kubeconfig: str | None) -> None:
        run(lambda stop: serve(common, kubeconfig, stop), common, "endpoint-sync")

where each further option gets its variable (`TIDEGATE_KUBECONFIG`) through CONTEXT_SETTINGS.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

CONTEXT_SETTINGS: Final[dict[str, Any]] = {
    "auto_envvar_prefix": "TIDEGATE",
    "help_option_names": ["-h", "--help"],
    "show_default": True,
}
DEFAULT_ETCD: Final = "127.0.0.1:2379"

_CLUSTER = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class CommonSettings:
    """The values of `common_options`.

    `etcd` holds endpoints as given (`host:port` or `unix:///path`), never empty. `listen` is None when no TCP port
    is wanted; port 0 takes a free one. `log_format` None means JSON, or text on a terminal.
    """

    cluster: str = "default"
    etcd: tuple[str, ...] = (DEFAULT_ETCD,)
    etcd_ca: Path | None = None
    etcd_cert: Path | None = None
    etcd_key: Path | None = None
    etcd_username: str | None = None
    etcd_password_file: Path | None = None
    listen: tuple[str, int] | None = None
    http_socket: Path | None = None
    log_level: str = "info"
    log_format: str | None = None


def parse_listen(text: str) -> tuple[str, int] | None:
    """`127.0.0.1:9100`, `[::1]:9100` or `:9100` (all addresses) as (host, port); None for the empty text.

    Raises ValueError where there is no port or it is out of range.
    """
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address: write host:port, or [host]:port for IPv6")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{text!r} is no address: write [host]:port for IPv6")
    return host.strip("[]"), int(port)


def _listen(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, int] | None:
    try:
        return parse_listen(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _etcd(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    endpoints = tuple(part.strip() for text in value for part in text.split(",") if part.strip())
    if not endpoints:
        raise click.BadParameter("name at least one endpoint: host:port or unix:///path")
    return endpoints


def _cluster(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not _CLUSTER.fullmatch(value):
        raise click.BadParameter(f"{value!r}: use lower-case letters, digits, '-' and '.'")
    return value


_FILE = click.Path(dir_okay=False, path_type=Path)

_STORE_OPTIONS = (
    click.option(
        "--cluster",
        default="default",
        envvar="TIDEGATE_CLUSTER",
        callback=_cluster,
        help="Name of the cluster: the keys lie under /tidegate/CLUSTER/.",
    ),
    click.option(
        "--etcd",
        multiple=True,
        default=(DEFAULT_ETCD,),
        envvar="TIDEGATE_ETCD",
        callback=_etcd,
        metavar="ENDPOINT",
        help="host:port or unix:///path; repeat it or separate several by commas.",
    ),
    click.option("--etcd-ca", type=_FILE, envvar="TIDEGATE_ETCD_CA", help="PEM of the CA; turns TLS on."),
    click.option("--etcd-cert", type=_FILE, envvar="TIDEGATE_ETCD_CERT", help="PEM of the client certificate."),
    click.option("--etcd-key", type=_FILE, envvar="TIDEGATE_ETCD_KEY", help="PEM of the client's key."),
    click.option(
        "--etcd-username",
        envvar="TIDEGATE_ETCD_USERNAME",
        help="User who logs in with a password: for an etcd behind its grpc-proxy, or without client certificates.",
    ),
    click.option(
        "--etcd-password-file",
        type=_FILE,
        envvar="TIDEGATE_ETCD_PASSWORD_FILE",
        help="File with the user's password; read anew for each connection.",
    ),
)
_LOG_OPTIONS = (
    click.option(
        "--log-level",
        type=click.Choice(_LEVELS, case_sensitive=False),
        default="info",
        envvar="TIDEGATE_LOG_LEVEL",
        help="Lowest level that is written.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(("json", "text")),
        default=None,
        envvar="TIDEGATE_LOG_FORMAT",
        help="Form of the log lines on stderr; text on a terminal, else json.",
    ),
)
_HTTP_OPTIONS = (
    click.option(
        "--listen",
        default="127.0.0.1:0",
        envvar="TIDEGATE_LISTEN",
        callback=_listen,
        metavar="HOST:PORT",
        help="Where /healthz, /readyz and /metrics are served; port 0 is a free one, empty is none.",
    ),
    click.option("--http-socket", type=_FILE, envvar="TIDEGATE_HTTP_SOCKET", help="Unix socket that serves the same."),
)

Command = Callable[..., Any]


def _collect(options: tuple[Callable[[Command], Command], ...]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            fields = {name: kwargs.pop(name) for name in CommonSettings.__dataclass_fields__ if name in kwargs}
            common = CommonSettings(**fields)
            if (common.etcd_cert or common.etcd_key) and not common.etcd_ca:
                raise click.UsageError("--etcd-cert and --etcd-key need --etcd-ca")
            if bool(common.etcd_cert) != bool(common.etcd_key):
                raise click.UsageError("--etcd-cert and --etcd-key go together")
            if bool(common.etcd_username) != bool(common.etcd_password_file):
                raise click.UsageError("--etcd-username and --etcd-password-file go together")
            return command(*args, common=common, **kwargs)

        decorated: Command = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def common_options(command: Command) -> Command:
    """Adds all common options to a click command, which gets them as one argument `common: CommonSettings`."""
    return _collect(_STORE_OPTIONS + _HTTP_OPTIONS + _LOG_OPTIONS)(command)


def store_options(command: Command) -> Command:
    """Like common_options, for commands that only read the store: no HTTP server, no log options."""
    return _collect(_STORE_OPTIONS)(command)
