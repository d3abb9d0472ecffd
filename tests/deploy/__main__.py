"""`python -m tests.deploy [--keep DIRECTORY]`: builds the images' trees, tries them, runs compose/docker in them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
from tests.deploy.containers import Containers, read
from tests.deploy.images import DOCKERFILE, PASSED_ON, THERE, Builder, ImageError, parse, try_out

DEMO = ("tidegate", "demo", "--running")


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Where the Debian tree stays, for the next time.")
def main(keep: Path | None) -> None:
    """Builds all images' trees, tries them, and runs the services of compose/docker, with the demo."""
    passed_on = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
    passed_on["PIP_CERT"] = THERE
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgt-images-")))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        try:
            for line in build_and_run(Builder(home, keep or home, stack, passed_on), home / "containers", stack):
                click.echo(line)
        except ImageError as error:
            raise click.ClickException(str(error)) from error


def build_and_run(builder: Builder, home: Path, stack: ExitStack) -> Iterator[str]:
    """Raises ImageError."""
    builder.build(parse(DOCKERFILE.read_text()))
    yield from try_out(builder)
    yield "== compose/docker"
    containers = Containers(home, builder.trees, stack)
    yield from containers.start_all(read())
    demo = containers.execute("nodes", DEMO)
    yield demo.stdout
    if demo.returncode:
        raise ImageError(f"{' '.join(DEMO)} ended with {demo.returncode}")


if __name__ == "__main__":
    main()
