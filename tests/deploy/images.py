"""Runs the steps of a Dockerfile in directory trees made by debootstrap, without a container engine, as root.

Each stage is an overlay over the stage that it begins from; RUN is a chroot in it. What the images are for is tried in
them afterwards. It takes some minutes and needs Debian's packages and the Python packages, as `docker build` does.
`python -m tests.deploy` does it, and runs compose/docker in them.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "compose/images/Dockerfile"
DEBIAN = re.compile(r"debian:(?P<suite>[a-z]+)-slim")
# How this machine gets its packages is not the image's business, but the trees must get theirs, too.
FROM_HOST = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/apt")
AUTHORITIES, THERE = Path("/etc/ssl/certs/ca-certificates.crt"), "/usr/local/share/host-authorities.crt"
PASSED_ON = re.compile(r"(PIP_|(https?|no)_proxy$)", re.IGNORECASE)


class ImageError(Exception):
    """A step failed, or the Dockerfile has something that is not known here; the text says which."""


@dataclass(frozen=True, slots=True)
class Step:
    word: str
    rest: str


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    begins: str
    steps: tuple[Step, ...]


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile: instructions with their continuation lines joined, comments left out.

    >>> parse("FROM debian:bookworm-slim AS a\\nRUN x \\\\\\n && y\\nFROM a AS b\\nCMD [\\"z\\"]")[0].steps
    (Step(word='RUN', rest='x  && y'),)
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    found: list[Stage] = []
    for line in joined.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            begins, _, name = rest.partition(" AS ")
            found.append(Stage(name, begins, ()))
        elif not found:
            raise ImageError(f"{word} before the first FROM")
        else:
            last = found.pop()
            found.append(Stage(last.name, last.begins, (*last.steps, Step(word, rest))))
    return found


@dataclass
class Tree:
    """A stage that has been run: where it lies, and what RUN and CMD get."""

    path: Path
    layers: tuple[Path, ...] = ()  # that it is made of, the uppermost first
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0:0"
    command: tuple[str, ...] = ()


class Builder:
    """Trees below `home`, Debian's below `debian`; `passed_on` are variables of this machine that RUN gets besides."""

    def __init__(self, home: Path, debian: Path, stack: ExitStack, passed_on: Mapping[str, str]) -> None:
        self._home = home
        self._debians = debian
        self._stack = stack
        self._passed_on = passed_on
        self.trees: dict[str, Tree] = {}

    def build(self, stages: Sequence[Stage]) -> None:
        """Raises ImageError."""
        for stage in stages:
            click.echo(f"== {stage.name}")
            self.trees[stage.name] = tree = self._begin(stage)
            for step in stage.steps:
                click.echo(f"   {step.word} {step.rest[:100]}")
                self._do(tree, step)

    def _begin(self, stage: Stage) -> Tree:
        known = self.trees.get(stage.begins)
        lower = known.layers if known else (self._debian(stage.begins),)
        made = self._home / stage.name
        layers = self._stack.enter_context(overlay(made, lower))
        tree = made / "tree"
        self._stack.enter_context(_mounted(tree))
        if known is None:
            self._like_host(tree)
            return Tree(tree, layers)
        return Tree(tree, layers, dict(known.environment), known.directory, known.user, known.command)

    def _debian(self, image: str) -> Path:
        match = DEBIAN.fullmatch(image)
        if match is None:
            raise ImageError(f"FROM {image}: only debian:…-slim and earlier stages are known here")
        tree = self._debians / image.replace(":", "-")
        if not (tree / "etc/debian_version").exists():
            _run(["debootstrap", "--variant=minbase", match["suite"], str(tree)])
        return tree

    def _like_host(self, tree: Path) -> None:
        for path in map(Path, FROM_HOST):
            if path.is_dir():
                shutil.copytree(path, tree / path.relative_to("/"), dirs_exist_ok=True)
            elif path.exists():
                shutil.copyfile(path, tree / path.relative_to("/"))
        if AUTHORITIES.exists():  # the package ca-certificates would write over them in their own place
            shutil.copyfile(AUTHORITIES, tree / THERE.lstrip("/"))

    def _do(self, tree: Tree, step: Step) -> None:
        if step.word == "RUN":
            self.run(tree, ["sh", "-c", step.rest], tree.directory)
        elif step.word == "COPY":
            self._copy(tree, shlex.split(step.rest))
        elif step.word == "WORKDIR":
            tree.directory = step.rest
            (tree.path / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.word == "ENV":
            tree.environment.update(pair.partition("=")[::2] for pair in shlex.split(step.rest))
        elif step.word == "USER":
            tree.user = step.rest
        elif step.word == "CMD":
            tree.command = tuple(shlex.split(step.rest.strip("[]").replace(",", " ")))
        else:
            raise ImageError(f"{step.word} {step.rest}: not known here")

    def _copy(self, tree: Tree, words: list[str]) -> None:
        source = ROOT
        if words[0].startswith("--from="):
            source = self.trees[words.pop(0).removeprefix("--from=")].path
        *files, target = words
        where = tree.path / os.path.normpath(os.path.join(tree.directory, target)).lstrip("/")  # noqa: PTH118
        for name in files:
            path = source / name.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, where, symlinks=True, dirs_exist_ok=True)
            elif len(files) > 1 or target.endswith("/"):
                where.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, where / path.name)
            else:
                where.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, where)

    def run(self, tree: Tree, command: Sequence[str], directory: str = "/", user: str = "0:0") -> str:
        """What it printed. Raises ImageError."""
        chroot = ["chroot", f"--userspec={user}", str(tree.path), "env", "-i", "DEBIAN_FRONTEND=noninteractive"]
        path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        environment = {**path, **self._passed_on, **tree.environment}
        settings = [f"{name}={value}" for name, value in environment.items()]
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', directory, *command]
        return _run([*chroot, *settings, *inside])


