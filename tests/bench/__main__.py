"""`python -m tests.bench run` measures, `… page` writes what was measured into a page of the documentation."""

import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from tests.bench.load import LoadError
from tests.bench.model import SIZES, Run, Tick
from tests.bench.programs import PathError
from tests.bench.report import fill_page, joined, tables
from tests.bench.run import names, run
from tests.bench.worlds import SetupError
from tests.scale.syncstart import ProcessError

WIDTH = 160  # of tables in a file


@click.group()
def main() -> None:
    """Measurements, on this machine, as root."""


@main.command(name="list")
def list_() -> None:
    """Names of measurements."""
    for name in names():
        click.echo(name)


@main.command(name="run")
@click.option("--size", type=click.Choice(list(SIZES)), default="full", show_default=True)
@click.option("--only", multiple=True, metavar="PATTERN", help="Measurements by name, as in a shell; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), help="Of all subjects in turn, in each setting.")
@click.option("--settings", type=click.IntRange(1), help="Built anew so often: more of them narrow the intervals.")
@click.option("--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Where the samples go.")
def run_(size: str, only: tuple[str, ...], rounds: int | None, settings: int | None, output: Path | None) -> None:
    """Measures and prints tables."""
    chosen = SIZES[size]
    chosen = replace(chosen, rounds=rounds or chosen.rounds, settings=settings or chosen.settings)
    signal.signal(signal.SIGTERM, _stop)
    told = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=told, disable=not told.is_terminal) as progress:

        def began(what: str, steps: int) -> Tick:
            task = progress.add_task(what, total=steps)
            return lambda: progress.advance(task)

        try:
            done = run(chosen, only, began)
        except (SetupError, LoadError, PathError, ProcessError, OSError) as error:
            raise click.ClickException(str(error)) from error
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(msgspec.json.encode(done))
    console = Console()
    show(done, console if console.is_terminal else Console(width=WIDTH))


@main.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def page(results: tuple[Path, ...], page: Path) -> None:
    """Writes the tables of RESULTS (the JSON of runs) between the marks of PAGE.

    What several have measured is taken from the last of them.
    """
    runs = [msgspec.json.decode(each.read_bytes(), type=Run) for each in results]
    page.write_text(fill_page(page.read_text(), joined(runs)))


def show(done: Run, console: Console) -> None:
    for table in tables(done).values():
        drawn = RichTable(*table.head, title=table.title, title_justify="left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """What was set up is taken down on the way out."""
    sys.exit(143)


if __name__ == "__main__":
    main()
