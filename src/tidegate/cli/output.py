"""Tables for people, JSON for programs."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])


def output_option(command: F) -> F:
    """Adds `-o json`; the command gets `output`, "table" or "json"."""
    return click.option(
        "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of what is printed."
    )(command)


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Plain columns, as kubectl prints them; colour only on a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console(soft_wrap=False)
    # Where nobody looks at it, nothing is to be cut to a width.
    (console if console.is_terminal else Console(width=400)).print(table)
