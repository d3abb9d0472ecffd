"""What the loader does, step by step, so that it never leaves half: see the package's docstring for the contract."""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from node_agent.loader.carry import Transfer, conversions, count_entries, forget, retain, retained
from node_agent.loader.compile import compile_source
from node_agent.loader.convert import UnlikeError
from node_agent.loader.manifest import Manifest, MapEntry, ProgramEntry, read_manifest, write_manifest
from node_agent.loader.objects import MapShape, Object, read_object, write_object
from node_agent.loader.pins import Definition, definition, is_bpffs, map_number, opened, pin
from node_agent.loader.programs import PROGRAMS, create_map, load_program
from node_agent.loader.shapes import Shape, read_shapes, write_shapes
from node_agent.loader.source import COMPILED_ENTRIES, Source, read_source


class MapMismatchError(Exception):
    """Pinned maps hold more than what the source wants in their place has room for."""


@dataclass(frozen=True)
class Outcome:
    manifest: Manifest
    compiled: bool  # otherwise it came from the cache, if it was needed
    loaded: bool
    replaced: tuple[str, ...] = ()  # maps that were pinned otherwise, and are empty now
    carried: tuple[str, ...] = ()  # maps that were pinned with another size or layout, and whose entries were kept


@dataclass(frozen=True)
class Places:
    bpffs: Path
    state: Path
    cache: Path


def load(places: Places, source_dir: Path, sizes: Mapping[str, int], *, recreate: bool = False) -> Outcome:
    """Brings pins and manifest to what the source says.

    Raises BuildError, RefusedError, MapMismatchError, ImportError, OSError, ValueError.
    """
    bpffs, state = places.bpffs, places.state
    bpffs.mkdir(parents=True, exist_ok=True)
    if not is_bpffs(bpffs):
        raise ValueError(f"{bpffs} is not in a bpf file system: mount -t bpf bpf /sys/fs/bpf")
    state.mkdir(parents=True, exist_ok=True)
    source = read_source(source_dir, sizes)
    with _locked(state / "loader.lock"):
        have = read_manifest(state)
        if have is not None and have.digest == source.digest and _complete(have, bpffs):
            return Outcome(have, compiled=False, loaded=False)
        return _build(places, source_dir, source, have, recreate=recreate)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
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


def _build(places: Places, source_dir: Path, source: Source, have: Manifest | None, *, recreate: bool) -> Outcome:
    content, compiled = _find_or_compile(places.cache, source_dir, source)
    wanted = {name: _sized(source, name, shape) for name, shape in content.maps.items()}
    maps = places.bpffs / "maps"
    maps.mkdir(exist_ok=True)
    pinned = {name: maps / name for name in source.maps if (maps / name).exists()}
    shapes = read_shapes(places.state)
    differing = _differing(content, wanted, pinned, have, shapes)
    refused = {name: found.text for name, found in differing.items() if found.too_small}
    if refused and not recreate:
        raise MapMismatchError(
            "\n".join(f"map {name}: {text}" for name, text in refused.items())
            + "\nLoad with a size that holds what is there, or with --recreate, which forgets it"
        )
    carried = {name: found for name, found in differing.items() if found.carried and name not in refused}
    replaced = differing.keys() - carried.keys()
    with ExitStack() as stack:
        fresh = {
            name: _kept(stack, create_map(name, wanted[name]))
            for name in wanted
            if name in differing.keys() | wanted.keys() - pinned.keys()
        }
        old = {name: stack.enter_context(opened(path)) for name, path in pinned.items()}
        for name, found in carried.items():
            Transfer(old[name], fresh[name], found.was, _shape(name, content)).copy()
        fds = old | fresh
        programs = _load_programs(stack, content, fds)
        manifest = _manifest(places.bpffs, source, content, wanted)
        # From here on what is copied and what is in use are two maps, also if the loader dies.
        for name in carried.keys() & source.owned_by_programs:
            retain(places.bpffs, have.digest if have else "unknown", name, old[name])
        for name in replaced:
            forget(places.bpffs, name)
        # Beside maps that are in use, programs may not look into one of the agent's that it has not filled.
        filled = {name for name, found in carried.items() if found.same_layout and not found.unfilled}
        unfilled = fresh.keys() - filled - source.owned_by_programs if pinned else set[str]()
        made = {name: fd for name, fd in fresh.items() if name in source.maps}
        _note(places, shapes, old, {fd: _shape(name, content, name in unfilled) for name, fd in made.items()})
        _pin(places.bpffs, source.digest, programs, made)
    write_manifest(places.state, manifest)
    return Outcome(manifest, compiled, loaded=True, replaced=_sorted(replaced), carried=_sorted(carried))


