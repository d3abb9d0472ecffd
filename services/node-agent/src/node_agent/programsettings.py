"""The map `settings`: numbers that the agent gives the programs, and keeps there over its own restarts."""

import struct

from node_agent.maps import Map

# enum setting of bpf/include/types.h.
SETTING_GENERATION, SETTING_MONITOR, SETTING_SOCKET_NAMESPACE, SETTING_PORTS, SETTING_NODE_NAMESPACE = 0, 1, 3, 4, 7
SETTING_LOG, SETTING_LOG_ROUND, SETTING_LOG_TOLD, SETTING_AUDIT = 8, 9, 10, 13


class ProgramSettings:
    def __init__(self, opened: Map) -> None:
        self._map = opened

    def get(self, setting: int) -> int:
        raw = self._map.lookup(struct.pack("=I", setting)) or bytes(8)
        return int(struct.unpack("=Q", raw)[0])

    def raise_generation(self) -> None:
        """What has been judged is judged anew."""
        # Generations are compared as u32 in connections; 0 never comes up.
        self.set(SETTING_GENERATION, self.get(SETTING_GENERATION) % 0xFFFFFFFF + 1)

    def audit(self, whole_node: bool) -> None:
        if self.get(SETTING_AUDIT) != whole_node:
            self.set(SETTING_AUDIT, whole_node)
            self.raise_generation()

    def set(self, setting: int, value: int) -> None:
        self._map.update(struct.pack("=I", setting), struct.pack("=Q", value))
