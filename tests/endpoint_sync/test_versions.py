"""Services of this version after those of a newer one, as when an upgrade is taken back."""

import copy

import msgpack
from tests.endpoint_sync.test_any_object import GOOD
from tests.endpoint_sync.world import KEYS, World

from tidegate.store import Put


async def test_what_a_newer_version_has_written_becomes_what_this_one_writes() -> None:
    """With the same numbers, so that no agent changes anything but what it did not know."""
    world = World()
    world.put(*copy.deepcopy(GOOD))
    async with world.running():
        before = world.values()
    later = {"v": [1, 9], "LATER": {"more": [1]}}
    stored = world.store.values(KEYS.prefix)
    world.store.put_now([Put(key, msgpack.packb({**msgpack.unpackb(value), **later})) for key, value in stored.items()])
    assert world.values().keys() == before.keys()
    assert world.values() != before
    async with world.running("another"):
        assert world.values() == before
        assert world.problems() == {}
