"""docs/faults.md names each test of a fault, in its words, and no other."""

import re
import subprocess
import sys

from tests.deploy.images import ROOT

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
