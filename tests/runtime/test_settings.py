"""Flags and their environment."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tidegate.runtime.settings import (
    CONTEXT_SETTINGS,
    CommonSettings,
    common_options,
    parse_listen,
    store_options,
)

seen: list[tuple[CommonSettings, str | None]] = []


@click.command(context_settings=CONTEXT_SETTINGS)
@common_options
@click.option("--kubeconfig")
def service(common: CommonSettings, kubeconfig: str | None) -> None:
    seen.append((common, kubeconfig))


@click.command(context_settings=CONTEXT_SETTINGS)
@store_options
def reader(common: CommonSettings) -> None:
    seen.append((common, None))


def invoke(*arguments: str, command: click.Command = service, environment: dict[str, str] | None = None) -> Result:
    seen.clear()
    return CliRunner().invoke(command, arguments, env=environment)


def settings(
    *arguments: str, command: click.Command = service, environment: dict[str, str] | None = None
) -> CommonSettings:
    result = invoke(*arguments, command=command, environment=environment)
    assert result.exit_code == 0, result.output
    return seen[0][0]


def test_defaults() -> None:
    assert settings() == CommonSettings(listen=("127.0.0.1", 0))
    assert settings(command=reader) == CommonSettings()


def test_every_flag_has_a_variable_and_the_flag_wins() -> None:
    environment = {
        "TIDEGATE_CLUSTER": "blue",
        "TIDEGATE_ETCD": "a:1,b:2",
        "TIDEGATE_ETCD_CA": "/ca",
        "TIDEGATE_ETCD_CERT": "/cert",
        "TIDEGATE_ETCD_KEY": "/key",
        "TIDEGATE_LISTEN": "[::1]:9100",
        "TIDEGATE_HTTP_SOCKET": "/run/x.sock",
        "TIDEGATE_LOG_LEVEL": "debug",
        "TIDEGATE_LOG_FORMAT": "text",
        "TIDEGATE_KUBECONFIG": "/kube",
    }
    assert settings("--cluster", "red", environment=environment) == CommonSettings(
        cluster="red",
        etcd=("a:1", "b:2"),
        etcd_ca=Path("/ca"),
        etcd_cert=Path("/cert"),
        etcd_key=Path("/key"),
        listen=("::1", 9100),
        http_socket=Path("/run/x.sock"),
        log_level="debug",
        log_format="text",
    )
    assert seen[0][1] == "/kube"


def test_endpoints_are_repeated_or_listed() -> None:
    assert settings("--etcd", "a:1, b:2", "--etcd", "unix:///c").etcd == ("a:1", "b:2", "unix:///c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "Blue"], "lower-case"),
        (["--etcd", ","], "at least one endpoint"),
        (["--listen", "host"], "host:port"),
        (["--log-level", "loud"], "loud"),
        (["--etcd-cert", "c", "--etcd-key", "k"], "--etcd-ca"),
        (["--etcd-ca", "a", "--etcd-key", "k"], "together"),
    ],
)
def test_bad_settings_exit_with_2_and_say_what(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not seen


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", None),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        (":80", ("", 80)),
        ("[::]:9", ("::", 9)),
        ("h:65535", ("h", 65535)),
    ],
)
def test_listen(text: str, parsed: tuple[str, int] | None) -> None:
    assert parse_listen(text) == parsed


@pytest.mark.parametrize("text", ["x", "x:", "x:y", "x:65536", "::1:80", "[::1:80"])
def test_what_is_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(ValueError, match="host"):
        parse_listen(text)
