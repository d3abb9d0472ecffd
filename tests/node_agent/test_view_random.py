"""The whole view at random: what it comes to step by step, and from nothing."""

import contextlib
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.limits import fuzzing
from tests.mutations import Mutator
from tests.node_agent.world import (
    KEYS,
    OWN,
    Agent,
    Values,
    backend,
    backends,
    from_set,
    judged,
    members,
    node,
    pod,
    puts,
    rows,
    rules,
    service,
    slots,
    subject,
)

from node_agent.table import ORDER, Step
from tidegate.records import Backend, RecordError, Rules, Subject, decode
from tidegate.records.addresses import pack_address
from tidegate.store import Delete, Put

NODES, PODS, IDENTITIES, POLICIES, SETS = ("n1", "n2"), 8, range(1001, 1006), range(500, 505), range(300, 303)


def rule_content(policy: int) -> Values:
    """The number of a policy follows from its content: here the content follows from the number."""
    count = policy % 3
    return rules(policy, *(from_set(300 + (policy + i) % len(SETS), port=80 + i) for i in range(count)))


def some_change(rng: random.Random, values: Values) -> list[Put | Delete]:
    """What one write of a sync service may do: every identity keeps a subject, every subject keeps its rules."""

    kind = rng.randrange(8)
    number, shard, gone = rng.randrange(3), rng.randrange(2), rng.random() < 0.25
    if kind == 0:
        policy = rng.choice(POLICIES)
        return puts({**rule_content(policy), **subject(rng.choice(IDENTITIES), policy)})
    if kind == 1:
        used = {decode(Subject, value).policy for key, value in values.items() if "/subjects/" in key}
        return [Delete(KEYS.rules(policy)) for policy in POLICIES if policy not in used]
    if kind == 2:
        chosen = members(SETS[number], shard, *sorted(rng.sample(IDENTITIES, rng.randrange(4))))
    elif kind == 3:
        ports = {"http": 80 + number} | ({"more": 90 + number} if rng.random() < 0.5 else {})
        chosen = service(f"s{number}", f"10.96.0.{number + 1}{rng.randrange(2)}", **ports)
    elif kind == 4:
        chosen = backends(f"s{number}", shard, *(some_backend(rng, shard, n) for n in rng.sample(range(9), 4)))
    elif kind == 5:
        chosen = node(f"n{number + 1}", f"172.31.0.{number + 1}{rng.randrange(2)}")
    else:
        pod_number = rng.randrange(PODS)
        ip = f"10.0.1.{pod_number + 1}{rng.randrange(3)}"
        chosen = pod(f"p{pod_number}", rng.choice(IDENTITIES), ip, node=rng.choice(NODES))
    return [Delete(key) for key in chosen] if gone else puts(chosen)


def some_backend(rng: random.Random, shard: int, number: int) -> Backend:
    ready = rng.random() < 0.5
    return backend(f"10.0.{shard}.{number}", ready=ready, terminating=not ready and rng.random() < 0.5)


def normal(agent: Agent) -> dict[str, object]:
    """What the kernel holds, but for the order of backends in their slots."""
    found: dict[str, object] = {name: agent.rows(name) for name in ORDER if name != "backends"}
    found["backends"] = {number: sorted(slots(agent, number).values()) for number in agent.rows("services")}
    assert len(agent.rows("backends")) == sum(agent.rows("services").values())
    return found


def leads_nowhere(agent: Agent, known: Values) -> list[str]:
    """Entries that lead to what is not there."""
    numbers, counts, programmed = agent.rows("services"), agent.rows("backends"), agent.rows("rules")
    found = [f"frontend {key}" for key, to in agent.rows("frontends").items() if to and to not in numbers]
    found += [f"service {n} slot {i}" for n, c in numbers.items() for i in range(c) if (n, i) not in counts]
    for identity, row in agent.rows("subjects").items():
        policy = row["policy"]
        for rule in decode(Rules, known[KEYS.rules(policy)]).rules:
            if (policy, rule.direction, rule.protocol, rule.prefix, rule.port) not in programmed:
                found.append(f"subject {identity} policy {policy}")
    return found


class Watched(Agent):
    """An agent that looks at the whole kernel after each step."""

    def carry_out(self, step: Step) -> None:
        super().carry_out(step)
        assert not leads_nowhere(self, ALL_RULES)


ALL_RULES: Values = {key: value for policy in POLICIES for key, value in rule_content(policy).items()}


