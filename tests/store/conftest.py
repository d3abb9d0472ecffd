"""A real etcd a module, a fresh one where a test breaks it, and a proxy that cuts connections."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from tidegate.runtime.settings import CommonSettings
from tidegate.store.etcd import EtcdStore
from tidegate.store.local import EtcdProcess

# A busy machine is no failure.
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdProcess]:
    """For tests that leave it as it is, but for keys under their own prefix."""
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    await process.start()
    yield process
    process.kill()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """For tests that stop, wipe or restore it. Not started."""
    process = EtcdProcess(tmp_path / "etcd")
    yield process
    process.kill()


@pytest.fixture
def prefix() -> str:
    return f"/test/{next(_numbers)}/"


OpenStore = Callable[..., EtcdStore]


@pytest_asyncio.fixture
async def open_store() -> AsyncIterator[OpenStore]:
    """Stores for endpoints, closed at the end of the test."""
    stores: list[EtcdStore] = []

    def open_one(*endpoints: str, **files: Path) -> EtcdStore:
        stores.append(EtcdStore(CommonSettings(etcd=endpoints, **files)))  # type: ignore[arg-type]
        return stores[-1]

    yield open_one
    for store in stores:
        await store.close()


class Proxy:
    """Forwards TCP to `port`. `budgets`: bytes that each of the next connections lets through towards the client
    before it is cut; without budgets they live on. `refusing`: connections are closed as they come."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.port = 0
        self.budgets: list[int] = []
        self.refusing = False
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        budget = self.budgets.pop(0) if self.budgets else None
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, up_writer}
        self._writers |= both
        try:
            pumps = (_pump(reader, up_writer, None), _pump(up_reader, writer, budget))
            tasks = [asyncio.ensure_future(pump) for pump in pumps]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            if budget is not None:
                data = data[:budget]
                budget -= len(data)
            writer.write(data)
            await writer.drain()
            if budget == 0:
                return


@pytest_asyncio.fixture
async def proxy_to() -> AsyncIterator[Callable[[int], Awaitable[Proxy]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(port: int) -> Proxy:
            proxy = Proxy(port)
            server = await stack.enter_async_context(await asyncio.start_server(proxy.serve, "127.0.0.1", 0))
            proxy.port = server.sockets[0].getsockname()[1]
            stack.callback(proxy.cut)
            return proxy

        yield start
