"""A playground in a process of its own, which lives on."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playground.layout import Layout
from playground.processes import read_register

PATIENCE = 180.0  # seconds until it is ready


class NotUpError(Exception):
    """The playground did not come up; the text says why, or where to look."""


def start(layout: Layout, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs `playground <arguments>` and returns its register once it is ready. Raises NotUpError."""
    log = Path("/var/log") / f"tidegate-playground{layout.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "playground", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "TIDEGATE_PLAYGROUND": layout.name},
        )
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        register = read_register(layout.state)
        if register.get("supervisor") == process.pid and register.get("ready"):
            return register
        if process.poll() is not None:
            raise NotUpError(f"the playground did not come up:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.02)
    process.terminate()
    raise NotUpError(f"the playground was not ready after {PATIENCE:g} s: see {log}")
