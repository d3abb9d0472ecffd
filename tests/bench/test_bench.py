"""The bench measures what it says: its figures are made of many packets, and come out as tables. No speeds."""

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from tests.bench import coldstart, fanout, kubeproxy, policylog, programs, steady, syncstart, traffic
from tests.bench.load import LoadError
from tests.bench.model import SIZES, Comparison, Limit, Measurement, Result, Run, Size, Suite, Tick
from tests.bench.population import Spec, fill
from tests.bench.report import fill_page, joined, markdown, tables
from tests.bench.run import SUITES, chosen, names, results
from tests.bench.stats import Estimate, estimate, ratio, verdict
from tests.bench.worlds import Worlds, worlds
from tests.bpf.conftest import COMPILED
from tests.bpf.kernel import Loaded
from tests.scale.population import Population

SMOKE = SIZES["smoke"]


@pytest.fixture(scope="module")
def setting() -> Iterator[Worlds]:
    with worlds(SMOKE, COMPILED) as built:
        yield built


def run(measurement: Measurement[Worlds], setting: Worlds) -> tuple[Result, int]:
    """The result, and how many steps it took."""
    steps: list[None] = []
    return measurement.run(setting, SMOKE, lambda: steps.append(None)), len(steps)


def forwarded(node: Loaded) -> int:
    return node.counter("FORWARDED")


@pytest.mark.root
@pytest.mark.parametrize("measurement", traffic.MEASUREMENTS, ids=lambda one: one.name)
def test_rates(setting: Worlds, measurement: Measurement[Worlds]) -> None:
    node = setting.ours.nodes[0].programs
    before = forwarded(node)
    result, steps = run(measurement, setting)
    assert steps == measurement.steps(SMOKE)
    assert {len(samples) for samples in result.series.values()} == {SMOKE.rounds}
    assert all(rate > 0 for samples in result.series.values() for rate in samples)
    assert all({compared.subject, compared.against} <= result.series.keys() for compared in result.comparisons)
    # Each subject goes the way that its name says.
    ours = [name for name in result.series if name.startswith("tidegate")]
    assert forwarded(node) - before >= 2 * 20 * len(ours), "the warm-up alone is as many packets"
    assert node.drops() == {}


@pytest.mark.root
@pytest.mark.parametrize("measurement", programs.MEASUREMENTS, ids=lambda one: one.name)
def test_programs(setting: Worlds, measurement: Measurement[Worlds]) -> None:
    """Each path is taken, or PathError says which was not."""
    before = forwarded(setting.ours.nodes[0].programs)
    result, steps = run(measurement, setting)
    assert steps == measurement.steps(SMOKE)
    assert all(figure > 0 for samples in result.series.values() for figure in samples)
    # All paths but two: refused packets, and those that the stack brings back, are not counted as forwarded.
    assert forwarded(setting.ours.nodes[0].programs) - before >= SMOKE.repeats * (programs.PATHS - 1)


@pytest.mark.root
def test_a_packet_that_goes_another_way_is_no_figure(setting: Worlds) -> None:
    with programs.stand_on(setting) as stand:
        wrong = next(programs.paths(setting.ours))
        with pytest.raises(programs.PathError, match="action 7, not 2"):
            programs.measure(stand, dataclasses.replace(wrong, action=2), SMOKE, lambda: None)


@pytest.fixture(scope="module")
def logging() -> Iterator[policylog.Stand]:
    with policylog.stand(SMOKE, COMPILED) as built:
        yield built


@pytest.mark.root
@pytest.mark.parametrize("measurement", policylog.MEASUREMENTS, ids=lambda one: one.name)
def test_the_policy_log(logging: policylog.Stand, measurement: Measurement[policylog.Stand]) -> None:
    """The log tells of every packet, or there is no figure."""
    steps: list[None] = []
    result = measurement.run(logging, SMOKE, lambda: steps.append(None))
    assert len(steps) == measurement.steps(SMOKE)
    assert {limit.subject for limit in result.limits} <= result.series.keys()
    assert all(figure > 0 for samples in result.series.values() for figure in samples)


