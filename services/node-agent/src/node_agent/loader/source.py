"""The C source as one text: BCC rewrites `map.lookup()` only in the main text, never in an included header."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Raise it when the loader makes something else of the same source.
LOADER_VERSION = 1

FILES = ("pod.c", "network.c", "socket.c")

_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
_ONCE = re.compile(r"\s*#\s*pragma\s+once")
_SIZE = re.compile(r"^#define SIZE_(\w+) (\d+)$", re.MULTILINE)
_MAP = re.compile(r"^MAP_[A-Z]+\((?:\"\w+\", )?(\w+),", re.MULTILINE)
_OWNED = re.compile(r"^#define OWNED_BY_PROGRAMS ((?:.*\\\n)*.*)$", re.MULTILINE)
_REASON = re.compile(r'REASON\((\d+), (\w+), "([^"]*)"\)')


@dataclass(frozen=True)
class Source:
    """The flattened text and what the loader reads out of it."""

    text: str
    digest: str
    maps: tuple[str, ...]  # in the order of maps.h
    owned_by_programs: frozenset[str]
    reasons: dict[int, tuple[str, str]]


def find_source() -> Path:
    """The directory with the C files: beside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "bpf", *(parent / "bpf" for parent in package.parents)]
    for candidate in candidates:
        if (candidate / FILES[0]).is_file():
            return candidate
    raise FileNotFoundError(f"no directory bpf/ with {FILES[0]} beside {package} or above it: give --source")


def flatten(directory: Path) -> str:
    """All files with quoted includes put in their place, each once, with #line for the compiler's messages."""
    seen: set[Path] = set()
    lines: list[str] = []

    def add(path: Path) -> None:
        name = path.relative_to(directory).as_posix()
        lines.append(f'#line 1 "{name}"')
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if _ONCE.match(line):
                lines.append("")
                continue
            match = _INCLUDE.match(line)
            if match is None:
                lines.append(line)
                continue
            included = (path.parent / match[1]).resolve()
            if not included.is_file():
                raise FileNotFoundError(f"{name}:{number}: no file {match[1]}")
            if included in seen:
                lines.append("")
                continue
            seen.add(included)
            add(included)
            lines.append(f'#line {number + 1} "{name}"')

    for file in FILES:
        add((directory / file).resolve())
    return "\n".join(lines) + "\n"


def read_source(directory: Path, sizes: Mapping[str, int]) -> Source:
    """Flattens and examines the source. Raises ValueError for a size of a map that has none."""
    directory = directory.resolve()
    body = flatten(directory)
    sizable = {name for name, _ in _SIZE.findall(body)}
    for name, size in sizes.items():
        if name not in sizable:
            raise ValueError(f"--size {name}={size}: there is no such map; one of {', '.join(sorted(sizable))}")
        if size < 1:
            raise ValueError(f"--size {name}={size}: a map has at least one entry")
    text = "".join(f"#define SIZE_{name} {size}\n" for name, size in sorted(sizes.items())) + body
    owned = _OWNED.search(body)
    version = f"{LOADER_VERSION} {bcc_version()}\n"
    return Source(
        text=text,
        digest=hashlib.sha256((version + text).encode()).hexdigest()[:16],
        maps=tuple(_MAP.findall(body)),
        owned_by_programs=frozenset(owned[1].replace("\\", " ").split()) if owned else frozenset(),
        reasons={int(number): (name, words) for number, name, words in _REASON.findall(body)},
    )


def bcc_version() -> str:
    """The version of the installed BCC, without importing it. Raises ImportError if there is none."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "no Python module `bcc`: install the package python3-bpfcc, and run the distribution's own python3 "
            "(a virtual environment needs --system-site-packages)"
        )
    for place in spec.submodule_search_locations:
        version = Path(place) / "version.py"
        if version.is_file():
            match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", version.read_text())
            if match:
                return match[1]
    return "unknown"
