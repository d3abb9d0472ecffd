"""A process from start to stop."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import click

from tidegate.runtime.logging import get_logger

STOPPED = 0
FAILED = 1
BAD_SETTINGS = 2


class Failure(Exception):
    """The process cannot do its work. The text is for the operator: what, where, what to do; no traceback follows."""


def run(main: Callable[[], Awaitable[None]]) -> int:
    """Runs `main` until it returns, fails, or SIGTERM or SIGINT cancels it; returns the exit code.

    Cancellation reaches every task of a TaskGroup, so a clean stop is what `finally` blocks do.
    """
    return asyncio.run(_run(main))


async def _run(main: Callable[[], Awaitable[None]]) -> int:
    log = get_logger()
    task = asyncio.ensure_future(main())
    loop = asyncio.get_running_loop()
    asked = False

    def stop(number: signal.Signals) -> None:
        nonlocal asked
        asked = True
        log.info("stopping", signal=number.name)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
    except BaseExceptionGroup as group:
        failures, others = group.split(Failure)
        if others is None and failures is not None:
            for failure in _leaves(failures):
                log.error("cannot go on", reason=str(failure))
        elif asked and group.split(asyncio.CancelledError)[1] is None:
            return STOPPED
        else:
            log.exception("failed")
        return FAILED
    except Failure as failure:
        log.error("cannot go on", reason=str(failure))
        return FAILED
    except Exception:
        log.exception("failed")
        return FAILED
    return STOPPED


def _leaves(group: BaseExceptionGroup[Failure]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def main_program(command: click.Command) -> None:
    """Runs a click command as the program: bad settings exit with 2 and a sentence."""
    try:
        result = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(BAD_SETTINGS)
    except click.Abort:
        sys.exit(FAILED)
    sys.exit(result if isinstance(result, int) else STOPPED)
