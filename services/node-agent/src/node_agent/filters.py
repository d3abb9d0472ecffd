"""clsact filters, the way to programs on devices before tcx: which programs stand there. Blocking.

pyroute2 adds and replaces them, and does not tell of their programs.
"""

import struct

from node_agent.netlinkraw import attributes, connect, dump

NETLINK_ROUTE = 0
RTM_GETTFILTER = 46
TCA_OPTIONS, TCA_BPF_ID = 2, 11
PARENT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}

_HEAD = struct.Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info


def programs(index: int, hook: str) -> dict[int, int]:
    """Handle → number of the program, of the device's eBPF filters on that hook. Raises OSError."""
    with connect(NETLINK_ROUTE) as opened:
        request = _HEAD.pack(0, index, 0, PARENT[hook], 0)
        listed = list(dump(opened, RTM_GETTFILTER, request, f"list the filters of device {index}"))
    found = {}
    for body in listed:
        options = dict(attributes(dict(attributes(body[_HEAD.size :])).get(TCA_OPTIONS, b"")))
        if TCA_BPF_ID in options:
            handle = _HEAD.unpack_from(body)[2]
            found[handle] = int.from_bytes(options[TCA_BPF_ID], "little")
    return found
