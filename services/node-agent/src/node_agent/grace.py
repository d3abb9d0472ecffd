"""When all programs have ended that run now: what nothing leads to any more may go then."""

import ctypes
import os
import time

_SYSCALL = {"x86_64": 324, "aarch64": 283}  # membarrier(2)
_GLOBAL = 1 << 0

# Where the kernel cannot tell (without the call, or with nohz_full CPUs). A program runs for microseconds.
PAUSE = 1.0  # seconds


def wait_for_programs() -> None:
    """Returns when every program that runs at the call has ended: about 15 ms.

    MEMBARRIER_CMD_GLOBAL is synchronize_rcu() (kernel/sched/membarrier.c), and programs run as RCU's readers.
    """
    number = _SYSCALL.get(os.uname().machine)
    if number is None or ctypes.CDLL(None).syscall(number, _GLOBAL, 0, 0) != 0:
        time.sleep(PAUSE)
