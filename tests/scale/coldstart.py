"""An agent's cold start: a real one, in a network namespace of its own, with real maps that are empty.

Its programs have been compiled before (the loader's cache), as they are on a node whose image holds them; they are
loaded anew. `python -m tests.scale.coldstart ENDPOINT CLUSTER` measures one against an etcd that is filled already.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.leftovers import BPF, cgroup2, sweep
from tests.node_agent.netns import PREFIX, Namespace, name_of
from tests.scale.agents import Place, started
from tests.scale.population import Population

from node_agent.loader import CACHE
from node_agent.routes import PROTOCOL

NODE = 1  # of the population: whose agent it is


@contextmanager
def place(population: Population, cache: Path = CACHE, name: str = "cold") -> Iterator[Place]:
    """The network of one node of the population, with a device for one of its pods, and no programs yet. Of one name
    there is one at a time."""
    sweep(PREFIX)
    node = population.node(NODE)
    pod = next(pod for pod in population.pods() if pod.node == node)
    bpffs, cgroup = BPF / name_of(name), cgroup2() / name_of(name)
    namespaces = [Namespace(name), Namespace(f"{name}-out"), Namespace(f"{name}-pod")]
    inside, outside, pods = namespaces
    with tempfile.TemporaryDirectory(prefix="tgt-cold-") as state:
        try:
            bpffs.mkdir()
            cgroup.mkdir()
            with inside.entered():
                # No addresses made of hardware addresses, which are drawn: one such node is to be as the other.
                Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").write_text("1")
            inside.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside.name)
            inside.ip("link", "add", "vethpod", "type", "veth", "peer", "name", "eth0", "netns", pods.name)
            inside.ip("addr", "add", f"{node.address}/12", "dev", "eth0")
            for namespace, device in ((inside, "eth0"), (inside, "vethpod"), (outside, "eth0"), (pods, "eth0")):
                namespace.ip("link", "set", device, "up")
            inside.ip("route", "add", pod.address, "dev", "vethpod")
            yield Place(node.name, inside, bpffs, cgroup, Path(state), cache)
        finally:
            for namespace in namespaces:
                namespace.remove()
            shutil.rmtree(bpffs, ignore_errors=True)
            cgroup.rmdir()


def forget(where: Place) -> None:
    """What earlier agents left: after this the next start is a cold one."""
    for path in where.bpffs.iterdir():
        shutil.rmtree(path)
    with where.namespace.entered():
        subprocess.run(["ip", "route", "flush", "proto", str(PROTOCOL)], check=True)


def main() -> None:
    endpoint, cluster, *wrapper = sys.argv[1:]
    if not os.path.ismount(BPF):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPF)], check=True)

    async def measure(where: Place) -> None:
        async with started(where, endpoint, cluster, *wrapper) as (found, _):
            figures = {
                "seconds": round(found.seconds, 2),
                "resident_mb": round(found.resident / 1e6),
                "peak_mb": round(found.peak / 1e6),
                "entries": found.entries,
                "log": found.log,
                "problems": len(found.status["problems"]),
            }
            sys.stdout.write(json.dumps(figures) + "\n")

    with place(Population()) as where:
        asyncio.run(measure(where))


if __name__ == "__main__":
    main()
