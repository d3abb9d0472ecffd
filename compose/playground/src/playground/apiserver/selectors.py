"""Label and field selectors of requests, in the syntax that kubectl sends. Pure."""

import re
from collections.abc import Callable
from typing import Any

from playground.apiserver.kinds import Object, StatusError

Match = Callable[[Object], bool]

_SET = re.compile(r"^([^\s=!,()]+)\s+(in|notin)\s+\(([^)]*)\)$")
_EQUAL = re.compile(r"^([^\s=!]+)\s*(==|=|!=)\s*(.*)$")


def label_selector(text: str) -> Match:
    """Raises StatusError (400)."""
    tests = [_label(part.strip()) for part in _split(text) if part.strip()]
    return lambda item: all(test(item["metadata"].get("labels") or {}) for test in tests)


def _split(text: str) -> list[str]:
    """At commas that are not in parentheses."""
    return re.split(r",(?![^(]*\))", text)


def _label(part: str) -> Callable[[dict[str, str]], bool]:
    if found := _SET.match(part):
        key, operator = found[1], found[2]
        values = {value.strip() for value in found[3].split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(part):
        key, operator, value = found[1], found[2], found[3].strip()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if re.fullmatch(r"![^\s=!,()]+", part):
        return lambda labels: part[1:].strip() not in labels
    if re.fullmatch(r"[^\s=!,()]+", part):
        return lambda labels: part in labels
    raise StatusError(400, "BadRequest", f"unable to parse requirement: {part}")


FIELDS = ("metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "type", "spec.type")


def field_selector(text: str) -> Match:
    """Raises StatusError (400) for a field that is not supported."""
    tests: list[tuple[str, str, bool]] = []
    for part in filter(None, text.split(",")):
        found = _EQUAL.match(part.strip())
        if not found or not found[1].startswith(("metadata.", "spec.", "status.", "involvedObject.", "type")):
            raise StatusError(400, "BadRequest", f"field label not supported: {part}")
        tests.append((found[1], found[3], found[2] != "!="))
    return lambda item: all((str(_field(item, path) or "") == value) is wanted for path, value, wanted in tests)


def _field(item: Any, path: str) -> Any:
    for part in path.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item