@pytest.mark.root
def test_packets_of_which_the_log_does_not_tell_are_no_figure(
    logging: policylog.Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policylog, "PATIENCE", 10.0)
    denied_as_if_allowed = dataclasses.replace(policylog.KINDS[1], disposition="allow")
    with pytest.raises(LoadError, match="packets went, and the log tells of"):
        policylog.Round(logging, denied_as_if_allowed, SMOKE.log_milliseconds).run(0, on=True)


@pytest.mark.root
@pytest.mark.parametrize("measurement", coldstart.MEASUREMENTS, ids=lambda one: one.name)
def test_cold_starts(cold: coldstart.Filled, measurement: Measurement[coldstart.Filled]) -> None:
    steps: list[None] = []
    result = measurement.run(cold, SMOKE, lambda: steps.append(None))
    assert len(steps) == measurement.steps(SMOKE)
    assert {limit.subject for limit in result.limits} == result.series.keys()
    assert all(figure > 0 for samples in result.series.values() for figure in samples)


@pytest.fixture(scope="module")
def cold() -> Iterator[coldstart.Filled]:
    with coldstart.filled(SMOKE, COMPILED) as built:
        yield built


@pytest.mark.root
def test_a_cold_start_ends_with_everything_in_the_maps(cold: coldstart.Filled) -> None:
    """In this kernel's maps, which were empty."""
    population = Population(SMOKE.scale)
    for cluster, pods in ((coldstart.SERVICES, 0), (coldstart.ALL, population.pod_count)):
        found = asyncio.run(coldstart.start(cold, cluster))
        assert found.status["problems"] == {}
        assert found.entries["backends"] >= 26 * population.service_count
        assert found.entries["endpoints"] >= pods
        assert sum(found.status["map_writes"].values()) == sum(found.entries.values()), "each is written once"


@pytest.fixture(scope="module")
def services() -> Iterator[syncstart.Starts]:
    with syncstart.starts(SMOKE) as made:
        yield made


@pytest.mark.parametrize("measurement", syncstart.MEASUREMENTS, ids=lambda one: one.name)
def test_starts_of_the_services(services: syncstart.Starts, measurement: Measurement[syncstart.Starts]) -> None:
    steps: list[None] = []
    result = measurement.run(services, SMOKE, lambda: steps.append(None))
    assert len(steps) == measurement.steps(SMOKE)
    assert {limit.subject for limit in result.limits} == result.series.keys()
    (written,) = result.series[syncstart.WRITES]
    assert (written > 0) == measurement.name.endswith("empty")


@pytest.mark.root
def test_steady_change() -> None:
    """Every change comes to etcd, and to the maps of this kernel."""
    (measurement,) = steady.MEASUREMENTS
    steps: list[None] = []
    with steady.place(SMOKE, COMPILED) as where:
        result = measurement.run(where, SMOKE, lambda: steps.append(None))
    assert len(steps) == measurement.steps(SMOKE)
    assert {limit.subject for limit in result.limits} == result.series.keys()
    assert result.series[steady.LOST] == (0,)


@pytest.mark.parametrize("measurement", fanout.MEASUREMENTS, ids=lambda one: one.name)
def test_fan_out(tmp_path: Path, measurement: Measurement[Path]) -> None:
    """Every node is told of every change, also of those made while none was connected."""
    steps: list[None] = []
    result = measurement.run(tmp_path, SMOKE, lambda: steps.append(None))
    assert len(steps) == measurement.steps(SMOKE)
    assert {limit.subject for limit in result.limits} == result.series.keys()
    assert result.series[fanout.MISSED] == (0,)


ESTIMATES = [
    ([5.0], Estimate(5, 5, 5)),
    ([3.0, 1.0, 2.0, 9.0, 4.0], Estimate(3, 1, 9)),  # too few to leave any out
    ([*map(float, range(1, 11))], Estimate(5.5, 2, 9)),  # 2 × (1 + 10) / 1024 = 2.1 %; with another 10.9 %
    ([*map(float, range(1, 61))], Estimate(30.5, 22, 39)),
    ([1.0] * 2000, Estimate(1, 1, 1)),
]


