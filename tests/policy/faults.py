"""Deliberate faults, and whether the random policies find them. `PYTHONPATH=. python tests/policy/faults.py` as root.

Each fault replaces a piece of a copy of the sources, with which the test then runs until it fails or has had all its
cases. Prints a table for docs/policy.md.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = "tests/bpf/test_random_policies.py"
CASES = "500"


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str


POLICY, CONNTRACK = "bpf/include/policy.h", "bpf/include/conntrack.h"
SYNC, AGENT = "services/policy-sync/src/policy_sync", "services/node-agent/src/node_agent"
FAULTS = [
    # The programs.
    Fault("the last set of a rule is not asked", POLICY, "if (i >= count)", "if (i + 1 >= count)"),
    Fault("a set that is needed besides is not asked", POLICY, "*needed == SET_ANY ||", "*needed ||"),
    Fault(
        "the block is asked for the other end's address",
        POLICY,
        "egress ? flow->responder : flow->initiator",
        "egress ? flow->initiator : flow->responder",
    ),
    Fault(
        "blocks are looked up without the address's last bit",
        "bpf/include/types.h",
        "(32 + 128)\n\n/* ---- conn",
        "(32 + 127)\n\n/* ---- conn",
    ),
    Fault("rules with sets have no blocks", POLICY, "return rule->blocks &&", "return !rule->count && rule->blocks &&"),
    Fault(
        "ports are masked one bit too short", POLICY, "0xffff0000U >> length", "0xffff0000U >> (length - (length > 9))"
    ),
    Fault("rules for all ports of a protocol are skipped", POLICY, "length >= 0; length--", "length > 0; length--"),
    Fault(
        "rules without ports are for packets with ports alone",
        POLICY,
        "if (lengths & LENGTH_ANY_PROTOCOL)",
        "if (has_ports(flow->protocol) && lengths & LENGTH_ANY_PROTOCOL)",
    ),
    Fault("rules of one protocol are for all", POLICY, "any ? 0 : flow->protocol", "any ? 0 : IPPROTO_TCP"),
    Fault(
        "isolation of one direction counts for both",
        POLICY,
        "egress ? SUBJECT_EGRESS_ISOLATED : SUBJECT_INGRESS_ISOLATED",
        "SUBJECT_EGRESS_ISOLATED | SUBJECT_INGRESS_ISOLATED",
    ),
    Fault("the receiver on the same node is not asked", POLICY, "egress >= 0; egress--", "egress > 0; egress--"),
    Fault(
        "known connections are never judged anew",
        CONNTRACK,
        "if (!connection || connection->generation != flow->generation)",
        "if (!connection)",
    ),
    Fault(
        "a judged connection counts as judged under any later policy",
        CONNTRACK,
        "connection->generation != flow->generation",
        "connection->generation < 1",
    ),
    Fault(
        "a connection's entry says all under any later policy",
        "bpf/include/established.h",
        "connection->generation != flow->generation || ",
        "",
    ),
    # Audit.
    Fault("a namespace in audit is enforced", POLICY, "flow->subject_flags & SUBJECT_AUDIT ||", ""),
    Fault("a node in audit is enforced", POLICY, "SUBJECT_AUDIT || setting(SETTING_AUDIT)", "SUBJECT_AUDIT"),
    Fault("audit of one subject is that of all", POLICY, "flow->subject_flags & SUBJECT_AUDIT", "flow->subject_flags"),
    Fault(
        "what the sender's audit lets pass is not asked at the receiver",
        POLICY,
        "if (!judge_side(skb, flow, egress, egress ? from : to, egress ? to : from))\n\t\t\treturn false;",
        "if (!judge_side(skb, flow, egress, egress ? from : to, egress ? to : from))\n\t\t\treturn false;\n"
        "\t\tif (flow->audited)\n\t\t\tbreak;",
    ),
    Fault(
        "what the sender's audit has let pass, the receiver may not deny",
        POLICY,
        "return allowed || audited;",
        "return allowed || flow->audited;",
    ),
    Fault(
        "the verdict of audit is that of the other direction",
        POLICY,
        "egress ? REASON_AUDITED_EGRESS : REASON_AUDITED_INGRESS",
        "egress ? REASON_AUDITED_INGRESS : REASON_AUDITED_EGRESS",
    ),
    Fault("the annotation's value is not looked at", f"{SYNC}/annotations.py", 'get(name) == "true"', "get(name)"),
    Fault("audit that is taken away stays", f"{AGENT}/policy.py", "self._audited.discard(namespace)", "pass"),
    Fault(
        "subjects that stand keep their audit",
        f"{AGENT}/policy.py",
        "            self._audited.discard(namespace)\n        self._mark_subjects(namespace)",
        "            self._audited.discard(namespace)",
    ),
    Fault(
        "subjects that come into audit are not marked",
        f"{AGENT}/policy.py",
        "audited=namespace in",
        "audited=False and namespace in",
    ),
    # The compiler.
    Fault(
        "egress rules do not bring their policy type",
        f"{SYNC}/compile.py",
        'types = ("Ingress", "Egress") if spec.egress else ("Ingress",)\n    for',
        'types = ("Ingress",)\n    for',
    ),
    Fault(
        "policyTypes Egress isolates ingress, too",
        f"{SYNC}/compile.py",
        'tuple(ingress) if "Ingress" in types else None',
        "tuple(ingress)",
    ),
    Fault("an empty from is nobody", f"{SYNC}/compile.py", "if not peers:", "if peers is None:"),
    Fault(
        "endPort is left out",
        f"{SYNC}/compile.py",
        "high = port.port if port.end_port is None else port.end_port",
        "high = port.port",
    ),
    Fault(
        "a podSelector beside a namespaceSelector is left out",
        f"{SYNC}/compile.py",
        'f"{where}.namespaceSelector"), pods)',
        'f"{where}.namespaceSelector"), ALL)',
    ),
    Fault(
        "a peer without namespaceSelector is of all namespaces",
        f"{SYNC}/compile.py",
        "found.add(PeerSelector(namespace, ALL, pods))",
        'found.add(PeerSelector("", ALL, pods))',
    ),
    Fault(
        "NotIn wants the key",
        f"{SYNC}/selectors.py",
        "return value not in self.values",
        "return value is not None and value not in self.values",
    ),
    Fault(
        "In and NotIn are one", f"{SYNC}/selectors.py", "if self.operator == IN:", "if self.operator in (IN, NOT_IN):"
    ),
    Fault(
        "of several requirements one suffices",
        f"{SYNC}/selectors.py",
        "return all(requirement.matches",
        "return not self.requirements or any(requirement.matches",
    ),
    Fault("a range of ports ends one block early", f"{SYNC}/portblocks.py", "while low <= high:", "while low < high:"),
    Fault("exceptions are left out", f"{SYNC}/ipblocks.py", "excepts.add(inner)", "pass"),
    Fault("an exception takes the addresses from all blocks", f"{SYNC}/ipblocks.py", "[need] -= 1", "[need] -= 9"),
    Fault(
        "IPv6 blocks hold IPv4 addresses",
        f"{SYNC}/ipblocks.py",
        "return (*block.excepts, ALL_IPV4)",
        "return block.excepts",
    ),
    Fault(
        "prefixes are left out where the next larger one is a block",
        f"{SYNC}/ipblocks.py",
        "if _needs(total) != _needs(before):",
        "if not _needs(before):",
    ),
    Fault(
        "port names in egress to blocks are not looked at", f"{SYNC}/rules.py", "block.named(port.name, where)", "block"
    ),
    Fault(
        "port names of another protocol count",
        f"{SYNC}/rules.py",
        "if protocol == port.protocol:\n                    yield",
        "if number:\n                    yield",
    ),
    Fault(
        "port names in egress are those of the sender",
        f"{SYNC}/sets.py",
        "if peer.port_name and identity.ports.get(peer.port_name) != peer.port:",
        "if False:",
    ),
    Fault(
        "blocks beside pods are left out",
        f"{SYNC}/rules.py",
        "number(tuple(sorted(addresses))) if addresses else 0",
        "number(tuple(sorted(addresses))) if addresses and not selectors else 0",
    ),
    Fault(
        "of blocks of several policies one policy's count",
        f"{SYNC}/rules.py",
        "number(tuple(sorted(addresses))) if addresses else 0",
        "number(block_grounds[0][0]) if addresses else 0",
    ),
    Fault(
        "of several policies the last one counts",
        f"{SYNC}/subjects.py",
        "[self._policies[key] for key in selecting]",
        "[self._policies[key] for key in selecting[-1:]]",
    ),
    Fault("a namespace relabelled changes nothing", f"{SYNC}/sync.py", "self._peers.namespace_changed(name)", "pass"),
    Fault("a policy that is gone stays", f"{SYNC}/policies.py", "self._enforce(key, None)", "pass"),
    Fault(
        "labels of high cardinality are not asked for",
        f"{SYNC}/policies.py",
        "return frozenset((*labels, *((PORT,",
        "return frozenset((*(), *((PORT,",
    ),
    # The agent.
    Fault(
        "members that leave a set stay",
        f"{AGENT}/policy.py",
        "((False, before - after), (True, after - before))",
        "((True, after - before),)",
    ),
    Fault(
        "a subject keeps the rules that it had",
        f"{AGENT}/policy.py",
        "if before != policy:\n            self._take",
        "if before is None:\n            self._take",
    ),
    Fault(
        "exceptions are written as blocks",
        f"{AGENT}/entries.py",
        '["peer_blocks"].pack(value=needed)',
        '["peer_blocks"].pack(value=needed or 1)',
    ),
    Fault(
        "port-prefix lengths are those of ingress",
        f"{AGENT}/policy.py",
        "(lengths[0], lengths[1])",
        "(lengths[0], lengths[0])",
    ),
    Fault(
        "another pod with the address keeps the identity",
        f"{AGENT}/endpoints.py",
        "self._judged.pop(key, None)\n        if local",
        "self._judged.get(key) or self._judged.pop(key, None)\n        if local",
    ),
]


def run(fault: Fault, copy: Path) -> str:
    """After how many cases the test failed, or that it did not."""
    changed = copy / fault.file
    text = (ROOT / fault.file).read_text()
    changed.write_text(text.replace(fault.old, fault.new))
    paths = [copy / "services/policy-sync/src", copy / "services/node-agent/src"]
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(map(str, (*paths, ROOT))),
        "TIDEGATE_SOURCE": str(copy / "bpf"),
        "TIDEGATE_POLICY_CASES": CASES,
        "TIDEGATE_POLICY_COUNT": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", TEST]
    result = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    changed.write_text(text)
    if result.returncode == 0:
        return "not found"
    found = re.search(r"after (\d+) cases", result.stdout)
    if found:
        return f"after {found[1]}"
    raised = re.search(r"^E +(\w+Error)\b", result.stdout, re.MULTILINE)
    return f"by a {raised[1]}" if raised else f"the test could not run: {result.stdout[-300:]}{result.stderr[-300:]}"


def main() -> None:
    wanted = sys.argv[1:]
    for fault in FAULTS:
        count = (ROOT / fault.file).read_text().count(fault.old)
        assert count == 1, f"{fault.name}: {count} such places in {fault.file}"
    with tempfile.TemporaryDirectory(prefix="tgt-faults-") as name:
        copy = Path(name)
        for part in ("bpf", "services"):
            shutil.copytree(ROOT / part, copy / part)
        for fault in FAULTS:
            if not wanted or any(word in fault.name for word in wanted):
                print(f"| {Path(fault.file).name} | {fault.name} | {run(fault, copy)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
