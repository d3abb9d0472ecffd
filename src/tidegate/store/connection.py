"""The way to etcd: endpoints, TLS, one gRPC channel at a time, and what its errors mean.

etcd3aio's own connection knows `host:port` without names to resolve, so the channel is made here and handed to its
service classes. A channel leads to one endpoint; when a call on it fails, the next call opens another one, to the next
endpoint, with its name resolved anew. So each endpoint's certificate is checked against its own name, Unix sockets
need no special case, and an etcd whose address changed is found again.
"""

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

# gRPC's fork handlers print to stderr at each subprocess, and its core logs what arrives here as exceptions anyway.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio
from etcd3aio import EtcdConnectionError, EtcdError, EtcdTransientError
from etcd3aio._protobuf import LeaseStub, WatchStub
from etcd3aio.auth import AuthService
from etcd3aio.kv import KVService
from etcd3aio.lease import LeaseService

from tidegate.runtime.errors import SettingsError
from tidegate.store.credentials import Credentials, Login, Tls
from tidegate.store.protocol import StoreError, UnavailableError

DEADLINE = 5.0  # seconds, of one call
MAX_SOCKET_PATH = 107  # bytes: sun_path of unix(7) less its final zero

OPTIONS: tuple[tuple[str, int], ...] = (
    # A revision comes in fragments of at most about 2 MB; a page of a snapshot may be larger than the default of 4 MB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A peer that vanished without a word is noticed after 10 + 5 s. etcd allows a ping each 5 s
    # (--grpc-keepalive-min-time), but only while there is a stream: it cuts idle connections that ping.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Not the wait for a ping's answer, whatever its name: the kernel's, for what was sent to be acknowledged.
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # Retries and reconnects are decided here: gRPC's own would hide that the peer is another one.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # Not the process-wide pool: a new channel would inherit the failures of the last one to that address.
    ("grpc.use_local_subchannel_pool", 1),
)


# A member that is cut off from the others ends such streams; without it, it would say nothing for ever.
_HAS_LEADER = (("hasleader", "true"),)


class RefusedError(StoreError):
    """etcd answered, and will not do it: repeating does not help. `code` is gRPC's."""

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`host` and `port`, or the path of a Unix socket in `host` and port None."""

    host: str
    port: int | None

    def __str__(self) -> str:
        if self.port is None:
            return f"unix://{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """`host:port`, `[v6]:port` or `unix:///path`; a leading `http(s)://` is taken off. Raises SettingsError."""
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/"):
            raise SettingsError(f"--etcd {text}: a Unix socket is written unix:///absolute/path")
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise SettingsError(f"--etcd {text}: the path of a Unix socket has at most {MAX_SOCKET_PATH} bytes")
        return Endpoint(path, None)
    bare = text.removeprefix("http://").removeprefix("https://").rstrip("/")
    host, colon, port = bare.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in host and not bracketed):
        raise SettingsError(f"--etcd {text}: write host:port, [IPv6]:port or unix:///path")
    return Endpoint(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class Target:
    """One address to connect to, in gRPC's words, and the name that its certificate must carry (None: the address)."""

    uri: str
    name: str | None


async def resolve(endpoint: Endpoint) -> list[Target]:
    """The addresses of an endpoint, in the resolver's order. Raises UnavailableError for a name without any."""
    if endpoint.port is None:
        return [Target(f"unix:{endpoint.host}", "localhost")]  # as etcd's own clients have it
    try:
        found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(f"etcd at {endpoint}: the name cannot be resolved: {error.strerror}") from error
    targets = []
    for family, _type, _protocol, _canonical, address in found:
        host = str(address[0])
        name = None if host == endpoint.host else endpoint.host
        uri = f"ipv6:[{host}]:{endpoint.port}" if family == socket.AF_INET6 else f"ipv4:{host}:{endpoint.port}"
        targets.append(Target(uri, name))
    return targets


