"""Exit codes and signals, in processes of their own."""

import json
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
from tidegate.runtime.errors import SettingsError
from tidegate.runtime.lifecycle import run
from tidegate.runtime.settings import CommonSettings

{body}

run(main, CommonSettings(log_format="json"), "service")
"""


def start(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[dict[str, object]]]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, [json.loads(line) for line in err.splitlines() if line.startswith("{")]


WAITS = """
async def main(stop):
    async def child():
        try:
            await asyncio.sleep(3600)
        finally:
            print("child cleaned", flush=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(child())
        await asyncio.sleep(0)
        print("up", flush=True)
"""


def started(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_every_task_and_exits_with_0(number: signal.Signals) -> None:
    process = start(WAITS)
    started(process)
    process.send_signal(number)
    code, out, lines = finish(process)
    assert (code, out) == (0, "child cleaned\n")
    assert [(line["message"], line["reason"], line["service"]) for line in lines] == [
        ("stopping", number.name, "service")
    ]


def test_a_second_signal_ends_a_clean_up_that_hangs() -> None:
    process = start("""
async def main(stop):
    print("up", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        print("cleaning", flush=True)
        await asyncio.sleep(3600)
""")
    started(process)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("async def main(stop): pass", 0),
        ("async def main(stop): stop.request('done'); await asyncio.sleep(3600)", 0),
        ("async def main(stop): raise ZeroDivisionError", 1),
        ("async def main(stop): raise asyncio.CancelledError", 1),
    ],
)
def test_exit_codes(body: str, code: int) -> None:
    assert finish(start(body))[0] == code


def test_a_failure_is_told_with_its_traceback_but_no_variables() -> None:
    code, _, lines = finish(
        start("""
async def main(stop):
    password = "s3cret"
    raise ZeroDivisionError("why")
""")
    )
    assert code == 1
    (line,) = lines
    assert line["message"] == "failed"
    assert "ZeroDivisionError" in json.dumps(line)
    assert "s3cret" not in json.dumps(line)


@pytest.mark.parametrize("grouped", [False, True])
def test_bad_settings_are_one_sentence_and_exit_with_2(grouped: bool) -> None:
    body = "raise SettingsError('--x: cannot work')"
    if grouped:
        body = f"async def inner(): {body}\n    async with asyncio.TaskGroup() as group: group.create_task(inner())"
    process = start(f"async def main(stop):\n    {body}" if grouped else f"async def main(stop): {body}")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, "error: --x: cannot work\n")
