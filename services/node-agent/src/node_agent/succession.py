"""How programs take over from those that an earlier agent left: of another version, or with other maps. Blocking.

Where all maps of the agent hold what programs look for there, links are moved at its start. Where some have come in the
place of others with another layout, or are new, earlier programs stay until the first snapshot has been written: what
they look into stays as it is, and devices that come meanwhile wait without programs (the guard lets nothing through).
"""

from pathlib import Path

from node_agent import relink
from node_agent.loader import Manifest, catch_up, mark_filled, unfilled


class Succession:
    def __init__(self, bpffs: Path, state: Path, manifest: Manifest) -> None:
        """Raises OSError, ValueError."""
        self._bpffs, self._state, self._manifest = bpffs, state, manifest
        self.waits_for = unfilled(state, manifest.maps)

    def move_links(self) -> None:
        """Raises OSError."""
        moving = relink.start(self._bpffs, self._state, self._manifest)
        if moving:
            relink.finish(moving)

    def filled(self) -> None:
        """The agent has written all that its maps are to hold. Raises OSError, ValueError."""
        mark_filled(self._state)
        self.waits_for = []

    def catch_up(self, *, last: bool = False) -> None:
        """What earlier programs have written; `last`: nothing uses their maps any more. Raises OSError, ValueError."""
        catch_up(self._bpffs, self._state, last=last)