class Link:
    """One channel and etcd's services on it. In use by any number of calls; closed when the last one is done."""

    def __init__(self, target: Target, tls: Tls | None, endpoint: Endpoint) -> None:
        options: list[tuple[str, int | str]] = list(OPTIONS)
        if tls is None:
            self.channel = grpc.aio.insecure_channel(target.uri, options=options)
        else:
            if target.name is not None:
                options.append(("grpc.ssl_target_name_override", target.name))
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
            self.channel = grpc.aio.secure_channel(target.uri, credentials, options=options)
        self.endpoint = endpoint
        self.users = 0
        # One attempt a call: what may be repeated, and where, is decided above.
        self.kv = KVService(self.channel, max_attempts=1)
        self.lease = LeaseService(self.channel, max_attempts=1)
        self.keep_alive = LeaseStub(self.channel).LeaseKeepAlive
        self._watch = WatchStub(self.channel).Watch
        self.watch = partial(self._watch, metadata=_HAS_LEADER)
        self.user: str | None = None  # who has logged in

    async def log_in(self, login: Login) -> None:
        """Calls on this link are the user's from here on. Raises what calls raise."""
        service = AuthService(self.channel, max_attempts=1)
        answer = await service.authenticate(login.user, login.password, timeout=DEADLINE)
        self.user = login.user
        for each in (self.kv, self.lease):
            each.set_token(answer.token)
        metadata = (("token", answer.token),)
        self.keep_alive = partial(self.keep_alive, metadata=metadata)
        self.watch = partial(self._watch, metadata=(*_HAS_LEADER, *metadata))


class Connection:
    """Links to one of the endpoints at a time; the next one after a failure."""

    def __init__(self, endpoints: Sequence[Endpoint], read: Callable[[], Credentials] = Credentials) -> None:
        """`read` is asked for each link anew: certificates and passwords are replaced while we run."""
        # Shuffled: thousands of agents with the same settings must not all choose the first member.
        self._endpoints = random.sample(list(endpoints), len(endpoints))
        self._read_credentials = read
        self._targets: list[tuple[Endpoint, Target]] = []
        self._link: Link | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self.newest = 0  # the highest revision that a transaction was answered with

    def __str__(self) -> str:
        return ", ".join(map(str, self._endpoints))

    @contextlib.asynccontextmanager
    async def link(self) -> AsyncIterator[Link]:
        """The current link, for one call or one stream.

        What goes wrong inside is raised as UnavailableError, after which the next use goes elsewhere, or as
        RefusedError, where etcd itself said no.
        """
        link = await self._take()
        try:
            yield link
        except _FAILURES as error:
            meaning = self._meaning(error, link)
            if isinstance(meaning, UnavailableError):
                self._retire(link)
            raise meaning from error
        except asyncio.CancelledError:
            # Closing a channel cancels the calls on it in the name of their tasks. A task group would take that for the
            # end of a task that somebody wanted to end, and go on without it.
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                what = "the connection" if self._closed else "a call on the connection"
                ended = "closed" if self._closed else "cancelled"
                raise UnavailableError(f"{what} to etcd at {link.endpoint} was {ended}") from None
            raise
        finally:
            link.users -= 1
            if link is not self._link and not link.users:
                await link.channel.close()

    async def _take(self) -> Link:
        async with self._opening:
            if self._closed:
                raise UnavailableError(f"the connection to etcd at {self} was closed")
            if self._link is None:
                self._link = await self._open(*await self._next_target())
            self._link.users += 1
            return self._link

    async def _open(self, endpoint: Endpoint, target: Target) -> Link:
        try:
            credentials = self._read_credentials()
        except SettingsError as error:  # the files are being replaced just now, or are gone
            raise UnavailableError(f"etcd at {endpoint}: {error}") from error
        link = Link(target, credentials.tls, endpoint)
        if credentials.login is not None:
            try:
                await link.log_in(credentials.login)
            except BaseException as error:
                await link.channel.close()
                if isinstance(error, _FAILURES):
                    raise self._meaning(error, link, f"the login of {credentials.login.user}") from error
                raise
        return link

    async def _next_target(self) -> tuple[Endpoint, Target]:
        if not self._targets:
            trouble: UnavailableError | None = None
            for endpoint in self._endpoints:
                try:
                    self._targets += [(endpoint, target) for target in await resolve(endpoint)]
                except UnavailableError as error:
                    trouble = error
            if not self._targets:
                raise trouble or UnavailableError("etcd has no address")
        return self._targets.pop(0)

    def _retire(self, link: Link) -> None:
        if self._link is link:
            self._link = None

    def _meaning(self, error: Exception, link: Link, what: str = "") -> StoreError:
        """`what` was asked for, if it was no call of our caller's."""
        if isinstance(error, UnavailableError):
            return error
        cause = error.__cause__ if isinstance(error, EtcdError) else error
        where = f"etcd at {link.endpoint}{': ' if what else ''}{what}"
        if isinstance(error, TimeoutError):
            return UnavailableError(f"{where}: no answer within {DEADLINE:g} s")
        if not isinstance(cause, grpc.aio.AioRpcError):
            return UnavailableError(f"{where}: {error}")
        code, details = code_of(cause), cause.details() or ""
        text = f"{where}: {code.name}: {details}"
        if isinstance(error, (EtcdConnectionError, EtcdTransientError)) or code in _UNAVAILABLE:
            return UnavailableError(text)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "space exceeded" in details:
                return RefusedError(f"{text}: compact and defragment etcd, or raise its --quota-backend-bytes", code)
            return UnavailableError(text)
        if link.user is not None and any(words in details for words in TOKEN_IS_VOID):
            return UnavailableError(text)  # the next link logs in anew
        if "authentication failed" in details:
            return RefusedError(f"{text}: check --etcd-username and the content of --etcd-password-file", code)
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return RefusedError(
                f"{text}: check the client certificate's CN, or --etcd-username, and etcd's roles", code
            )
        return RefusedError(text, code)

    async def close(self) -> None:
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            await link.channel.close()


