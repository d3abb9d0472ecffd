"""What the rules in the records say about a peer, as the programs look them up, and the policies behind it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from tidegate.cli import render
from tidegate.cli.cluster import Cluster
from tidegate.records import ANY_SET, Direction, Rule, Rules
from tidegate.records.addresses import innermost


@dataclass(frozen=True, slots=True)
class Peer:
    """Rules see a peer by its identity and its address."""

    identity: int
    address: bytes


@dataclass(frozen=True, slots=True)
class Ground:
    """A rule that allows the peer, and the policies that say so."""

    ports: str
    peers: str
    policies: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{', '.join(self.policies)}: {self.ports} for {self.peers}"


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    why: str
    policies: tuple[str, ...] = ()  # that isolate
    grounds: tuple[Ground, ...] = ()


def judge(cluster: Cluster, subject: int, peer: Peer, direction: Direction, protocol: int, port: int) -> Verdict:
    """What the subject's rules say."""
    rules = cluster.rules_of(subject)
    if rules is None:
        return Verdict(False, "its rules have not been made yet")
    if not is_isolated(rules, direction):
        return Verdict(True, f"no policy isolates its {render.DIRECTIONS[direction]}")
    grounds = tuple(_grounds(cluster, rules, peer, direction, protocol, port))
    if grounds:
        return Verdict(True, "; ".join(ground.text for ground in grounds), rules.policies, grounds)
    return Verdict(False, f"isolated by {', '.join(rules.policies)}, and nothing allows it", rules.policies)


def is_isolated(rules: Rules, direction: int) -> bool:
    return rules.ingress_isolated if direction == Direction.INGRESS else rules.egress_isolated


def sets_of(rule: Rule) -> Iterable[int]:
    """What the programs ask: the sets of identities, and that of blocks."""
    return filter(None, (*rule.sets, rule.blocks))


def is_in(cluster: Cluster, group: int, peer: Peer) -> bool:
    if group == ANY_SET or peer.identity in cluster.members(group):
        return True
    needed = innermost(((*cidr, needed) for cidr, needed in cluster.blocks(group).items()), peer.address)
    return needed is not None and is_in(cluster, needed, peer)


def _grounds(
    cluster: Cluster, rules: Rules, peer: Peer, direction: Direction, protocol: int, port: int
) -> Iterable[Ground]:
    for rule in rules.rules:
        if rule.direction != direction or not rule.covers(protocol, port):
            continue
        ports = render.ports(rule.protocol, rule.port, rule.prefix)
        for group, policies in rules.by_policies(rule):
            if is_in(cluster, group, peer):
                yield Ground(ports, cluster.set_text(group), policies)
