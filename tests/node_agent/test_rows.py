"""The table of Services (tests/choice), through the pure code: objects, records, map entries, a walk through them."""

import asyncio
from functools import partial
from itertools import count

import pytest
from tests.choice.pure import ADDRESSES, NodeAgent, pods_by_address, records, source
from tests.choice.rows import NUMBERS, ROWS
from tests.choice.table import DROPPED, NODES, PASSED, PODS, REFUSED, Probe, probes
from tests.node_agent.world import MAPS

from node_agent.layout import Form
from node_agent.trace import Hook, Kernel, Outcome, Question, Walk, walk
from tidegate.records import Protocol
from tidegate.records.addresses import pack_address, unpack_address

FORMS = {name: (Form(entry.key), Form(entry.value)) for name, entry in MAPS.items()}
ENDS = {Outcome.REFUSED: REFUSED, Outcome.DROPPED: DROPPED, Outcome.PASSED: PASSED}
# Which programs see a client, in the order in which they do. What a socket program leaves is for the next one.
HOOKS = {
    "pods": ((Hook.SOCKET, Hook.POD), (Hook.POD,)),
    "nodes": ((Hook.SOCKET, Hook.OWN),),
    "outside": ((Hook.NETWORK,),),
    "elsewhere": ((Hook.NETWORK,),),
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    """Of each node, as if the maps were its kernel's."""
    values, found = asyncio.run(records()), {}
    for name in NODES:
        agent = NodeAgent(name, dict(zip(PODS, count(100), strict=False)))
        agent.snapshot(values)
        found[name] = Kernel(FORMS, partial(look_up, agent))
    return found


def look_up(agent: NodeAgent, name: str, key: bytes) -> bytes | None:
    """As the kernel does it: of source ranges the longest that covers the key."""
    entries = agent.kernel[name]
    if name != "source_ranges":
        return entries.get(key)
    asked = FORMS[name][0].unpack(key)
    for length in range(asked["prefix"], 31, -1):
        kept = length - 32
        masked = int.from_bytes(asked["addr"], "big") >> (128 - kept) << (128 - kept)
        shorter = FORMS[name][0].pack(prefix=length, service=asked["service"], addr=masked.to_bytes(16, "big"))
        if shorter in entries:
            return entries[shorter]
    return None


def walked(kernel: Kernel, probe: Probe, hooks: tuple[Hook, ...]) -> Walk:
    protocol = Protocol[probe.protocol]
    ends = pack_address(source(probe.client, probe.node, probe.family)), pack_address(probe.address)
    for hook in hooks:
        found = walk(kernel, Question(hook, *ends, probe.port, protocol))
        if found.outcome in (Outcome.CHOSEN, Outcome.REFUSED):
            break
    return found


@pytest.mark.parametrize("name", ROWS)
def test_row(kernels: dict[str, Kernel], name: str) -> None:
    wrong = []
    for probe in probes({name: ROWS[name]}, NUMBERS, ADDRESSES):
        for hooks in HOOKS[probe.client]:
            found = walked(kernels[probe.node], probe, hooks)
            names = frozenset(pods_by_address()[unpack_address(address)] for address, _ in found.backends)
            end = frozenset({ENDS.get(found.outcome, found.outcome.value)})
            answer = names if found.outcome is Outcome.CHOSEN else end
            if answer != probe.answer:
                wrong.append(f"{probe.text} ({hooks[0].value}): {sorted(answer)}, not {sorted(probe.answer)}")
    assert not wrong, "\n".join(wrong)