@pytest.mark.parametrize(("samples", "expected"), ESTIMATES)
def test_medians_and_their_intervals(samples: list[float], expected: Estimate) -> None:
    assert estimate(samples) == expected


def test_ratios_are_those_of_pairs() -> None:
    """The machine is ten times slower for a while: the rates say nothing, the ratio is as clear as before."""
    slow = [1.0, 10.0] * 10
    assert ratio([2 * rate for rate in slow], slow) == Estimate(2, 2, 2)


def test_samples_of_one_setting_count_as_one() -> None:
    """However many there are: what the setting does to all of them does not become surer by more of them."""
    settings = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    samples = [setting + noise for setting in settings for noise in (-0.01, 0.0, 0.5)]
    assert estimate(samples, each=3) == estimate(settings) == Estimate(1.25, 1.0, 1.5)
    assert ratio(samples, [1.0] * 18, each=3) == Estimate(1.25, 1.0, 1.5)


def test_a_suite_is_set_up_as_often_as_it_says() -> None:
    built: list[str] = []

    @contextmanager
    def setting(size: Size) -> Iterator[int]:
        built.append("up")
        yield len(built)
        built.append("down")

    def measure(number: int, size: Size, tick: Tick) -> Result:
        for _ in range(size.rounds):
            tick()
        return Result("m", "", "s", {"x": (float(number),) * size.rounds})

    steps: list[None] = []
    size = dataclasses.replace(SMOKE, settings=3, rounds=2)
    suite = Suite("s", setting, (Measurement("m", "", lambda size: size.rounds, measure),), often=True)
    begun: list[tuple[str, int]] = []

    def began(what: str, count: int) -> Tick:
        begun.append((what, count))
        return lambda: steps.append(None)

    (found,) = results(suite, size, suite.measurements, began)
    assert found == Result("m", "", "s", {"x": (1.0, 1.0, 3.0, 3.0, 5.0, 5.0)}, each=2)
    assert built == ["up", "down"] * 3
    assert begun == [("setting up: s", 3), ("m", 6)]
    assert len(steps) == 3 + 6
    (once,) = results(dataclasses.replace(suite, often=False), size, suite.measurements, began)
    assert (once.series, once.each) == ({"x": (7.0, 7.0)}, 1)
    (single,) = results(suite, dataclasses.replace(size, settings=1), suite.measurements, began)
    assert (single.series, single.each) == ({"x": (9.0, 9.0)}, 2)


@pytest.mark.parametrize(
    ("found", "said"),
    [(Estimate(1.1, 1.0, 1.2), "met"), (Estimate(0.9, 0.8, 0.99), "missed"), (Estimate(1.1, 0.9, 1.2), "open")],
)
def test_verdicts(found: Estimate, said: str) -> None:
    assert verdict(found, 1.0) == said


def test_every_service_is_in_the_rules() -> None:
    measured = [
        Spec("near", "10.97.0.1", 80, (("10.201.1.3", 8080), ("10.201.1.4", 8080)), 30080),
        Spec("empty", "10.97.0.3", 80, ()),
        Spec("other-family", "fd00:97::1", 80, (("fd00:201::3", 8080),)),
    ]
    specs = fill(measured, 1001)
    assert len({spec.vip for spec in specs}) == 1001
    text = "".join(kubeproxy.transactions(specs, "172.31.0.11", "10.201.0.0/16"))
    assert text.count(" : goto service-") == text.count("numgen random mod") == 999
    assert "10.97.0.3 . tcp . 80 : goto reject-chain" in text
    assert "tcp . 30080 : goto external-near" in text
    assert "numgen random mod 2 vmap { 0 : goto endpoint-near-0, 1 : goto endpoint-near-1 }" in text
    assert "fd00" not in text


