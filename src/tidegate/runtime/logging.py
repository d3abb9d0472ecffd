"""Structured logs on stderr: a JSON object a line, or text for people on a terminal.

An event is a short constant sentence; what varies goes into fields: `log.warning("object refused", name=…, reason=…)`.
"""

import logging
import sys
from typing import Any, cast

import structlog

Logger = structlog.typing.FilteringBoundLogger


def configure(level: str = "info", format: str | None = None, service: str = "tidegate") -> None:  # noqa: A002 - as the flag
    """Sets up structlog, and the standard library's logging into the same lines. May be called again.

    `format` is "json", "text", or None: text where stderr is a terminal, else JSON.
    """
    text = sys.stderr.isatty() if format is None else format == "text"
    number = logging.getLevelNamesMapping()[level.upper()]

    def name_service(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("service", service)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        name_service,
    ]
    renderer: list[structlog.typing.Processor]
    if text:
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), timestamp_key="time")]
    else:
        renderer = [
            # Without the local variables: they may hold keys and tokens.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(default=str),
        ]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries tell their own business at INFO (each HTTP request, each RPC).
    root.setLevel(max(number, logging.WARNING))


def get_logger(**fields: Any) -> Logger:
    """A logger whose lines all carry `fields`. Cheap; may be taken at import, before configure()."""
    return cast("Logger", structlog.get_logger(**fields))
