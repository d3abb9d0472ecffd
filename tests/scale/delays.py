"""How long changes take from the API server's event until somebody sees them."""

import asyncio
from typing import NamedTuple

POD, POLICY = KINDS = "pod", "policy"

Change = tuple[str, str, str]  # kind, namespace, name


class Delay(NamedTuple):
    since: float  # monotonic, seconds
    took: float  # milliseconds


class Delays:
    """Of changes until they have come to one place. Of what changes again before that, the first change counts."""

    def __init__(self) -> None:
        self.due: dict[Change, float] = {}  # since when
        self.found: dict[str, list[Delay]] = {kind: [] for kind in KINDS}
        self.any_of_each = asyncio.Event()  # there is a delay of each kind
        self._seen: dict[Change, float] = {}  # when it was last seen to come

    def clear(self) -> None:
        """Those until now do not count."""
        self.any_of_each.clear()
        for found in self.found.values():
            found.clear()

    def made(self, change: Change, since: float) -> None:
        # The word of where it came may be here before the word of who made it.
        if self._seen.get(change, 0) > since:
            self._note(change[0], since, self._seen[change])
        else:
            self.due.setdefault(change, since)

    def arrived(self, change: Change, now: float) -> None:
        self._seen[change] = now
        since = self.due.pop(change, None)
        if since is not None:
            self._note(change[0], since, now)

    def _note(self, kind: str, since: float, now: float) -> None:
        self.found[kind].append(Delay(since, (now - since) * 1000))
        if all(self.found.values()):
            self.any_of_each.set()


async def tell(cluster: asyncio.subprocess.Process, *places: Delays) -> None:
    """What tests.scale.cluster says that it changes. Never returns before its end."""
    assert cluster.stdout is not None
    async for line in cluster.stdout:
        at, kind, namespace, name = line.decode().split()
        for delays in places:
            delays.made((kind, namespace, name), float(at))
