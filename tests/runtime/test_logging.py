"""The lines of a log."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from tidegate.runtime.logging import configure, get_logger


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_json_lines_carry_time_level_service_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger(part="x")
    configure("info", "json", "agent")
    log.debug("hidden")
    log.info("seen", count=3, raw=b"x")
    logging.getLogger("library").warning("foreign %s", 1)
    logging.getLogger("library").info("hidden")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "message": "seen", "level": "info", "service": "agent", "part": "x", "count": 3, "raw": "b'x'"
    }  # fmt: skip
    assert (second["message"], second["logger"], second["service"]) == ("foreign 1", "library", "agent")


def test_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning", "text")
    get_logger().info("hidden")
    get_logger().warning("seen", count=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert "seen" in line
    assert "count=3" in line
    assert "\x1b" not in line


def test_without_a_terminal_the_default_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    get_logger().info("seen")
    assert json.loads(capsys.readouterr().err)["message"] == "seen"
