"""The way from what the kernel holds to what is wanted: order, completeness, and nothing left hanging on the way."""

from collections.abc import Iterable, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.table import ORDER, REACHED_FROM, Step, Tables

Contents = dict[str, dict[bytes, bytes]]

# What an entry of a map leads to: the values of these tests name keys of that map, one byte each.
LEADS_TO = {"frontends": "services", "services": "backends", "subjects": "rules", "rules": "members"}
CHAINS = (("frontends", "services", "backends"), ("subjects", "rules", "members"))

pure = settings(derandomize=True, deadline=None)


def empty() -> Contents:
    return {name: {} for name in ORDER}


def apply(contents: Contents, step: Step) -> None:
    contents[step.map].update(step.puts)
    for key in step.deletes:
        del contents[step.map][key]


def wanting(have: Mapping[str, Mapping[bytes, bytes]], want: Mapping[str, Mapping[bytes, bytes]]) -> Tables:
    tables = Tables(have)
    for name, entries in want.items():
        for key, value in entries.items():
            tables.want(name, key, value)
    tables.adopt()
    tables.expire(0)  # no program runs
    return tables


def dangling(contents: Contents) -> list[str]:
    """Entries that lead to nothing."""
    return [
        f"{name} {key!r} → {target} {referred!r}"
        for name, target in LEADS_TO.items()
        for key, value in contents[name].items()
        for referred in keys_in(value)
        if referred not in contents[target]
    ]


def keys_in(value: bytes) -> Iterable[bytes]:
    return (value[i : i + 1] for i in range(len(value)))


_keys = st.integers(0, 7).map(lambda n: bytes([n]))
_entries = st.dictionaries(_keys, st.binary(max_size=2), max_size=6)


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    """Any entries of any maps."""
    return {name: draw(_entries) for name in ORDER}


@st.composite
def closed_contents(draw: st.DrawFn) -> Contents:
    """Contents in which every entry leads to something."""
    found = empty()
    for chain in CHAINS:
        targets: list[bytes] = []
        for name in reversed(chain):
            leading = st.lists(st.sampled_from(targets), max_size=3).map(b"".join) if targets else st.just(b"")
            values = leading if name in LEADS_TO else st.binary(max_size=1)
            found[name] = draw(st.dictionaries(_keys, values, max_size=6))
            targets = sorted(found[name])
    return found


@pure
@given(contents(), contents())
def test_a_plan_leads_from_what_is_there_to_what_is_wanted(have: Contents, want: Contents) -> None:
    tables = wanting(have, want)
    result = {name: dict(entries) for name, entries in have.items()}
    for step in tables.plan():
        apply(result, step)
    assert result == want


@pure
@given(contents(), contents())
def test_a_plan_holds_nothing_but_the_difference(have: Contents, want: Contents) -> None:
    tables = wanting(have, want)
    differing = sum(have[n].get(k) != want[n].get(k) for n in ORDER for k in have[n].keys() | want[n].keys())
    touched = [(step.map, key) for step in tables.plan() for key in (*step.puts, *step.deletes)]
    assert len(touched) == len(set(touched)) == differing == tables.pending


@pure
@given(contents(), contents())
def test_all_puts_come_before_all_deletes_each_in_its_order(have: Contents, want: Contents) -> None:
    steps = wanting(have, want).plan()
    puts = [step.map for step in steps if step.puts]
    deletes = [step.map for step in steps if step.deletes]
    assert [step.map for step in steps] == puts + deletes
    assert puts == [name for name in ORDER if name in puts]
    assert deletes == [name for name in reversed(ORDER) if name in deletes]
    assert not [step for step in steps if step.puts and step.deletes]


def test_what_is_looked_up_later_is_written_earlier() -> None:
    for name, target in (*LEADS_TO.items(), ("endpoints", "subjects"), ("endpoints", "devices")):
        assert ORDER.index(target) < ORDER.index(name), f"{name} leads to {target}"
    for target, names in REACHED_FROM.items():
        assert all(ORDER.index(target) < ORDER.index(name) for name in names), target
    assert all(name in REACHED_FROM[target] for name, target in LEADS_TO.items())
    assert REACHED_FROM.keys() == set(ORDER)


@pure
@given(closed_contents(), closed_contents())
def test_no_step_leaves_an_entry_that_leads_to_nothing(have: Contents, want: Contents) -> None:
    assert not dangling(have)
    assert not dangling(want)
    now = {name: dict(entries) for name, entries in have.items()}
    for step in wanting(have, want).plan():
        apply(now, step)
        assert not dangling(now), step


@pure
@given(contents(), contents(), st.integers(0, 16))
def test_occupied_is_what_is_there_and_what_comes(have: Contents, want: Contents, until: int) -> None:
    tables = wanting(have, want)
    kernel = {name: dict(entries) for name, entries in have.items()}
    gone = 0
    for step in tables.plan()[:until]:
        apply(kernel, step)
        tables.done(step.map, step.puts, step.deletes)
        gone += len(step.deletes)
    for name in ORDER:
        assert tables.occupied(name) == len(kernel[name].keys() | want[name].keys())
        for key in want[name]:
            tables.want(name, key, None)
        assert tables.occupied(name) == len(kernel[name])
    assert tables.removals == gone


@pure
@given(contents())
def test_nothing_is_planned_where_nothing_differs(have: Contents) -> None:
    tables = wanting(have, have)
    assert tables.plan() == []
    assert tables.pending == 0


@pure
@given(contents(), contents())
def test_nothing_is_planned_once_a_plan_is_done(have: Contents, want: Contents) -> None:
    tables = wanting(have, want)
    for step in tables.plan():
        tables.done(step.map, step.puts, step.deletes)
    assert tables.plan() == []
    assert tables.pending == 0
    assert {name: tables.have(name) for name in ORDER} == want


