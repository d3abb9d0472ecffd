"""docs/faults.md names each test of a fault, in its words, and no other."""

import re
import subprocess
import sys
from typing import Literal

import pytest
from tests.deploy.images import ROOT
from tests.fault_table import late, rows

PAGE = ROOT / "docs/faults.md"
ROW = re.compile(r"^\| (?P<fault>[^|]+) \| (?P<promise>[^|]+) \| `(?P<test>tests/[^|`]+)` \|$", re.MULTILINE)
# Prints what is marked, without running it.
COLLECT = """
import pytest

class Rows:
    def pytest_collection_modifyitems(self, items):
        for item in items:
            mark = item.get_closest_marker("fault")
            if mark:
                print("| {} | {} | `{}` |".format(*mark.args, item.nodeid.partition("[")[0]))

raise SystemExit(pytest.main(["--collect-only", "-q", "-m", "fault", "tests/cluster"], plugins=[Rows()]))
"""


def test_the_page_and_the_tests_have_the_same_lines() -> None:
    found = subprocess.run([sys.executable, "-c", COLLECT], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    marked = {match.groups() for match in ROW.finditer(found)}
    written = [match.groups() for match in ROW.finditer(PAGE.read_text())]
    assert marked
    assert set(written) == marked
    assert len(set(written)) == len(written)


def report(outcome: Literal["passed", "failed", "skipped"], *took: tuple[float, float]) -> pytest.TestReport:
    properties = [
        ("fault", ("it breaks", "it mends")),
        ("saw", "one"),
        ("saw", "two"),
        *(("took", each) for each in took),
    ]
    return pytest.TestReport("a", ("a", 1, "a"), {}, outcome, None, "call", user_properties=properties)


def test_a_line_is_green_where_all_that_is_promised_was_seen() -> None:
    cases = [report("passed"), report("passed", (10.0, 20.0)), report("passed", (10.0, 20.0), (21.0, 20.0))]
    cases += [report("failed", (10.0, 20.0)), report("skipped")]
    assert [row[3] for row in rows(cases)] == ["green", "green", "late", "red", "not run"]
    assert [late(each) for each in cases] == [False, False, True, False, False]
    assert next(rows(cases))[:3] == ("it breaks", "it mends", "one; two")
