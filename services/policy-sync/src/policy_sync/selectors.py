"""Label selectors, as the API documentation of LabelSelector defines them."""

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.kube import objects

IN, NOT_IN, EXISTS, DOES_NOT_EXIST = "In", "NotIn", "Exists", "DoesNotExist"


class PolicyError(ValueError):
    """The policy cannot be understood; the text says which field and why."""


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    key: str
    operator: str
    values: tuple[str, ...] = ()  # sorted

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator == IN:
            return value in self.values
        if self.operator == NOT_IN:
            return value not in self.values  # also where the key is absent
        return (value is not None) == (self.operator == EXISTS)

    def __str__(self) -> str:
        if self.operator == EXISTS:
            return self.key
        if self.operator == DOES_NOT_EXIST:
            return f"!{self.key}"
        if self.operator == IN and len(self.values) == 1:
            return f"{self.key}={self.values[0]}"
        return f"{self.key} {'in' if self.operator == IN else 'notin'} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """All requirements must hold; none at all selects everything. Equal selectors are equal, however written."""

    requirements: tuple[Requirement, ...] = ()  # sorted, each once

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(requirement.key for requirement in self.requirements)

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements)) or "all"


def selector(source: objects.LabelSelector, field: str) -> Selector:
    """Raises PolicyError for an unknown operator, or values where there must be none (or none where there must be)."""
    found = {Requirement(key, IN, (value,)) for key, value in (source.match_labels or {}).items()}
    for item in source.match_expressions or ():
        values = tuple(sorted(set(item.values or ())))
        if item.operator in (IN, NOT_IN):
            if not values:
                raise PolicyError(f"{field}: operator {item.operator} on {item.key!r} needs values")
        elif item.operator in (EXISTS, DOES_NOT_EXIST):
            if values:
                raise PolicyError(f"{field}: operator {item.operator} on {item.key!r} takes no values")
        else:
            raise PolicyError(f"{field}: unknown operator {item.operator!r} on {item.key!r}")
        found.add(Requirement(item.key, item.operator, values))
    return Selector(tuple(sorted(found)))


@dataclass(frozen=True, slots=True, order=True)
class PeerSelector:
    """Pods of one namespace (`namespace` set), or of all namespaces that `namespaces` selects.

    With a port name, only those pods whose port of that name is (protocol, number).
    """

    namespace: str
    namespaces: Selector
    pods: Selector
    port_name: str = ""
    port: tuple[int, int] = (0, 0)

    @property
    def keys(self) -> frozenset[str]:
        return self.pods.keys

    def __str__(self) -> str:
        where = f"namespace {self.namespace}" if self.namespace else f"namespaces {self.namespaces}"
        text = f"{where}: pods {self.pods}"
        return f"{text}: port {self.port_name} is {self.port[1]}" if self.port_name else text


EVERY_POD = PeerSelector("", Selector(), Selector())

# A set holds the pods that any of its selectors selects.
SetSpec = tuple[PeerSelector, ...]


def set_text(spec: SetSpec) -> str:
    return " or ".join(str(peer) + (f"/{peer.port[0]}" if peer.port_name else "") for peer in spec)
