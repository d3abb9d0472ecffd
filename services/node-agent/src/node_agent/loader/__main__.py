"""`python -m node_agent.loader`. Exit codes: 0 loaded (or nothing to do), 1 failed, 2 bad settings, 3 maps differ."""

import sys
from pathlib import Path

import click

from node_agent.loader.load import MapMismatchError, Places, load
from node_agent.loader.objects import CACHE
from node_agent.loader.programs import RefusedError
from node_agent.loader.source import BuildError, find_source


def _sizes(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            sizes[name] = int(number)
        except ValueError:
            raise click.BadParameter(f"{value!r}: write map=entries, as in connections=262144") from None
    return sizes


@click.command(context_settings={"auto_envvar_prefix": "TIDEGATE"})
@click.option("--bpffs", type=click.Path(path_type=Path), required=True, help="Directory of this node in bpffs.")
@click.option("--state", type=click.Path(path_type=Path), required=True, help="Where manifest.json goes.")
@click.option(
    "--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True, help="For compiled programs."
)
@click.option("--size", "sizes", multiple=True, callback=_sizes, metavar="MAP=N", help="Entries of a map.")
@click.option("--source", type=click.Path(path_type=Path, exists=True), default=None, help="Directory of the C files.")
@click.option("--recreate", is_flag=True, help="Forget what maps hold that are to become smaller than that.")
def main(bpffs: Path, state: Path, cache: Path, sizes: dict[str, int], source: Path | None, recreate: bool) -> None:
    """Compiles, loads and pins the eBPF programs and their maps, unless that is done already."""
    try:
        places = Places(bpffs.absolute(), state.absolute(), cache.absolute())
        outcome = load(places, (source or find_source()).absolute(), sizes, recreate=recreate)
    except MapMismatchError as error:
        click.echo(str(error), err=True)
        sys.exit(3)
    except (BuildError, RefusedError, ImportError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except ValueError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    done = "compiled and loaded" if outcome.compiled else "loaded" if outcome.loaded else "already loaded"
    replaced = f"; other maps, empty: {', '.join(outcome.replaced)}" if outcome.replaced else ""
    carried = f"; other maps, with what they held: {', '.join(outcome.carried)}" if outcome.carried else ""
    click.echo(f"{outcome.manifest.digest}: {done}{replaced}{carried}")


if __name__ == "__main__":
    main()
