"""`tidegate-cleanup-kube-proxy`: takes away what a kube-proxy has left; run it once kube-proxy is stopped."""

import asyncio
import os
import sys

import click

from node_agent.kubeproxy import CleanupError, clean


@click.command()
def main() -> None:
    """Removes kube-proxy's rules (iptables, nftables, ipsets, IPVS) from this node, and nothing else.

    Stop kube-proxy first, or it writes them again. Connections that it has translated go on where the agent runs.
    """
    if os.geteuid() != 0:
        raise click.ClickException("removing rules needs root: run it as root, or with sudo")
    try:
        done = asyncio.run(clean())
    except CleanupError as error:
        raise click.ClickException(str(error)) from error
    for line in done or ["nothing of kube-proxy's is here"]:
        click.echo(line)


if __name__ == "__main__":
    sys.exit(main())
