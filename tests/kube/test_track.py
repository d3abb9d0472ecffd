"""What the tracker tells, against what there is: lists in pages, of which some are never ended, and watches between."""

import random
from collections.abc import Iterator

import pytest

from tidegate.kube.objects import Metadata, Pod
from tidegate.kube.track import Key, Tracker
from tidegate.kube.watch import Changed, Deleted, Event, Invalid, Listed, Page

NAMES = [f"p{number}" for number in range(9)]


class Handler:
    """Key → its last version, or "invalid"."""

    def __init__(self) -> None:
        self.known: dict[Key, str] = {}

    def changed(self, item: Pod) -> None:
        self.known[item.key] = item.metadata.resource_version

    def deleted(self, key: Key) -> None:
        self.known.pop(key, None)

    def invalid(self, item: Invalid) -> None:
        self.known[item.namespace, item.name] = "invalid"


class Cluster:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._version = 0
        self.objects: dict[Key, str] = {}

    def change(self) -> Event[Pod]:
        key = "ns", self._rng.choice(NAMES)
        self._version += 1
        if key in self.objects and self._rng.random() < 0.4:
            del self.objects[key]
            return Deleted(*key)
        self.objects[key] = "invalid" if self._rng.random() < 0.2 else str(self._version)
        return Changed(pod(key, self.objects[key])) if self.objects[key] != "invalid" else Invalid(*key, "odd")

    def pages(self) -> Iterator[Page[Pod]]:
        """Of the state as it is at the first one; what changes meanwhile comes with the watch."""
        now, first = sorted(self.objects.items()), True
        while first or now:
            size = self._rng.randrange(1, 4)
            part, now = now[:size], now[size:]
            good = [pod(key, version) for key, version in part if version != "invalid"]
            yield Page(good, [Invalid(*key, "odd") for key, version in part if version == "invalid"], first)
            first = False


def pod(key: Key, version: str) -> Pod:
    return Pod(metadata=Metadata(namespace=key[0], name=key[1], resource_version=version))


@pytest.mark.parametrize("seed", range(20))
def test_after_each_list_and_each_event_the_handler_knows_what_there_is(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    cluster, handler = Cluster(rng), Handler()
    tracker = Tracker(handler)
    for _ in range(40):
        for _ in range(rng.randrange(8)):  # while nobody watches
            cluster.change()
        listed, missed = dict(cluster.objects), []
        for page in cluster.pages():
            tracker.apply(page)
            missed += [cluster.change() for _ in range(rng.randrange(3))]
            if rng.random() < 0.15:
                break  # the continue token ran out
        else:
            tracker.apply(Listed())
            assert handler.known == listed
            for event in [*missed, *(cluster.change() for _ in range(rng.randrange(6)))]:
                tracker.apply(event)
            assert handler.known == cluster.objects
            assert all(tracker.knows(key) == (key in cluster.objects) for key in handler.known)
