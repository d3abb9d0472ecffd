"""A file of records that is replaced by a fresh one when it has reached its size.

Not logging.handlers: its buffer keeps what could not be written, and repeats it later, whole or in part.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SIZE = 10 * 1000 * 1000  # bytes
KEPT = 5  # earlier files, named PATH.1 (the latest) … PATH.5


class LogFile:
    """Opened for each writing, so that nobody minds if somebody takes it away. Blocking."""

    def __init__(self, path: Path, size: int = SIZE, kept: int = KEPT) -> None:
        self._path = path
        self._size = size
        self._earlier = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, kept + 1))]

    def write(self, lines: Sequence[bytes]) -> None:
        """Appends all lines to one file, or none. Raises OSError."""
        data = b"".join(line + b"\n" for line in lines)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if self._path.stat().st_size + len(data) > self._size:
                self._rotate()
        with self._path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                while data:
                    data = data[os.write(file.fileno(), data) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(start)
                raise

    def _rotate(self) -> None:
        for older, newer in zip(self._earlier[:0:-1], self._earlier[-2::-1], strict=True):
            with suppress(FileNotFoundError):
                newer.replace(older)
