"""What clients saw of each fault, as a table: `make faults` (a plug-in of pytest, for tests marked `fault`).

A test says what is done and what is promised in its mark, and what its clients saw by the fixture `saw`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

Report = pytest.TestReport
_reports: list[Report] = []


def said(report: Report, name: str) -> list[Any]:
    return [value for key, value in report.user_properties if key == name]


def late(report: Report) -> bool:
    """Whether something took longer than is promised."""
    return any(milliseconds > within for milliseconds, within in said(report, "took"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("fault")
    if mark is not None:
        item.user_properties.append(("fault", mark.args))


def pytest_runtest_logreport(report: Report) -> None:
    # A test that fails before or after its call has one more report; one that is skipped has its setup's alone.
    if said(report, "fault") and (report.when == "call" or report.outcome != "passed"):
        _reports.append(report)


def rows(reports: list[Report]) -> Iterator[tuple[str, str, str, str]]:
    """Fault, promise, what a client saw, and `green`, `red`, `late` or `not run`."""
    for report in reports:
        ((fault, promise),) = said(report, "fault")
        colour = {"passed": "green", "failed": "red", "skipped": "not run"}[report.outcome]
        yield fault, promise, "; ".join(said(report, "saw")), "late" if colour == "green" and late(report) else colour


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if any(map(late, _reports)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    table = Table(show_lines=True)
    for column in ("fault", "what is promised", "what clients saw", ""):
        table.add_column(column)
    for *words, colour in rows(_reports):
        style = {"green": "green", "red": "red", "late": "red"}.get(colour, "yellow")
        table.add_row(*words, f"[{style}]{colour}")
    console = Console(file=terminalreporter._tw._file, width=160, highlight=False)
    console.print(table)
