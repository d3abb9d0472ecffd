"""Hints by `service.kubernetes.io/topology-mode: Auto` (KEP-2433): endpoints in proportion to the zones' nodes. Pure.

As topologycache of kube-controller-manager, which goes by the nodes' CPUs: those of the playground have equal ones.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

ANNOTATION = "service.kubernetes.io/topology-mode"
OVERLOAD = 0.2  # by so much a zone's endpoints may have more to do than their share


def is_auto(annotations: Mapping[str, str]) -> bool:
    return annotations.get(ANNOTATION, "") in ("Auto", "auto")


def allocate(nodes: Mapping[str, str], endpoints: Sequence[str]) -> list[str]:
    """`nodes`: node → zone. `endpoints`: the zone in which each of the ready ones is. The zone that each is for; none

    at all where that is not to be: a node or an endpoint in no zone, one zone, too few endpoints for the zones.
    """
    sizes = Counter(nodes.values())
    if "" in sizes or "" in endpoints or len(sizes) < 2 or len(endpoints) < len(sizes):
        return []
    shares = {zone: len(endpoints) * count / len(nodes) for zone, count in sorted(sizes.items())}
    least = {zone: math.ceil(share / (1 + OVERLOAD)) for zone, share in shares.items()}
    if sum(least.values()) > len(endpoints):
        return []
    found = list(endpoints)
    held = Counter(found)
    while lacking := [zone for zone in least if held[zone] < least[zone]]:
        giving = max(sorted(held), key=lambda zone: held[zone] - shares.get(zone, 0))
        found[found.index(giving)] = lacking[0]
        held[giving] -= 1
        held[lacking[0]] += 1
    return found
