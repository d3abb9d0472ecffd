"""What a client of etcd shows: certificates, a user's name and password. Read anew for each connection."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tidegate.runtime.errors import SettingsError
from tidegate.runtime.settings import CommonSettings


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts. Without `certificate` and `key` only the server proves itself."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """A user of etcd's own, known by password: the way through etcd's grpc-proxy, which has no use for a client's
    certificate."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    tls: Tls | None = None
    login: Login | None = None


def read_credentials(settings: CommonSettings) -> Credentials:
    """What the files of the settings hold now. Raises SettingsError for what cannot be used."""
    return Credentials(read_tls(settings), _read_login(settings))


def read_tls(settings: CommonSettings) -> Tls | None:
    """None without --etcd-ca. Raises SettingsError for files that cannot be read."""
    if settings.etcd_ca is None:
        return None
    certificate = _pem(settings.etcd_cert) if settings.etcd_cert else None
    key = _pem(settings.etcd_key) if settings.etcd_key else None
    return Tls(_pem(settings.etcd_ca), certificate, key)


def _pem(path: Path) -> bytes:
    text = _read(path)
    # gRPC takes anything, and fails each handshake without a reason.
    if b"-----BEGIN" not in text:
        raise SettingsError(f"{path}: holds no PEM text (no line with -----BEGIN)")
    return text


def _read_login(settings: CommonSettings) -> Login | None:
    path = settings.etcd_password_file
    if settings.etcd_username is None or path is None:
        return None
    if settings.etcd_ca is None and not all(map(_stays_here, settings.etcd)):
        raise SettingsError("--etcd-username needs --etcd-ca: the password would cross the network in the clear")
    try:
        password = _read(path).decode().removesuffix("\n")
    except UnicodeDecodeError:  # its own text has the bytes
        raise SettingsError(f"{path}: holds no UTF-8 text") from None
    if not password:
        raise SettingsError(f"{path}: holds no password")
    return Login(settings.etcd_username, password)


def _stays_here(endpoint: str) -> bool:
    """Whether what is sent there leaves this machine."""
    if endpoint.startswith("unix://"):
        return True
    host = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
