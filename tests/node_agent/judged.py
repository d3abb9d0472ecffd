"""Packets through a pinned program, one after another, until standard input ends; then their number and verdicts.

Arguments: the pinned program, the network namespace, the device that receives them and its hardware address, and for
each kind of packet `NAME/SOURCE/DESTINATION/PORT`. Of each kind go SYNs of new connections, and in turn with them the
same one again and again.
"""

import json
import os
import select
import sys
from collections import Counter

from scapy.layers.inet import IP, TCP
from tests.bpf.kernel import entered, run_pinned
from tests.bpf.packets import SHOT, frame

FIRST, LAST = 1024, 65535
PORT_AT = 34


def main() -> None:
    program, namespace, ifindex, hardware, *kinds = sys.argv[1:]
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    frames = {}
    for kind in kinds:
        name, source, destination, port = kind.split("/")
        layers = IP(src=source, dst=destination), TCP(sport=1023, dport=int(port), flags="S")
        frames[name] = bytes.fromhex(hardware.replace(":", "")) + bytes(frame(*layers))[6:]
    verdicts: dict[str, Counter[bool]] = {name: Counter() for name in frames}
    number = FIRST
    with entered(fd), run_pinned(program, int(ifindex)) as run:
        print("ready", flush=True)  # noqa: T201  # to whoever has started it
        while not select.select([sys.stdin], [], [], 0)[0]:
            for _ in range(50):
                number = number + 1 if number < LAST else FIRST
                for name, raw in frames.items():
                    fresh = raw[:PORT_AT] + number.to_bytes(2, "big") + raw[PORT_AT + 2 :]
                    verdicts[name][run(fresh) != SHOT] += 1
                    verdicts[name][run(raw) != SHOT] += 1
    found = {name: {"allowed": counts[True], "denied": counts[False]} for name, counts in verdicts.items()}
    print(json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
