"""What it costs etcd, alone and behind its grpc-proxy, to tell many nodes of changes (tests.scale.fanout)."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.model import Limit, Measurement, Result, Size, Tick
from tests.scale.fanout import measure

RATE = 10  # transactions a second
PROXIES = 2

COST, BYTES = "CPU of a transaction for a node", "bytes of it"
TOLD, TOLD_LATE = "from the transaction until a node is told, p50", "the same, p99"
BACK, ANSWER = "until the last node is back after all were cut off", "longest transaction meanwhile"
MISSED = "events that nodes missed"


@contextmanager
def directory(_: Size) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tgt-bench-") as made:
        yield Path(made)


def _measurement(name: str, what: str, together: int, proxies: int) -> Measurement[Path]:
    def run(where: Path, size: Size, tick: Tick) -> Result:
        place = where / name
        place.mkdir()
        found = asyncio.run(measure(size.watches, RATE, together, size.log_milliseconds / 1000, proxies, place))
        tick()
        messages = found.events / (together + 1)  # one for each transaction and node
        series = {
            COST: (found.etcd_cpu + found.proxy_cpu) / messages * 1e6,
            BYTES: found.bytes / messages,
            TOLD: found.told_p50,
            TOLD_LATE: found.told_p99,
            BACK: found.back_last,
            ANSWER: found.answer_worst,
            MISSED: float(found.missed),
        }
        limits = (
            Limit(COST, unit="µs"),
            Limit(BYTES, unit="bytes"),
            Limit(TOLD),
            Limit(TOLD_LATE),
            Limit(BACK, unit="s"),
            Limit(ANSWER),
            Limit(MISSED, at_most=0, unit="events"),
        )
        return Result(name, what, "ms", {subject: (figure,) for subject, figure in series.items()}, limits=limits)

    return Measurement(name, what, lambda _size: 1, run)


MEASUREMENTS = (
    _measurement("fan-out-etcd", "etcd alone, a change in each transaction", 1, 0),
    _measurement("fan-out-etcd-ten", "etcd alone, ten changes in each", 10, 0),
    _measurement("fan-out-proxy", f"{PROXIES} grpc-proxies, a change in each", 1, PROXIES),
    _measurement("fan-out-proxy-ten", f"{PROXIES} grpc-proxies, ten changes in each", 10, PROXIES),
)
