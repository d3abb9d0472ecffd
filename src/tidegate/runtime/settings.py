"""Settings: flags, each with an environment variable of the same name (`--etcd` and `TIDEGATE_ETCD`)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PREFIX = "TIDEGATE"
_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:/\s]+):(\d{1,5})")


class SettingsError(click.UsageError):
    """A setting that cannot be used: the text says which, and what it should be."""


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """How to reach etcd. Certificates are paths of PEM files; without `ca` the connection is not encrypted."""

    endpoints: tuple[str, ...]  # `host:port` or `unix:///path`
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class CommonSettings:
    """What all services are told."""

    cluster: str
    etcd: EtcdSettings
    listen: tuple[str, int] | None  # for /healthz, /readyz, /metrics
    http_socket: Path | None  # the same on a unix socket
    log_level: str
    log_format: str


def etcd_settings(values: dict[str, Any]) -> EtcdSettings:
    """Takes the etcd flags out of click's values (the rest stays)."""
    endpoints = tuple(part.strip() for text in values.pop("etcd") for part in text.split(",") if part.strip())
    if not endpoints:
        raise SettingsError("--etcd: name at least one endpoint, as host:port or unix:///path")
    for endpoint in endpoints:
        if not endpoint.startswith("unix:///") and not _HOST_PORT.fullmatch(endpoint):
            raise SettingsError(f"--etcd: {endpoint!r} is neither host:port nor unix:///path")
    ca, cert, key = (values.pop(f"etcd_{name}") for name in ("ca", "cert", "key"))
    if bool(cert) != bool(key) or (cert and not ca):
        raise SettingsError("--etcd-cert and --etcd-key go together, and with --etcd-ca")
    return EtcdSettings(endpoints, ca, cert, key)


def common_settings(values: dict[str, Any]) -> CommonSettings:
    """Takes the common flags out of click's values (the rest stays for the service)."""
    etcd = etcd_settings(values)
    listen = values.pop("listen")
    return CommonSettings(
        cluster=values.pop("cluster"),
        etcd=etcd,
        listen=host_and_port("--listen", listen) if listen else None,
        http_socket=values.pop("http_socket"),
        log_level=values.pop("log_level"),
        log_format=values.pop("log_format"),
    )


def host_and_port(flag: str, text: str) -> tuple[str, int]:
    match = _HOST_PORT.fullmatch(text)
    if not match or int(match[2]) > 65535:
        raise SettingsError(f"{flag}: {text!r} is not host:port")
    return match[1].strip("[]"), int(match[2])


def _stack(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_FILE = click.Path(path_type=Path, dir_okay=False)

etcd_options = _stack(
    [
        click.option("--cluster", default="default", show_default=True, help="Name of the cluster in etcd's keys."),
        click.option(
            "--etcd",
            multiple=True,
            default=["127.0.0.1:2379"],
            show_default=True,
            help="Endpoint: host:port or unix:///path. May be repeated, or a list with commas.",
        ),
        click.option("--etcd-ca", type=_FILE, help="CA certificate (PEM) of etcd; turns on TLS."),
        click.option("--etcd-cert", type=_FILE, help="Client certificate (PEM)."),
        click.option("--etcd-key", type=_FILE, help="Key of the client certificate (PEM)."),
    ]
)

common_options = _stack(
    [
        etcd_options,
        click.option("--listen", default="", help="host:port for /healthz, /readyz and /metrics. Empty: none."),
        click.option("--http-socket", type=_FILE, help="Unix socket for the same."),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            show_default=True,
        ),
        click.option(
            "--log-format",
            type=click.Choice(["auto", "json", "text"]),
            default="auto",
            show_default=True,
            help="auto: text on a terminal, JSON lines elsewhere.",
        ),
    ]
)


def service_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """`@service_command("node-agent")`: a click command whose flags can all come from the environment."""
    settings = {"auto_envvar_prefix": PREFIX, "help_option_names": ["-h", "--help"], "show_default": True}
    return click.command(name, context_settings=settings)