@pure
@given(contents(), contents(), contents(), st.integers(0, 16))
def test_a_plan_that_was_cut_short_is_taken_up_with_what_is_wanted_now(
    have: Contents, want: Contents, later: Contents, until: int
) -> None:
    tables = wanting(have, want)
    kernel = {name: dict(entries) for name, entries in have.items()}
    steps = tables.plan()[:until]
    for index, step in enumerate(steps):
        if index == len(steps) // 2:  # wants change while steps are carried out
            for name in ORDER:
                for key in want[name].keys() | later[name].keys():
                    tables.want(name, key, later[name].get(key))
        apply(kernel, step)
        tables.done(step.map, step.puts, step.deletes)
    expected = later if steps else want
    for step in tables.plan():
        apply(kernel, step)
        tables.done(step.map, step.puts, step.deletes)
    assert kernel == expected
    assert tables.pending == 0


def test_what_was_wanted_otherwise_meanwhile_stays_due() -> None:
    tables = Tables({"members": {b"gone": b"1"}})
    tables.want("members", b"a", b"1")
    tables.want("members", b"gone", None)
    put, delete = tables.plan()
    tables.want("members", b"a", b"2")
    tables.want("members", b"gone", b"3")
    tables.done("members", put.puts)
    tables.done("members", deletes=delete.deletes)
    assert tables.plan() == [Step("members", puts={b"gone": b"3", b"a": b"2"})]


def test_what_was_withdrawn_while_it_was_written_is_removed() -> None:
    tables = Tables({"members": {b"changed": b"1"}})
    tables.want("members", b"changed", b"2")
    tables.want("members", b"new", b"1")
    (put,) = tables.plan()
    tables.want("members", b"changed", b"1")
    tables.want("members", b"new", None)
    tables.done("members", put.puts)
    assert tables.plan() == [Step("members", puts={b"changed": b"1"}), Step("members", deletes=(b"new",))]


def test_what_was_wanted_again_while_it_was_removed_is_written() -> None:
    tables = Tables({"members": {b"a": b"1"}})
    tables.want("members", b"a", None)
    (delete,) = tables.plan()
    tables.want("members", b"a", b"1")
    tables.done("members", deletes=delete.deletes)
    assert tables.plan() == [Step("members", puts={b"a": b"1"})]


def test_a_want_that_is_taken_back_is_not_due() -> None:
    tables = Tables({"rules": {b"a": b"1"}})
    tables.want("rules", b"a", b"2")
    tables.want("rules", b"b", b"1")
    assert tables.pending == 2
    tables.want("rules", b"a", b"1")
    tables.want("rules", b"b", None)
    assert tables.plan() == []


def test_what_nobody_wants_stays_until_all_that_is_known_has_been_wanted() -> None:
    tables = Tables({"rules": {b"old": b"1", b"kept": b"1"}})
    tables.want("rules", b"kept", b"1")
    assert tables.plan() == []
    tables.adopt()
    assert tables.plan() == []
    tables.expire(tables.retiring() or 0)
    assert tables.plan() == [Step("rules", deletes=(b"old",), retired=True)]


def test_what_is_retired_goes_when_programs_have_ended_that_began_before_the_plan() -> None:
    tables = Tables({"rules": {b"a": b"1", b"b": b"1"}, "subjects": {b"s": b"a"}})
    for name, key, value in (("rules", b"a", b"1"), ("rules", b"b", b"1"), ("subjects", b"s", b"b")):
        tables.want(name, key, value)
    tables.retire("rules", b"a")
    assert tables.retiring() is None, "the subject leads to it until a plan has been carried out"
    assert tables.plan() == [Step("subjects", puts={b"s": b"b"})]
    tables.done("subjects", puts={b"s": b"b"})
    number = tables.retiring()
    assert number is not None
    tables.retire("rules", b"b")  # meanwhile
    assert tables.plan() == [], "programs may still be on their way"
    tables.expire(number)
    assert tables.plan() == [Step("rules", deletes=(b"a",), retired=True)]
    tables.done("rules", deletes=(b"a",))
    tables.expire(tables.retiring() or 0)
    assert tables.plan() == [Step("rules", deletes=(b"b",), retired=True)]


def test_what_is_retired_and_wanted_again_stays() -> None:
    tables = Tables({"rules": {b"a": b"1"}})
    tables.want("rules", b"a", b"1")
    tables.retire("rules", b"a")
    tables.plan()
    number = tables.retiring()
    tables.want("rules", b"a", b"1")
    assert tables.retiring() is None
    assert number is not None
    tables.expire(number)
    assert tables.plan() == []
    tables.retire("rules", b"a")
    assert tables.plan() == [], "retired anew"


def test_members_that_leave_a_set_go_at_once() -> None:
    tables = Tables({"members": {b"a": b"1", b"b": b"1"}})
    for key in (b"a", b"b"):
        tables.want("members", key, b"1")
    tables.want("members", b"a", None)
    tables.retire("members", b"b")
    assert tables.plan() == [Step("members", deletes=(b"a",))]


def test_what_is_adopted_and_then_wanted_again_stays() -> None:
    tables = Tables({"rules": {b"old": b"1"}})
    tables.adopt()
    tables.want("rules", b"old", b"1")
    assert tables.plan() == []


def test_maps_that_are_not_the_agents_are_no_part_of_a_plan() -> None:
    tables = Tables({"connections": {b"a": b"1"}})
    tables.adopt()
    assert tables.plan() == []
