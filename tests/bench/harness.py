"""Compiles and pins `harness.c`, in a process of its own: `python -m tests.bench.harness DIRECTORY`, in a bpffs."""

import ctypes
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from node_agent.loader.pins import pin
from node_agent.loader.source import find_source
from node_agent.maps import libbpf

SOURCE = Path(__file__).with_name("harness.c")
PROGRAMS = ("restore", "nothing", "one_lookup", "bare")
MAPS = ("frames", "measured", "known", "peers")


def pin_harness(directory: Path) -> None:
    """Raises subprocess.CalledProcessError; what the compiler says is on standard error."""
    subprocess.run([sys.executable, "-m", "tests.bench.harness", str(directory)], check=True)


def update(fd: int, key: bytes, value: bytes) -> None:
    """An entry of a map of the harness. Raises OSError."""
    result = libbpf().bpf_map_update_elem(fd, key, value, ctypes.c_uint64(0))
    if result < 0:
        raise OSError(-result, f"a map of the harness: {os.strerror(-result)}")


def main() -> None:
    directory = Path(sys.argv[1])
    os.environ["BCC_KERNEL_SOURCE"] = str(find_source() / "stubs")
    from bcc import BPF

    flags = ["-idirafter", "/usr/include"]
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        flags += ["-idirafter", f"/usr/include/{multiarch}"]
    compiled = BPF(text=SOURCE.read_text(), cflags=flags)
    for name in PROGRAMS:
        pin(compiled.load_func(name, BPF.SCHED_CLS).fd, directory / name)
    for name in MAPS:
        pin(compiled[name].map_fd, directory / name)


if __name__ == "__main__":
    main()
