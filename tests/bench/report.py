"""Runs as tables: on the terminal, and in the generated parts of a page. Pure."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import structs
from tests.bench.model import Limit, Result, Run
from tests.bench.stats import ENOUGH, Estimate, difference, estimate, ratio, verdict, verdict_below

BEGIN, END = "<!-- bench: {} -->", "<!-- /bench -->"


class Table(NamedTuple):
    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def joined(runs: Sequence[Run]) -> Run:
    """One run of all results, in the order of the first: what several have measured is taken from the last of them.

    The machine is the last one's: what is joined should come from one. Without runs ValueError.
    """
    *_, last = runs
    found = {result.name: result for run in runs for result in run.results}
    return structs.replace(last, size=runs[0].size, results=tuple(found.values()))


def tables(run: Run) -> dict[str, Table]:
    """Name, as in the page's marks → table. Those without rows are left out."""
    compared = [result for result in run.results if result.comparisons]
    limited = [result for result in run.results if result.limits]
    others = [result for result in run.results if not (result.comparisons or result.limits)]
    found = {
        "ratios": Table("Ratios", ("", "", "ratio", "95 % interval", "goal", ""), list(_ratios(compared))),
        "rates": _rates(compared),
        "programs": _side_by_side(others),
        "limits": Table("Limits", ("", "", "", "interval", "goal", ""), list(_limits(limited))),
        "machine": Table("Machine", ("", ""), [*run.machine.items(), ("when", run.when), ("size", run.size)]),
    }
    return {name: table for name, table in found.items() if table.rows}


def _ratios(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    for result in results:
        for compared in result.comparisons:
            found = ratio(result.series[compared.subject], result.series[compared.against], result.each)
            enough = len(result.series[compared.subject]) >= ENOUGH * result.each
            goal = ("", "")
            if compared.goal is not None:
                goal = f"≥ {compared.goal:g}", verdict(found, compared.goal) if enough else "open"
            interval = f"{found.low:.3f} … {found.high:.3f}"
            yield result.name, f"{compared.subject} ÷ {compared.against}", f"{found.value:.3f}", interval, *goal


def _limits(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    for result in results:
        for limit in result.limits:
            found = difference(result.series[limit.subject], result.series.get(limit.against))
            subject = f"{limit.subject} − {limit.against}" if limit.against else limit.subject
            what = f"{result.what}: {subject}, {limit.unit or result.unit}"
            interval = f"{_figure(found.low)} … {_figure(found.high)}"
            yield result.name, what, _figure(found.value), interval, *_goal(limit, found)


def _goal(limit: Limit, found: Estimate) -> tuple[str, str]:
    if limit.at_most is not None:
        return f"≤ {limit.at_most:g}", verdict_below(found, limit.at_most)
    if limit.at_least is not None:
        return f"≥ {limit.at_least:g}", verdict(found, limit.at_least)
    return "", ""


def _figure(value: float) -> str:
    """Three digits that count, at least."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rates(results: Sequence[Result]) -> Table:
    subjects = list(dict.fromkeys(name for result in results for name in result.series))
    rows = []
    for result in results:
        found = [estimate(result.series[name], result.each) if name in result.series else None for name in subjects]
        cells = ("" if value is None else f"{value.value:,.0f}" for value in found)
        rows.append((result.name, f"{result.what}, {result.unit}", *cells))
    return Table("Rates (medians)", ("", "", *subjects), rows)


def _side_by_side(results: Sequence[Result]) -> Table:
    """What was measured without comparing, one column a result."""
    names = list(dict.fromkeys(name for result in results for name in result.series))
    rows = [(name, *(_cell(result, name) for result in results)) for name in names]
    units = ", ".join(dict.fromkeys(result.unit for result in results))
    return Table(f"Medians ({units})", ("", *(result.what for result in results)), rows)


def _cell(result: Result, name: str) -> str:
    if name not in result.series:
        return ""
    found: Estimate = estimate(result.series[name], result.each)
    return f"{found.value:,.0f} ({found.low:,.0f} … {found.high:,.0f})"


def markdown(table: Table) -> str:
    lines = ["| " + " | ".join(table.head) + " |", "|" + "---|" * len(table.head)]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines)


def fill_page(page: str, run: Run) -> str:
    """The page with the run's tables between its marks; what the run has no table for stays as it is.

    Raises ValueError where a mark has no end.
    """
    for name, table in tables(run).items():
        begin = BEGIN.format(name)
        if begin not in page:
            continue
        before, _, rest = page.partition(begin)
        if END not in rest:
            raise ValueError(f"no {END} after {begin}")
        page = f"{before}{begin}\n{markdown(table)}\n{END}{rest.partition(END)[2]}"
    return page
