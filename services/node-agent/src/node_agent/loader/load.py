"""What the loader does, step by step, so that it never leaves half: see the package's docstring for the contract."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node_agent.loader.build import PROGRAMS, BuildError, BuiltMap, Module, definition_of
from node_agent.loader.manifest import Manifest, MapEntry, ProgramEntry, read_manifest, write_manifest
from node_agent.loader.pins import Definition, definition, is_bpffs, opened, pin
from node_agent.loader.source import Source, read_source

__all__ = ["BuildError", "MapMismatchError", "Outcome", "load"]


class MapMismatchError(Exception):
    """Pinned maps of the agent have another definition than the source wants."""


@dataclass(frozen=True)
class Outcome:
    manifest: Manifest
    compiled: bool
    replaced: tuple[str, ...] = ()  # maps that were pinned with another definition


def load(bpffs: Path, state: Path, source_dir: Path, sizes: Mapping[str, int], *, recreate: bool = False) -> Outcome:
    """Brings pins and manifest to what the source says. Raises BuildError, MapMismatchError, OSError, ValueError."""
    bpffs.mkdir(parents=True, exist_ok=True)
    if not is_bpffs(bpffs):
        raise ValueError(f"{bpffs} is not in a bpf file system: mount -t bpf bpf /sys/fs/bpf")
    state.mkdir(parents=True, exist_ok=True)
    source = read_source(source_dir, sizes)
    with _locked(state):
        have = read_manifest(state)
        if have is not None and have.digest == source.digest and _complete(have, bpffs):
            return Outcome(have, compiled=False)
        return _build(bpffs, state, source_dir, source, have, recreate=recreate)


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    with (state / "loader.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _complete(manifest: Manifest, bpffs: Path) -> bool:
    """Whether everything in the manifest is pinned here, the maps with the definitions that it states."""
    for name, program in manifest.programs.items():
        if program.path != str(bpffs / "programs" / manifest.digest / name):
            return False
        try:
            with opened(Path(program.path)):
                pass
        except FileNotFoundError:
            return False
    for name, entry in manifest.maps.items():
        if entry.path != str(bpffs / "maps" / name):
            return False
        try:
            with opened(Path(entry.path)) as fd:
                found = definition(fd)
        except FileNotFoundError:
            return False
        if (found.type, found.key_size, found.value_size, found.max_entries) != (
            entry.type,
            entry.key_size,
            entry.value_size,
            entry.max_entries,
        ):
            return False
    return True


def _build(
    bpffs: Path, state: Path, source_dir: Path, source: Source, have: Manifest | None, *, recreate: bool
) -> Outcome:
    maps = bpffs / "maps"
    maps.mkdir(exist_ok=True)
    reuse = {name: maps / name for name in source.maps if (maps / name).exists()}
    module = Module(source, source_dir, reuse)
    built = module.maps()
    differing = _differing(built, reuse, have)
    if differing:
        refused = {name: text for name, text in differing.items() if name not in source.owned_by_programs}
        if refused and not recreate:
            raise MapMismatchError(
                "\n".join(f"map {name}: {text}" for name, text in refused.items())
                + "\nThese maps hold what the agent wrote. Load with the sizes they have, or with --recreate"
            )
        reuse = {name: path for name, path in reuse.items() if name not in differing}
        module = Module(source, source_dir, reuse)
        built = module.maps()
    programs = {name: module.load(name) for name in PROGRAMS}
    manifest = _manifest(bpffs, source, built)
    _pin(bpffs, source.digest, programs, {name: entry.fd for name, entry in built.items() if name not in reuse})
    write_manifest(state, manifest)
    return Outcome(manifest, compiled=True, replaced=tuple(differing))


def _differing(built: Mapping[str, BuiltMap], reuse: Mapping[str, Path], have: Manifest | None) -> dict[str, str]:
    """Reused maps that are not what the source wants -> have and want in words."""
    differing: dict[str, str] = {}
    for name in reuse:
        wanted, found = built[name].wanted, definition_of(built[name])
        if wanted != found:
            differing[name] = f"pinned as {_words(found)}; wanted: {_words(wanted)}"
            continue
        known = have.maps.get(name) if have else None
        if known is not None and (known.key, known.value) != (built[name].key, built[name].value):
            differing[name] = "pinned with other fields in its key or value than the source has now"
    return differing


def _words(what: Definition) -> str:
    return str(what)


def _manifest(bpffs: Path, source: Source, built: Mapping[str, BuiltMap]) -> Manifest:
    return Manifest(
        digest=source.digest,
        programs={
            name: ProgramEntry(str(bpffs / "programs" / source.digest / name), kind, attach)
            for name, (kind, attach) in PROGRAMS.items()
        },
        maps={
            name: MapEntry(
                path=str(bpffs / "maps" / name),
                type=entry.wanted.type,
                max_entries=entry.wanted.max_entries,
                key_size=entry.wanted.key_size,
                value_size=entry.wanted.value_size,
                key=entry.key,
                value=entry.value,
            )
            for name, entry in built.items()
        },
        reasons={str(number): words for number, words in sorted(source.reasons.items())},
    )


def _pin(bpffs: Path, digest: str, programs: Mapping[str, int], maps: Mapping[str, int]) -> None:
    """Pins beside, then renames: what is at its final place is whole. bpffs knows rename, but no dots in names."""
    beside = bpffs / f"new_{os.getpid()}"
    beside.mkdir()
    try:
        (beside / "programs").mkdir()
        (beside / "maps").mkdir()
        for name, fd in programs.items():
            pin(fd, beside / "programs" / name)
        for name, fd in maps.items():
            pin(fd, beside / "maps" / name)
        for name in maps:
            (beside / "maps" / name).rename(bpffs / "maps" / name)
        final = bpffs / "programs" / digest
        final.parent.mkdir(exist_ok=True)
        if final.exists():
            # Left by a loader that died before its manifest; programs in use live on in their links.
            shutil.rmtree(final)
        (beside / "programs").rename(final)
    finally:
        shutil.rmtree(beside)
