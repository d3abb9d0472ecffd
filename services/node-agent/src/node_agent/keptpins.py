"""Pins of our programs and maps that somebody removes: put back, or the next agent would begin with empty maps."""

import os
from collections.abc import Iterable
from pathlib import Path

from node_agent import links
from node_agent.loader import Manifest
from tidegate.runtime.logging import get_logger

log = get_logger()


class KeptPins:
    """Blocking. `repairs` counts pins that were gone."""

    def __init__(self, manifest: Manifest) -> None:
        """Raises OSError."""
        maps = (entry.path for entry in manifest.maps.values())
        programs = (entry.path for entry in manifest.programs.values())
        self._fds = {path: links.open_pin(path) for path in map(Path, (*maps, *programs))}
        self.repairs = 0

    @property
    def directories(self) -> Iterable[Path]:
        return {path.parent for path in self._fds}

    def look(self) -> None:
        """Raises OSError."""
        for path, fd in self._fds.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                links.pin(fd, path)
                self.repairs += 1
                log.warning("a pin was removed: pinned anew", path=str(path))

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