def _note(places: Places, known: Mapping[int, Shape], old: Mapping[str, int], made: Mapping[int, Shape]) -> None:
    """What the new maps mean, before they are pinned, beside what is known of those that still are."""
    shapes = {**known, **{map_number(fd): shape for fd, shape in made.items()}}
    present = {map_number(fd) for fd in (*old.values(), *made)}
    for path in retained(places.bpffs):
        with opened(path) as fd:
            present.add(map_number(fd))
    write_shapes(places.state, shapes, present)


def _shape(name: str, content: Object, unfilled: bool = False) -> Shape:
    shape = content.maps[name]
    if shape.key is None or shape.value is None:
        raise ValueError(f"the map {name} is private")
    return Shape(name, shape.key, shape.value, unfilled)


def _sorted(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _find_or_compile(cache: Path, source_dir: Path, source: Source) -> tuple[Object, bool]:
    """The compiled source, and whether it had to be compiled. Of several loaders at once, one compiles."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(cache / ".lock"):
        content = read_object(cache, source.object_key)
        if content is not None:
            return content, False
        content = compile_source(source, source_dir)
        write_object(cache, source.object_key, content)
        return content, True


def _load_programs(stack: ExitStack, content: Object, maps: Mapping[str, int]) -> dict[str, int]:
    """Name → descriptor. The kernel verifies several at once, and takes most of a start's time for it."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loading = {name: pool.submit(load_program, name, content.programs[name].linked(maps)) for name in PROGRAMS}
    for each in loading.values():
        if each.exception() is None:
            _kept(stack, each.result())
    return {name: each.result() for name, each in loading.items()}


def _kept(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _sized(source: Source, name: str, shape: MapShape) -> Definition:
    if name not in source.sizes:
        return shape.created
    # Of ring buffers a size is in pages.
    return replace(shape.created, max_entries=shape.created.max_entries // COMPILED_ENTRIES * source.sizes[name])


@dataclass(frozen=True)
class _Difference:
    """Of a pinned map to what the source wants: have and want in words, and what is known of what it holds."""

    text: str
    was: Shape | None
    same_layout: bool
    carried: bool  # what it holds can be had by the new one
    too_small: bool  # … if there were room for it

    @property
    def unfilled(self) -> bool:
        return self.was is not None and self.was.unfilled


def _differing(
    content: Object,
    wanted: Mapping[str, Definition],
    pinned: Mapping[str, Path],
    have: Manifest | None,
    shapes: Mapping[int, Shape],
) -> dict[str, _Difference]:
    """Pinned maps that are not what the source wants."""
    differing: dict[str, _Difference] = {}
    for name, path in pinned.items():
        now, want = _shape(name, content), wanted[name]
        with opened(path) as fd:
            found = definition(fd)
            was = shapes.get(map_number(fd)) or _told(name, found, have)
            same = was is None or (was.key, was.value) == (now.key, now.value)
            if found == want and same:
                continue
            held = count_entries(fd) if want.max_entries < found.max_entries and "hash" in found.type else 0
        text = f"pinned as {found}; wanted: {want}"
        too_small = held > want.max_entries
        if too_small:
            text = (
                f"it holds {held} entries and is to have room for {want.max_entries} (it has for {found.max_entries})"
            )
        try:
            conversions(found, want, was, now)
        except UnlikeError:
            differing[name] = _Difference(text, was, same_layout=False, carried=False, too_small=False)
        else:
            differing[name] = _Difference(text, was, same_layout=same, carried=True, too_small=too_small)
    return differing


def _told(name: str, found: Definition, have: Manifest | None) -> Shape | None:
    """What a manifest says of a map about which nothing else is noted."""
    known = have.maps.get(name) if have else None
    if known is None or (known.key_size, known.value_size) != (found.key_size, found.value_size):
        return None
    return Shape(name, known.key, known.value)


def _manifest(bpffs: Path, source: Source, content: Object, wanted: Mapping[str, Definition]) -> Manifest:
    return Manifest(
        digest=source.digest,
        programs={
            name: ProgramEntry(str(bpffs / "programs" / source.digest / name), kind, attach)
            for name, (kind, attach) in PROGRAMS.items()
        },
        maps={
            name: MapEntry(
                path=str(bpffs / "maps" / name),
                type=wanted[name].type,
                max_entries=wanted[name].max_entries,
                key_size=wanted[name].key_size,
                value_size=wanted[name].value_size,
                key=shape.key,
                value=shape.value,
            )
            for name, shape in content.maps.items()
            if shape.key is not None and shape.value is not None
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