@contextmanager
def overlay(made: Path, lower: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """What lies in `lower`, the uppermost first, to be written to at `made`/tree; what is written lies beside.

    Gives the layers of one above it: an overlay over mounted overlays could be two deep at most.
    """
    for part in ("tree", "written", "work"):
        (made / part).mkdir(parents=True)
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={made / 'written'},workdir={made / 'work'}"
    _run(["mount", "-t", "overlay", "overlay", "-o", options, str(made / "tree")])
    try:
        yield (made / "written", *lower)
    finally:
        _run(["umount", str(made / "tree")])


@contextmanager
def _mounted(tree: Path) -> Iterator[None]:
    """What a container runtime mounts, and what pip needs to see of this machine."""
    with ExitStack() as stack:
        for source, options in {
            "/proc": ["--bind"],
            "/dev": ["--rbind"],
            "/sys": ["--rbind"],
            **{str(p): ["--rbind"] for p in shared()},
        }.items():
            target = tree / source.lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            _run(["mount", *options, "--make-rslave", source, str(target)])
            stack.callback(_run, ["umount", "-R", str(target)])
        yield


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise ImageError(f"{shlex.join(command)[-400:]}: {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


# Compiles and loads all programs, as an agent's first start does, and takes them away again.
LOAD = """
set -e
mkdir -p /tmp/state
python -m node_agent.loader --bpffs /sys/fs/bpf/tgt-image --state /tmp/state --cache /tmp/cache
test -e /tmp/state/manifest.json
rm -r /sys/fs/bpf/tgt-image
nft --version
"""


def try_out(builder: Builder) -> Iterator[str]:
    """That each image can do what it is for; a line for each. Raises ImageError."""
    sync, agent, etcd = (builder.trees[name] for name in ("sync", "node-agent", "etcd"))
    for program in ("tidegate-endpoint-sync", "tidegate-policy-sync", "tidegate"):
        builder.run(sync, [program, "--help"], user=sync.user)
        yield f"sync: {program} runs as {sync.user}"
    for tree in (sync, agent):
        found = builder.run(tree, ["sh", "-c", "command -v gcc clang cc pip || true"])
        if found.strip():
            raise ImageError(f"{tree.path}: {found.split()} is there, and nothing needs it")
    yield "sync, node-agent: no compiler and no pip"
    for program in ("tidegate-node-agent", "tidegate-node-visitor", "tidegate-cleanup-kube-proxy", "tidegate"):
        builder.run(agent, [program, "--help"])
    builder.run(agent, ["sh", "-c", LOAD])
    yield "node-agent: programs compiled and loaded"
    builder.run(etcd, ["etcd", "--version"])
    builder.run(etcd, ["etcdctl", "version"])
    yield "etcd: runs"
    for name, tree in (("sync", sync), ("node-agent", agent), ("etcd", etcd)):
        yield f"{name}: {size(tree.path)} MB unpacked, with Debian"


def size(tree: Path) -> int:
    """Megabytes of files, without what is mounted into it."""
    mounted = [f"--exclude={tree}{path}" for path in ("/proc", "/sys", "/dev", *map(str, shared()))]
    return int(_run(["du", "-sm", *mounted, str(tree)]).split()[0])


def shared() -> list[Path]:
    """Directories of this machine with packages that pip is set up to look into."""
    return [Path(path) for path in os.environ.get("IMAGES_BIND", "").split(":") if path]
