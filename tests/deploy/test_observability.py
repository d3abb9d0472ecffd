"""Alerts, dashboard and runbook: all name metrics, labels and reasons that the services have."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.deploy.test_manifests import tree as tree  # a fixture

import endpoint_sync.sync  # noqa: F401  # its metrics
import node_agent.agent
import node_agent.status
import policy_sync.sync  # noqa: F401
from node_agent.loader.source import find_source, read_source
from tidegate.runtime import metrics

ROOT = Path(__file__).parents[2]
GROUPS = yaml.safe_load((ROOT / "compose/observability/alerts.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "compose/observability/dashboard.json").read_text())
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
PROMETHEUS = {"up"}  # its own


def series() -> set[str]:
    """Names of all series that some service has: those of the registry, and those that collectors make when asked."""
    found = set(PROMETHEUS)
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        found |= {family.name + suffix for suffix in suffixes}
    for path in (node_agent.status.__file__, ROOT / "src/tidegate/runtime/http.py"):
        text = Path(path).read_text()
        for kind, name in re.findall(r"(Counter|Gauge)MetricFamily\(\s*\"(\w+)\"", text):
            found.add(name + "_total" * (kind == "Counter"))
    return found


SERIES = series()


def expressions() -> Iterator[str]:
    for rule in RULES:
        yield rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m")


def named(expression: str) -> set[str]:
    """The series that it asks for. Raises ValueError where it is no PromQL."""
    words = re.findall(r"[a-z_:][a-z0-9_:]*", promql_parser.parse(expression).prettify())
    return {word for word in words if word in SERIES or word.startswith(("tidegate_", "process_"))}


@pytest.mark.parametrize("expression", list(expressions()))
def test_expressions_ask_for_series_that_there_are(expression: str) -> None:
    assert named(expression)
    assert named(expression) <= SERIES


def test_a_series_that_nobody_has_is_found() -> None:
    assert not named("rate(tidegate_nonsense_total[5m])") <= SERIES
    with pytest.raises(ValueError, match=r"unclosed|invalid|unexpected"):
        named("rate(tidegate_ready[5m]")


def test_reasons_are_those_of_the_programs() -> None:
    names = {name for name, _ in read_source(find_source(), {}).reasons.values()} | {"FORWARDED"}
    for expression in expressions():
        for operator, text in re.findall(r'reason(!?=~?)"([^"]+)"', expression):
            assert set(text.split("|") if "~" in operator else [text]) <= names


def test_each_alert_has_its_section_in_the_runbook_and_no_other_stands_there() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_alerts_say_what_and_how_grave() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = re.search(r"by \(([^)]*)\)", rule["expr"])
        if kept:  # what is summed over is not there to be named
            assert used <= set(kept[1].replace(" ", "").split(",")), rule["alert"]


def test_every_series_of_ours_is_on_the_dashboard_or_in_an_alert() -> None:
    shown = set().union(*map(named, expressions()))
    ours = {
        name for name in SERIES if name.startswith("tidegate_") and not name.endswith(("_sum", "_count", "_created"))
    }
    transactions = "tidegate_store_transaction_duration_seconds_bucket"
    left_out = {"tidegate_packet_bytes_total", "tidegate_events_total", "tidegate_store_events_total", transactions}
    assert ours - shown == left_out


def test_the_component_opens_the_metrics_of_all_three_services(tree: Path, tmp_path: Path) -> None:
    overlay = tree / "overlays" / "existing-etcd" / "kustomization.yaml"
    plain = overlay.read_text()
    try:
        overlay.write_text(plain + "components:\n  - ../../components/metrics\n")
        command = ["kubectl", "kustomize", str(overlay.parent)]
        built = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finally:
        overlay.write_text(plain)
    found: dict[str, Any] = {}
    for item in yaml.safe_load_all(built):
        if item["kind"] in ("Deployment", "DaemonSet") and item["metadata"]["name"] != "node-visitor":
            template = item["spec"]["template"]
            [container] = template["spec"]["containers"]
            listen = [v["value"] for v in container["env"] if v["name"] == "TIDEGATE_LISTEN"]
            found[item["metadata"]["name"]] = (listen, template["metadata"]["annotations"]["prometheus.io/port"])
    assert found == {
        "endpoint-sync": ([":9810"], "9810"),
        "policy-sync": ([":9811"], "9811"),
        "node-agent": ([":9812"], "9812"),
    }
