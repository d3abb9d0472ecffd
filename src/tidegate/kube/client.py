"""Talking to an API server: kubeconfig and authentication by kubernetes-asyncio, requests on a session of our own."""

import os
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import kubernetes_asyncio.config
import msgspec
import yaml
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import ConfigException

from tidegate.kube.objects import UNDECODABLE
from tidegate.kube.watch import GoneError, NotServed, Unreachable
from tidegate.runtime.errors import SettingsError

PAGE = 500  # objects, the size that client-go asks for
CONNECT = 10.0  # seconds
READ = 30.0  # seconds without a byte, of an ordinary request
# A watch is silent for long; the server ends it after WATCH, and sends bookmarks about once a minute.
WATCH = 300  # seconds
WATCH_SILENCE = WATCH + 30.0
JSON = {"Accept": "application/json"}
# ConfigException: the plug-in that gives the credentials failed.
ERRORS = (aiohttp.ClientError, TimeoutError, OSError, ConfigException)
MAX_LINE = 64 * 1024 * 1024  # bytes of one object; etcd holds 1.5 MB, other servers may hold more


class ApiError(Exception):
    """The API server said no. `code` is the HTTP status; the text is its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class KubeClient:
    """One API server. Use it as `async with await KubeClient.load(kubeconfig)`."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._server = str(configuration.host).rstrip("/")
        # What the server's certificate is for, where that is not the name in its address (kubeconfig: tls-server-name).
        self._tls_name: str | None = getattr(configuration, "tls_server_name", None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_tls(configuration), limit=0),
            trust_env=True,
            read_bufsize=2**20,
        )

    @classmethod
    async def load(cls, kubeconfig: Path | None = None) -> Self:
        """From a kubeconfig (also $KUBECONFIG and ~/.kube/config), or inside a pod from its service account.

        Raises SettingsError where there is neither, or it cannot be understood.
        """
        configuration = Configuration()
        inside = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
        where = str(kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config")
        try:
            if kubeconfig is None and inside.exists():
                where = str(inside.parent)
                kubernetes_asyncio.config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                _require_one(where)
                await kubernetes_asyncio.config.load_kube_config(config_file=where, client_configuration=configuration)
            return cls(configuration)
        except (ConfigException, OSError, yaml.YAMLError, TypeError, ValueError) as error:
            raise SettingsError(f"kubeconfig {where}: {error}") from error

    @property
    def server(self) -> str:
        return self._server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _headers(self) -> dict[str, str]:
        # Asked for at each request: tokens of service accounts and of exec plug-ins run out and are renewed.
        settings = await self._configuration.auth_settings()
        token = settings.get("BearerToken")
        return {**JSON, **({"Authorization": str(token["value"])} if token and token["value"] else {})}

    async def pages(self, path: str, fields: str) -> AsyncGenerator[bytes, None]:
        """The list at `path`, of what the field selector takes, in pages of raw JSON.

        Raises Unreachable, GoneError (the continue token ran out).
        """
        token = ""
        while True:
            query = {"limit": str(PAGE), **({"continue": token} if token else {}), **_selector(fields)}
            page = await self._read(path, query)
            yield page
            try:
                token = msgspec.json.decode(page, type=_Continued).metadata.get("continue") or ""
            except UNDECODABLE as error:
                raise Unreachable(f"GET {path} at {self._server}: no list of objects: {error}") from error
            if not token:
                return

    async def _read(self, path: str, query: dict[str, str]) -> bytes:
        try:
            return await self.request("GET", path, query=query)
        except ApiError as error:
            if error.code == 410:
                raise GoneError(str(error)) from error
            if error.code == 404:
                raise NotServed(f"GET {path} at {self._server}: {error}") from error
            raise Unreachable(f"GET {path} at {self._server}: {error}") from error

    async def watch(self, path: str, fields: str, resource_version: str) -> AsyncGenerator[bytes, None]:
        """Raw JSON events after `resource_version`, until the server ends the watch. Raises Unreachable, GoneError."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH),
            **_selector(fields),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=WATCH_SILENCE)
        try:
            headers = await self._headers()
            async with self._session.get(
                self._server + path,
                params=query,
                headers=headers,
                timeout=timeout,
                proxy=self._configuration.proxy,
                server_hostname=self._tls_name,
            ) as response:
                if response.status == 410:
                    raise GoneError(await response.text())
                if response.status == 404:
                    raise NotServed(f"watch {path} at {self._server}: {await response.text()}")
                if response.status != 200:
                    raise Unreachable(f"watch {path} at {self._server}: {response.status} {await response.text()}")
                async for line in _lines(response.content):
                    yield line
        except ERRORS as error:
            raise Unreachable(f"watch {path} at {self._server}: {error or type(error).__name__}") from error

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request. Raises ApiError for a refusal, Unreachable where there is no answer."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=READ)
        try:
            async with self._session.request(
                method,
                self._server + path,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                headers={**await self._headers(), "Content-Type": content_type},
                timeout=timeout,
                proxy=self._configuration.proxy,
                server_hostname=self._tls_name,
            ) as response:
                answer = await response.read()
        except ERRORS as error:
            raise Unreachable(f"{method} {path} at {self._server}: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise ApiError(response.status, _message(answer))
        return answer

    async def get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        return _object(await self.request("GET", path, query=query))

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return _object(await self.request("POST", path, body))

    async def replace(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return _object(await self.request("PUT", path, body))

    async def merge(self, path: str, patch: dict[str, Any]) -> dict[str, Any]:
        """JSON merge patch (RFC 7386)."""
        return _object(await self.request("PATCH", path, patch, content_type="application/merge-patch+json"))

    async def delete(self, path: str, grace: int | None = None) -> None:
        """`grace` in seconds; None leaves it to the object."""
        await self.request("DELETE", path, query=None if grace is None else {"gracePeriodSeconds": str(grace)})


def _require_one(where: str) -> None:
    if not any(Path(path).expanduser().exists() for path in where.split(os.pathsep)):
        raise SettingsError(f"kubeconfig {where}: there is none: name one with --kubeconfig or KUBECONFIG")


class _Continued(msgspec.Struct):
    metadata: dict[str, Any]


def _selector(fields: str) -> dict[str, str]:
    return {"fieldSelector": fields} if fields else {}


def _object(raw: bytes) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.json.decode(raw)
    return value


def _message(raw: bytes) -> str:
    try:
        return str(_object(raw).get("message", raw.decode(errors="replace")))
    except (msgspec.DecodeError, AttributeError):
        return raw.decode(errors="replace")[:500]


async def _lines(stream: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """Lines of any length up to MAX_LINE: StreamReader's own reading by lines gives up at its buffer's size."""
    parts: list[bytes] = []
    size = 0
    async for chunk in stream.iter_any():
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*parts, line])
            parts, size = [], 0
        size += len(rest)
        if size > MAX_LINE:
            raise GoneError(f"an event of the watch is larger than {MAX_LINE >> 20} MiB")
        if rest:
            parts.append(rest)


def _tls(configuration: Configuration) -> ssl.SSLContext | bool:
    if not str(configuration.host).startswith("https"):
        return True
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
