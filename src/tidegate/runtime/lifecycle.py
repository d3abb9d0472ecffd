"""From start to exit code: one event loop, signals that cancel, errors that are told once."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn

from tidegate.runtime.errors import SettingsError
from tidegate.runtime.logging import configure, get_logger
from tidegate.runtime.memory import one_heap
from tidegate.runtime.settings import CommonSettings

log = get_logger()

CLEAN, FAILURE, BAD_SETTINGS = 0, 1, 2
GRACE = 10.0  # seconds that a service has to clean up after it was told to stop


class Stop:
    """The wish to end. A signal makes it, or `request()`; the main coroutine is cancelled then."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self, reason: str) -> None:
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


Main = Callable[[Stop], Awaitable[None]]


async def supervise(main: Main, grace: float = GRACE) -> int:
    """Runs `main` until it returns, fails, or a stop is requested; the exit code. Errors are logged here."""
    stop = Stop()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.requested:
            log.error("stopped twice, leaving without clean-up", signal=number.name)
            os._exit(FAILURE)
        stop.request(number.name)

    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, on_signal, number)
    running = asyncio.ensure_future(main(stop))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            log.info("stopping", reason=stop.reason)
            running.cancel()
            await asyncio.wait((running,), timeout=grace)
            if not running.done():
                log.error("still busy after the time to clean up, leaving", seconds=grace)
                os._exit(FAILURE)
        return _exit_code(running, stop)
    finally:
        stopping.cancel()
        running.cancel()
        for number in handled:
            loop.remove_signal_handler(number)


def _exit_code(running: asyncio.Future[None], stop: Stop) -> int:
    if running.cancelled():
        if stop.requested:
            return CLEAN
        log.error("cancelled from inside without being told to stop")
        return FAILURE
    error = running.exception()
    if error is None:
        return CLEAN
    bad_settings = [leaf for leaf in _leaves(error) if isinstance(leaf, SettingsError)]
    if bad_settings:
        for leaf in bad_settings:
            print(f"error: {leaf}", file=sys.stderr)  # noqa: T201 - for whoever typed the command
        return BAD_SETTINGS
    log.error("failed", exc_info=error)
    return FAILURE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def run(main: Main, settings: CommonSettings | None = None, service: str = "tidegate") -> NoReturn:
    """The whole life of a service: logs configured, `main(stop)` run, then SystemExit.

    Exit codes: 0 after a clean end or a signal, 1 after a failure (told with its traceback), 2 for a SettingsError
    (its text alone, on stderr). SIGTERM and SIGINT cancel `main`; a second one, or GRACE seconds, end it at once.
    """
    settings = settings or CommonSettings()
    configure(settings.log_level, settings.log_format, service)
    one_heap()
    raise SystemExit(asyncio.run(supervise(main)))
