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

    def set(self, setting: int, value: int) -> None:
        self._map.update(struct.pack("=I", setting), struct.pack("=Q", value))
