"""Compiles and pins `harness.c`, in a process of its own: `python -m tests.bench.harness DIRECTORY`, in a bpffs."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from node_agent.loader.pins import pin
from node_agent.loader.source import find_source

SOURCE = Path(__file__).with_name("harness.c")
PROGRAMS = ("restore", "nothing", "one_lookup")
MAPS = ("frames", "measured", "known")


def pin_harness(directory: Path) -> None:
    """Raises subprocess.CalledProcessError; what the compiler says is on standard error."""
    subprocess.run([sys.executable, "-m", "tests.bench.harness", str(directory)], check=True)


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