@pytest.mark.parametrize("seed", range(12))
def test_step_by_step_leads_to_the_same_as_from_nothing(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    values: Values = {**ALL_RULES}
    for identity in IDENTITIES:
        values |= subject(identity, rng.choice(POLICIES))
    agent: Agent = Watched()
    agent.snapshot(values)
    for round_number in range(60):
        operations: dict[str, Put | Delete] = {}
        for _ in range(rng.randrange(1, 5)):
            for operation in some_change(rng, values):
                operations.pop(operation.key, None)
                operations[operation.key] = operation
                if isinstance(operation, Put):
                    values[operation.key] = operation.value
                else:
                    values.pop(operation.key, None)
        kind = rng.random()
        if kind < 0.1:
            agent = agent.restarted()
        if kind < 0.2:
            agent.snapshot(values)
        else:
            agent.batch(*operations.values())
        agent.route({f"10.0.1.{n + 1}0": 10 + n for n in range(rng.randrange(PODS))}, ["172.31.0.10"])
        scratch = Agent()
        scratch.snapshot(values)
        scratch.view.endpoints.set_host(agent.view.endpoints._devices, agent.view.endpoints._addresses)
        scratch.write()
        assert normal(agent) == normal(scratch), f"seed {seed}, round {round_number}"


ODD: list[Any] = [
    *(0, -1, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**63, True, None, 1.5, "x", "", b"", b"x" * 5),
    *(bytes(16), b"\xff" * 16, pack_address("10.0.0.1"), [], {}, [1], [[bytes(16), 129]], {"a": 1}, {"": [6, 80]}),
]
NAMES = ["-5", "0", "4294967296", "9" * 20, "abc", "٣", "", "%", "1", "300", "5", "1001", "default", "web"]
WHOLE: Values = {
    **node(OWN, "172.31.2.11", cidrs=("10.1.0.0/24",)),
    **node("n2", "172.31.2.12", cidrs=("10.2.0.0/24",)),
    **pod("web", 1001, "10.1.0.2"),
    **pod("db", 1002, "10.2.0.2", node="n2"),
    **subject(1001, 5),
    **rules(5, from_set(300)),
    **members(300, 0, 1002),
    **judged(1002),
    **service("shop", "10.96.0.1", http=80),
    **backends("shop", 0, backend("10.1.0.2"), backend("10.2.0.2")),
}


def test_records_of_a_newer_minor_version_give_the_same_entries() -> None:
    """With fields that this version does not know, and beside records of which it knows nothing."""
    plain, newer = Agent(), Agent()
    plain.snapshot(WHOLE)
    later = {"v": [1, 9], "LATER": {"more": [1, {}]}}
    known = {key: msgpack.packb({**msgpack.unpackb(value), **later}) for key, value in WHOLE.items()}
    newer.snapshot({**known, f"{KEYS.prefix}later/x": msgpack.packb(later), f"{KEYS.prefix}nodes/n1/more": b""})
    assert newer.kernel == plain.kernel
    assert newer.view.problems == {}


def is_rules(value: bytes) -> bool:
    try:
        decode(Rules, value)
    except RecordError:
        return False
    return True


@pytest.mark.fuzz
@fuzzing(40)
@given(st.integers(0, 2**64))
def test_whatever_a_record_holds_it_costs_itself_alone(seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311  # to be repeated, not to be secret
    mutate = Mutator(choice, ODD, keep=("v",))
    agent = Agent()
    agent.snapshot(WHOLE)
    agent.route({"10.1.0.2": 7}, ["172.31.2.11"])
    before = {name: dict(entries) for name, entries in agent.kernel.items()}
    added: set[str] = set()
    for _ in range(40):
        key, value = choice.choice(list(WHOLE.items()))
        if choice.random() < 0.3:
            segments = key.split("/")
            segments[choice.randrange(4, len(segments))] = choice.choice(NAMES)
            key = "/".join(segments)
        with contextlib.suppress(OverflowError):  # more than msgpack knows
            value = msgpack.packb(mutate(msgpack.unpackb(value)), use_bin_type=True)
        if "/rules/" in key and is_rules(value):
            continue  # under one number there is one content: writers count it from the content
        added.add(key)
        if choice.random() < 0.15:
            agent.remove(key)
        else:
            agent.change({key: value})
        if choice.random() < 0.1:
            agent = agent.restarted()
            agent.snapshot({**WHOLE, key: value})
            agent.route({"10.1.0.2": 7}, ["172.31.2.11"])
    agent.remove(*added)
    agent.change(WHOLE)
    assert rows("endpoints", agent.kernel["endpoints"]) == rows("endpoints", before["endpoints"])
    for name in set(ORDER) - {"backends", "slots", "ring"}:  # of which the order depends on the way
        assert agent.kernel[name] == before[name], name
    assert agent.view.problems == {}
