"""Annotations that are "true" or "false". Pure."""

from collections.abc import Mapping

Annotations = Mapping[str, str] | None

LOG_ALLOWED = "policy.network.gke.io/enable-logging"  # of a NetworkPolicy: what it allows is logged
LOG_DENIED = "policy.network.gke.io/enable-deny-logging"  # of a Namespace: what its pods are denied is logged
AUDIT = "policy.tidegate.dev/audit"  # of a Namespace: what its pods are denied passes, and is logged


def is_set(annotations: Annotations, name: str) -> bool:
    return (annotations or {}).get(name) == "true"


def trouble(annotations: Annotations, *names: str) -> str | None:
    """Which of these have a value that means nothing; None where all do."""
    values = {name: value for name, value in (annotations or {}).items() if name in names}
    wrong = [
        f'annotation {name}: "{value}" is neither "true" nor "false", and counts as "false"'
        for name, value in sorted(values.items())
        if value not in ("true", "false")
    ]
    return "; ".join(wrong) or None
