"""What kube-proxy has left: which rules are its own, and that they go from a real kernel while all others stay."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.node_agent.netns import Namespace

from node_agent.kubeproxy import DEVICE, SETS, CleanupError, clean, is_own, nft_removal, removal

HASH = "ABCDEFGH234567AB"

OWN = {
    "the one that all begin with": "KUBE-SERVICES",
    "a Service's": f"KUBE-SVC-{HASH}",
    "a local one": f"KUBE-SVL-{HASH}",
    "an endpoint's": f"KUBE-SEP-{HASH}",
    "a firewall": f"KUBE-FW-{HASH}",
    "an external one": f"KUBE-EXT-{HASH}",
    "IPVS mode": "KUBE-LOAD-BALANCER",
}
OTHERS = {
    "the kubelet's firewall": "KUBE-FIREWALL",
    "the kubelet's canary": "KUBE-KUBELET-CANARY",
    "the kubelet's mark": "KUBE-MARK-DROP",
    "the kubelet's hint": "KUBE-IPTABLES-HINT",
    "kube-router's": "KUBE-ROUTER-INPUT",
    "kube-router's of a pod": f"KUBE-POD-FW-{HASH}",
    "of no port": "KUBE-SVC-MINE",
    "somebody's": "DOCKER",
}


@pytest.mark.parametrize("name", OWN.values(), ids=OWN.keys())
def test_chains_of_its_own(name: str) -> None:
    assert is_own(name)


@pytest.mark.parametrize("name", OTHERS.values(), ids=OTHERS.keys())
def test_chains_of_others(name: str) -> None:
    assert not is_own(name)


# As kube-proxy 1.30 lays its rules out (one Service, one backend, one NodePort), a kubelet beside it, and others.
RULES = f"""
*mangle
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:MINE - [0:0]
-A INPUT -m comment --comment "kube-router netpol" -j KUBE-ROUTER-INPUT
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "not -j KUBE-SERVICES" -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -j MINE
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A MINE -j RETURN
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-{HASH} - [0:0]
:KUBE-SEP-{HASH} - [0:0]
:KUBE-SVC-{HASH} - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j MINE
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-{HASH}
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
-A KUBE-SEP-{HASH} -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination BACKEND
-A KUBE-SVC-{HASH} -m comment --comment "shop/web:http -> BACKEND" -j KUBE-SEP-{HASH}
-A KUBE-EXT-{HASH} -m comment --comment "masquerade traffic for shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-EXT-{HASH} -j KUBE-SVC-{HASH}
-A KUBE-SERVICES -d VIP -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-{HASH}
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"""  # noqa: E501  # rules are lines

LEFT = {"KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP", "KUBE-IPTABLES-HINT", "KUBE-ROUTER-INPUT", "MINE"}

# As kube-proxy's nftables mode names its tables; another one that holds chains of the same names.
TABLES = """
table FAMILY kube-proxy {
  map service-ips { type ADDR . inet_proto . inet_service : verdict; }
  chain services { }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
}
table FAMILY mine {
  chain KUBE-SERVICES { }
  chain KUBE-FIREWALL { }
  chain input { type filter hook input priority 0; jump KUBE-SERVICES; }
}
table inet kube-proxy { }
"""


def rules_for(ipv6: bool) -> str:
    vip, backend = ("fd00:96::1/128", "[fd00:9::2]:8080") if ipv6 else ("10.96.0.1/32", "10.202.9.2:8080")
    return RULES.replace("VIP", vip).replace("BACKEND", backend)


@pytest.fixture
def node() -> Iterator[Namespace]:
    made = Namespace("kp")
    yield made
    made.remove()


COMMANDS = [f"{command}-{variant}" for command in ("iptables", "ip6tables") for variant in ("legacy", "nft")]


def restore(node: Namespace, command: str, rules: str) -> None:
    with node.entered():
        subprocess.run([f"{command}-restore"], input=rules, text=True, check=True)


def lines(node: Namespace, command: str) -> set[str]:
    saved = node.run(f"{command}-save")
    return {line.split(" [")[0] for line in saved.splitlines() if line.startswith((":", "-A"))}


def chains(saved: set[str]) -> set[str]:
    names = {line[1:].split()[0] for line in saved if line.startswith(":")}
    return {name for name in names if name.startswith("KUBE-") or name == "MINE"}


def cleaned(node: Namespace) -> list[str]:
    async def work() -> list[str]:
        return await clean()

    return node.runs(work)


@pytest.mark.root
@pytest.mark.parametrize("command", COMMANDS)
def test_its_rules_go_and_all_others_stay(node: Namespace, command: str) -> None:
    rules = rules_for(command.startswith("ip6"))
    restore(node, command, rules)
    before = lines(node, command)
    assert cleaned(node) != []
    after = lines(node, command)
    assert chains(after) == LEFT
    gone = before - after
    assert after <= before
    assert {line for line in gone if "KUBE-FIREWALL" in line or "MINE" in line or "dport 22" in line} == set()
    assert [line for line in after if "KUBE-SERVICES" in line] == [
        line for line in before if "not -j KUBE-SERVICES" in line
    ]
    assert cleaned(node) == []


@pytest.mark.root
@pytest.mark.parametrize(("family", "kind"), [("ip", "ipv4_addr"), ("ip6", "ipv6_addr")])
def test_its_nftables_go_and_all_others_stay(node: Namespace, family: str, kind: str) -> None:
    with node.entered():
        text = TABLES.replace("FAMILY", family).replace("ADDR", kind)
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    others = node.run("nft", "list", "table", family, "mine")
    assert cleaned(node) == ["nftables: 1 tables, 0 chains"]
    assert node.run("nft", "list", "tables").split("\n")[:-1] == [f"table {family} mine", "table inet kube-proxy"]
    assert node.run("nft", "list", "table", family, "mine") == others
    assert cleaned(node) == []


@pytest.mark.root
def test_the_command_says_what_it_has_removed(node: Namespace) -> None:
    restore(node, COMMANDS[0], rules_for(COMMANDS[0].startswith("ip6")))
    command = (sys.executable, "-m", "node_agent.cleanup")
    assert "chains" in node.run(*command)
    assert node.run(*command) == "nothing of kube-proxy's is here\n"


@pytest.mark.root
def test_its_sets_and_its_device_go(node: Namespace) -> None:
    """No kernel has IPVS for certain: the device alone shows that it was used."""
    for name in (*sorted(SETS), "KUBE-MINE"):
        node.run("ipset", "create", name, "hash:ip,port", *(["family", "inet6"] if "-6-" in name else []))
    rules = (
        "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n"
    )
    restore(node, "iptables-legacy", rules)
    node.ip("link", "add", DEVICE, "type", "bridge")
    assert f"device {DEVICE}" in cleaned(node)
    assert node.run("ipset", "list", "-n").split() == ["KUBE-MINE"]
    assert DEVICE not in {link["ifname"] for link in json.loads(node.ip("-j", "link"))}
    assert cleaned(node) == []


@pytest.mark.root
def test_rules_that_cannot_be_removed_are_told_and_the_others_go(
    node: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore(node, "iptables-legacy", rules_for(False))
    node.ip("link", "add", DEVICE, "type", "bridge")
    which = shutil.which

    def without(name: str) -> str | None:
        return None if name.startswith("iptables") else which(name)

    monkeypatch.setattr("node_agent.kubeproxy.shutil.which", without)
    with pytest.raises(CleanupError, match="install the package iptables"):
        cleaned(node)
    assert DEVICE not in node.ip("link")
    monkeypatch.undo()
    assert cleaned(node) != []


def test_nothing_to_remove_is_no_input() -> None:
    assert removal("*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-MARK-DROP - [0:0]\nCOMMIT\n") == ""
    assert nft_removal([{"table": {"family": "inet", "name": "kube-proxy"}}]) == ""


def test_a_clean_machine_needs_no_iptables(node: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node_agent.kubeproxy._legacy_tools", lambda _: pytest.fail("asked for iptables"))
    assert cleaned(node) == []
