"""What a kube-proxy that does not run any more has left: its rules, found and taken away. Nothing else is touched.

Which chains are its own: those that its own `--cleanup` removes, in the iptables and in the IPVS mode. The kubelet's
stay (KUBE-FIREWALL, KUBE-MARK-DROP, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT), and those of whoever else begins names
with KUBE-. Connections go on where an agent has taken them over (`takeover`), or other rules ask for conntrack and NAT.
"""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHAINS = frozenset(
    {
        *("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY"),
        *("KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL"),
        *("KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL"),
        *("KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"),
    }
)
_OF_A_PORT = re.compile(r"KUBE-(SVC|SVL|SEP|FW|EXT|XLB)-[A-Z2-7]{16}")

SETS = frozenset(
    f"KUBE-{six}{name}"[:31]  # of the kernel's names of sets
    for six in ("", "6-")
    for name in (
        *("LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "IPVS-IPS", "HEALTH-CHECK-NODE-PORT"),
        *("LOAD-BALANCER", "LOAD-BALANCER-FW", "LOAD-BALANCER-LOCAL"),
        *("LOAD-BALANCER-SOURCE-IP", "LOAD-BALANCER-SOURCE-CIDR"),
        *("NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP", "NODE-PORT-LOCAL-UDP"),
        *("NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH"),
    )
)
DEVICE = "kube-ipvs0"
TABLE = "kube-proxy"  # of nftables, in the families ip and ip6
FAMILIES = ("ip", "ip6")


class CleanupError(Exception):
    """Some of it is still there; the text says what, and what to do."""


def is_own(chain: str) -> bool:
    """Whether a chain of iptables is kube-proxy's."""
    return chain in CHAINS or _OF_A_PORT.fullmatch(chain) is not None


def removal(saved: str) -> str:
    """From the output of iptables-save the input of `iptables-restore --noflush` that removes what is kube-proxy's.

    Each table is changed in one step. Empty where nothing of it is there.
    """
    parts = []
    for table, chains, rules in _tables(saved):
        own = [chain for chain in chains if is_own(chain)]
        jumps = [rule for rule in rules if _leads_to_own(rule) and not is_own(rule.split()[1])]
        if own or jumps:
            # Declaring a chain that is there empties it; only then can those it led to be deleted.
            lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in own)]
            lines += [f"-D {rule.removeprefix('-A ')}" for rule in jumps]
            lines += [*(f"-X {chain}" for chain in own), "COMMIT"]
            parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def _leads_to_own(rule: str) -> bool:
    found = re.search(r" (?:-j|-g) (\S+)", rule)
    return found is not None and is_own(found[1])


def _tables(saved: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, chains and rules of each table."""
    for part in re.split(r"^\*", saved, flags=re.MULTILINE)[1:]:
        name, *lines = part.splitlines()
        chains = [line[1:].split()[0] for line in lines if line.startswith(":")]
        yield name, chains, [line for line in lines if line.startswith("-A ")]


def nft_removal(ruleset: Sequence[dict[str, Any]]) -> str:
    """From what `nft -j list ruleset` lists the input of `nft -f -` that removes what is kube-proxy's: its own tables,

    and its chains in those that iptables-nft uses. Empty where nothing of it is there.
    """
    tables = [item["table"] for item in ruleset if "table" in item]
    lines = [f"delete table {t['family']} {TABLE}" for t in tables if t["family"] in FAMILIES and t["name"] == TABLE]
    chains = [item["chain"] for item in ruleset if "chain" in item]
    own = [f"{c['family']} {c['table']} {c['name']}" for c in chains if _in_iptables(c) and is_own(c["name"])]
    rules = [item["rule"] for item in ruleset if "rule" in item]
    jumps = [rule for rule in rules if _in_iptables(rule) and not is_own(rule["chain"]) and _jumps_to_own(rule)]
    lines += [f"flush chain {chain}" for chain in own]
    lines += [f"delete rule {r['family']} {r['table']} {r['chain']} handle {r['handle']}" for r in jumps]
    lines += [f"delete chain {chain}" for chain in own]
    return "".join(f"{line}\n" for line in lines)


def _in_iptables(item: dict[str, Any]) -> bool:
    return item["family"] in FAMILIES and item["table"] in ("nat", "filter", "mangle", "raw", "security")


def _jumps_to_own(rule: dict[str, Any]) -> bool:
    targets = (part.get(verb, {}) for part in rule["expr"] for verb in ("jump", "goto"))
    return any(is_own(target.get("target", "")) for target in targets if target)


async def clean(proc: Path = Path("/proc/thread-self/net")) -> list[str]:
    """Takes everything away, in this network namespace; what there was, for people. Raises CleanupError, after it has
    done what could be done."""
    done: list[str] = []
    troubles: list[str] = []
    # The rules that use sets go before the sets.
    for step in (_nftables, _legacy, _ipsets, _ipvs):
        try:
            done += await step(proc)
        except CleanupError as error:
            troubles.append(str(error))
    if troubles:
        raise CleanupError("; ".join(troubles))
    return done


async def _nftables(_: Path) -> list[str]:
    listed = json.loads(await _run(["nft", "-j", "list", "ruleset"], "nftables"))["nftables"]
    text = nft_removal(listed)
    if not text:
        return []
    await _run(["nft", "-f", "-"], "nftables", text)
    return [f"nftables: {text.count('delete table')} tables, {text.count('delete chain')} chains"]


async def _legacy(proc: Path) -> list[str]:
    done = []
    for command, names in (("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")):
        path = proc / names
        if not path.exists() or not path.read_text().strip():
            continue  # no such rules in this kernel
        save, restore = _legacy_tools(command)
        text = removal(await _run([save], "iptables"))
        if text:
            await _run([restore, "--noflush", "--wait"], "iptables", text)
            done.append(f"{command}: {text.count(chr(10) + '-X ')} chains")
    return done


def _legacy_tools(command: str) -> tuple[str, str]:
    for variant in (f"{command}-legacy", command):
        if shutil.which(f"{variant}-save"):
            return f"{variant}-save", f"{variant}-restore"
    raise CleanupError(f"{command}-save not found, and the kernel has such rules: install the package iptables")


async def _ipsets(_: Path) -> list[str]:
    if shutil.which("ipset") is None:
        return []
    own = sorted(SETS.intersection((await _run(["ipset", "list", "-n"], "ipset")).split()))
    for name in own:
        await _run(["ipset", "destroy", name], "ipset")
    return [f"ipset: {len(own)} sets"] if own else []


async def _ipvs(proc: Path) -> list[str]:
    """kube-proxy in its IPVS mode owns all virtual servers (it removes those of others), and this device shows it."""
    links = json.loads(await _run(["ip", "-j", "link"], "ip"))
    if DEVICE not in (link["ifname"] for link in links):
        return []
    done = []
    if (proc / "ip_vs").exists():
        if shutil.which("ipvsadm") is None:
            raise CleanupError("ipvsadm not found, and the kernel has virtual servers: install the package ipvsadm")
        await _run(["ipvsadm", "--clear"], "ipvsadm")
        done.append("IPVS: all virtual servers")
    await _run(["ip", "link", "delete", DEVICE], "ip")
    return [*done, f"device {DEVICE}"]


async def _run(command: list[str], what: str, text: str = "") -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise CleanupError(f"{what}: {command[0]} not found") from error
    output, trouble = await process.communicate(text.encode())
    if process.returncode:
        raise CleanupError(f"{what}: {' '.join(command)}: {trouble.decode(errors='replace').strip()}")
    return output.decode()