RUN = Run(
    when="2026-01-01T00:00:00+00:00",
    size="smoke",
    machine={"kernel": "6.18"},
    results=(
        Result(
            "connections",
            "pod to pod",
            "1/s",
            {"x": (10.0, 22.0) * 3, "y": (10.0, 20.0) * 3},
            (Comparison("x", "y", 1.2),),
        ),
        Result("programs", "IPv4", "ns", {"from_pod": (100.0, 102.0)}),
        Result(
            "start",
            "agent's start",
            "s",
            {"on": (3.0, 3.5), "off": (1.0, 1.25), "memory": (1234.0,)},
            limits=(
                Limit("on", "off", at_most=2.0),
                Limit("on", at_least=3.0),
                Limit("memory", at_most=300, unit="MB"),
                Limit("off"),
            ),
        ),
    ),
)


def test_a_run_becomes_tables() -> None:
    found = tables(msgspec.json.decode(msgspec.json.encode(RUN), type=Run))
    assert found["ratios"].rows == [("connections", "x ÷ y", "1.050", "1.000 … 1.100", "≥ 1.2", "missed")]
    assert found["rates"].rows == [("connections", "pod to pod, 1/s", "16", "15")]
    assert found["programs"].rows == [("from_pod", "101 (100 … 102)")]
    assert found["limits"].rows == [
        ("start", "agent's start: on − off, s", "2.12", "2 … 2.25", "≤ 2", "open"),
        ("start", "agent's start: on, s", "3.25", "3 … 3.5", "≥ 3", "met"),
        ("start", "agent's start: memory, MB", "1,234", "1,234 … 1,234", "≤ 300", "missed"),
        ("start", "agent's start: off, s", "1.12", "1 … 1.25", "", ""),
    ]
    assert ("kernel", "6.18") in found["machine"].rows


def test_a_few_settings_decide_nothing() -> None:
    """Their interval holds the median with less than 95 %."""
    few = msgspec.structs.replace(RUN.results[0], each=2)
    found = tables(msgspec.structs.replace(RUN, results=(few,)))
    assert found["ratios"].rows == [("connections", "x ÷ y", "1.050", "1.050 … 1.050", "≥ 1.2", "open")]


def test_a_page_gets_the_tables_between_its_marks() -> None:
    page = (
        "before\n<!-- bench: programs -->\nold\n<!-- /bench -->\nafter\n<!-- bench: others -->\nkept\n<!-- /bench -->\n"
    )
    filled = fill_page(page, RUN)
    assert filled == page.replace("old", markdown(tables(RUN)["programs"]))
    assert fill_page(filled, RUN) == filled
    with pytest.raises(ValueError, match="no <!-- /bench -->"):
        fill_page("<!-- bench: programs -->\n", RUN)


def test_what_was_measured_again_takes_the_place_of_what_was() -> None:
    again = msgspec.structs.replace(RUN.results[0], series=dict.fromkeys(RUN.results[0].series, (1.0,)))
    later = msgspec.structs.replace(RUN, when="later", size="quick", results=(again,))
    found = joined([RUN, later])
    assert found.results == (again, *RUN.results[1:])
    assert (found.when, found.size) == ("later", RUN.size)
    assert joined([RUN]) == RUN


def test_names_are_told_apart() -> None:
    assert len(set(names())) == len(names())


def test_a_quick_run_has_what_takes_long_only_where_it_is_asked_for() -> None:
    (suite,) = (suite for suite in SUITES if suite.name == "fan-out")
    every = list(suite.measurements)
    asked = [chosen(suite, patterns, SIZES[size]) for patterns, size in [((), "quick"), ((), "full"), (["*"], "quick")]]
    assert asked == [[], every, every]


def test_the_page_has_a_place_for_every_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert re.findall(r"<!-- bench: (\w+) -->", page) == ["machine", "ratios", "rates", "programs", "limits"]
    assert sorted(tables(RUN)) == sorted(["machine", "ratios", "rates", "programs", "limits"])