# etcd's words (etcdserver/api/v3rpc/rpctypes). A token has run out, or users or roles have changed since.
TOKEN_IS_VOID = ("invalid auth token", "revision of auth store is old")
# Its grpc-proxy passes on the words, and UNKNOWN for every code.
_CODES = {
    "permission denied": grpc.StatusCode.PERMISSION_DENIED,
    "invalid auth token": grpc.StatusCode.UNAUTHENTICATED,
    "revision of auth store is old": grpc.StatusCode.INVALID_ARGUMENT,
    "authentication failed": grpc.StatusCode.INVALID_ARGUMENT,
    "user name is empty": grpc.StatusCode.INVALID_ARGUMENT,
    "request is too large": grpc.StatusCode.INVALID_ARGUMENT,
    "too many operations": grpc.StatusCode.INVALID_ARGUMENT,
    "authentication is not enabled": grpc.StatusCode.FAILED_PRECONDITION,
    "required revision has been compacted": grpc.StatusCode.OUT_OF_RANGE,
    "required revision is a future revision": grpc.StatusCode.OUT_OF_RANGE,
    "database space exceeded": grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def code_of(error: grpc.aio.AioRpcError) -> grpc.StatusCode:
    """What etcd answered, whoever passed it on."""
    code: grpc.StatusCode = error.code()
    if code is not grpc.StatusCode.UNKNOWN:
        return code
    details = error.details() or ""
    return next((known for words, known in _CODES.items() if words in details), code)


_UNAVAILABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,  # the peer's HTTP/2 broke
        grpc.StatusCode.UNKNOWN,  # so did a proxy in between
        grpc.StatusCode.UNIMPLEMENTED,  # who answers there is no etcd, such as a proxy that has lost its own
    }
)
_FAILURES = (
    UnavailableError,
    EtcdError,
    grpc.aio.AioRpcError,
    grpc.aio.UsageError,  # the channel was closed under the call
    asyncio.InvalidStateError,  # the stream ended before it was written to
    TimeoutError,
)
