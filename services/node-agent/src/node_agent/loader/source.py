"""The C source as one text a part: BCC rewrites `map.lookup()` only in the main text, never in an included header."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Raise it when the loader makes something else of the same source.
LOADER_VERSION = 3

# What is compiled together: the IP family of the packets, files, and the programs in them.
PARTS = (
    (
        4,
        ("pod.c", "network.c", "socket.c"),
        (
            *("from_pod", "to_pod", "from_network", "to_network"),
            *("connect4", "sendmsg4", "recvmsg4", "getpeername4"),
            *("connect6", "sendmsg6", "recvmsg6", "getpeername6"),
            "sock_release",
        ),
    ),
    (6, ("pod.c", "network.c"), ("from_pod6", "to_pod6", "from_network6", "to_network6")),
)
MAIN = "pod.c"
PRIVATE = "PRIVATE"

# The compiler makes the maps, of which only the shapes are wanted: with this many entries, or pages.
COMPILED_ENTRIES = 64

_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
_ONCE = re.compile(r"\s*#\s*pragma\s+once")
_SIZE = re.compile(r"^#define SIZE_(\w+) (\d+)$", re.MULTILINE)
_MAP = re.compile(r"^MAP_([A-Z]+)\((?:\"\w+\", )?(\w+),", re.MULTILINE)
_OWNED = re.compile(r"^#define OWNED_BY_PROGRAMS ((?:.*\\\n)*.*)$", re.MULTILINE)
_REASON = re.compile(r'REASON\((\d+), (\w+), "([^"]*)"\)')


class BuildError(Exception):
    """The source does not compile; the text ends with the reason."""


@dataclass(frozen=True)
class Source:
    """The flattened texts and what the loader reads out of them."""

    parts: tuple[tuple[str, tuple[str, ...]], ...]  # text and the programs in it
    object_key: str  # stands for the texts and what compiles them
    digest: str  # stands for the sizes of maps as well
    maps: tuple[str, ...]  # pinned ones, in the order of maps.h
    private_maps: tuple[str, ...]
    sizes: dict[str, int]  # of the maps whose size can be chosen
    owned_by_programs: frozenset[str]
    reasons: dict[int, tuple[str, str]]


def find_source() -> Path:
    """The directory with the C files: beside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "bpf", *(parent / "bpf" for parent in package.parents)]
    for candidate in candidates:
        if (candidate / MAIN).is_file():
            return candidate
    raise FileNotFoundError(f"no directory bpf/ with {MAIN} beside {package} or above it: give --source")


def flatten(directory: Path, files: tuple[str, ...]) -> str:
    """The files with quoted includes put in their place, each once, with #line for the compiler's messages."""
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

    for file in files:
        add((directory / file).resolve())
    return "\n".join(lines) + "\n"


def read_source(directory: Path, sizes: Mapping[str, int]) -> Source:
    """Flattens and examines the source. Raises ValueError for a size of a map that has none."""
    directory = directory.resolve()
    parts = tuple(
        (f"#define FAMILY {family}\n{flatten(directory, files)}", programs) for family, files, programs in PARTS
    )
    body = parts[0][0]
    defaults = {name: int(size) for name, size in _SIZE.findall(body)}
    for name, size in sizes.items():
        if name not in defaults:
            raise ValueError(f"--size {name}={size}: there is no such map; one of {', '.join(sorted(defaults))}")
        if size < 1:
            raise ValueError(f"--size {name}={size}: a map has at least one entry")
    owned = _OWNED.search(body)
    key = _digest(str(LOADER_VERSION), bcc_version(), *(text for text, _ in parts))
    effective = {**defaults, **sizes}
    found = _MAP.findall(body)
    return Source(
        parts=parts,
        object_key=key,
        digest=_digest(key, *(f"{name}={size}" for name, size in sorted(effective.items()))),
        maps=tuple(name for kind, name in found if kind != PRIVATE),
        private_maps=tuple(name for kind, name in found if kind == PRIVATE),
        sizes=effective,
        owned_by_programs=frozenset(owned[1].replace("\\", " ").split()) if owned else frozenset(),
        reasons={int(number): (name, words) for number, name, words in _REASON.findall(body)},
    )


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


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
