"""Runs the loader, which alone knows BCC, as a process of its own."""

import asyncio
import sys

from node_agent.loader import Manifest, read_manifest
from node_agent.nodesettings import NodeSettings
from tidegate.runtime.logging import get_logger

log = get_logger()


class LoadError(Exception):
    """The eBPF programs could not be loaded; the text is the loader's."""


async def run_loader(settings: NodeSettings) -> Manifest:
    """Runs the loader, a process of its own that ends. Raises LoadError."""
    sizes = [part for size in settings.sizes for part in ("--size", size)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "node_agent.loader",
        f"--bpffs={settings.bpffs}",
        f"--state={settings.state}",
        f"--cache={settings.cache}",
        *sizes,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, trouble = await process.communicate()
    if process.returncode:
        raise LoadError(trouble.decode(errors="replace").strip() or f"the loader ended with {process.returncode}")
    log.info("programs loaded", digest=output.decode().strip())
    manifest = read_manifest(settings.state)
    if manifest is None:
        raise LoadError(f"the loader left no manifest in {settings.state}")
    return manifest
