"""`python -m playground.apiserver`: the server as a process; writes a kubeconfig as soon as it listens."""

from pathlib import Path

import click

from playground.apiserver.routes import serve
from playground.realapi import kubeconfig as kubeconfig_text
from tidegate.runtime.lifecycle import Stop, run
from tidegate.runtime.logging import get_logger

TOKEN = "playground"  # noqa: S105  # nobody checks it: the server listens on loopback


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on: it lets everybody in.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="TCP port; 0: a free one.")
@click.option("--service-cidr", default="10.96.0.0/16", show_default=True, help="One of each family, with a comma.")
@click.option("--kubeconfig", type=click.Path(path_type=Path, dir_okay=False), help="Written when the server listens.")
@click.option("--journal", type=click.Path(path_type=Path, dir_okay=False), help="Keeps the objects over a restart.")
@click.option("--no-validation", is_flag=True, help="Takes objects that a real server would refuse.")
def main(
    host: str, port: int, service_cidr: str, kubeconfig: Path | None, journal: Path | None, no_validation: bool
) -> None:
    """A small Kubernetes API server over state in memory."""

    async def work(stop: Stop) -> None:
        async with serve(host, port, service_cidr, validate=not no_validation, journal=journal) as server:
            get_logger().info("serving", port=server.port)
            if kubeconfig is not None:
                beside = kubeconfig.with_suffix(".new")
                beside.write_text(kubeconfig_text(f"http://127.0.0.1:{server.port}", TOKEN))
                beside.replace(kubeconfig)
            await stop.wait()

    run(work, service="apiserver")


if __name__ == "__main__":
    main()
