"""What the programs of a node note for the policy log."""

import socket
import time

from tests.bpf.kernel import read_events
from tests.bpf.topology import IDENTITIES, Cluster
from tests.bpf.traffic import INGRESS, TCP, UDP, allow, client, isolate, pod

LOG = 8  # enum setting
CLOCK = 6  # CLOCK_MONOTONIC_COARSE: seconds() of helpers.h
ALLOWED, DENIED, ALLOWED_MARKED, DENIED_MARKED = 1, 2, 4, 8
RATE = 500  # LOG_RATE
LOST_ALLOWED, LOST_DENIED, LOST_AUDITED = 2, 3, 4


class Log:
    """Of pod b's node: b is isolated, and allows everybody TCP and UDP 8080."""

    def __init__(self, cluster: Cluster) -> None:
        self.a, self.b = pod(cluster, "a"), pod(cluster, "b")
        self.programs = self.b.node.programs
        self._port = 20000
        self.rule = {"policy": IDENTITIES["b"], "direction": INGRESS, "length": 16, "port": 8080}
        isolate(self.b.node, "b", ingress=True, ingress_lengths=1 << 16)
        for protocol in (TCP, UDP):
            allow(self.b.node, "b", INGRESS, [1], protocol, 8080, 16)
        self.allowed()
        self.denied()
        # A fresh second, so that what the tests before have noted takes nothing away.
        self.programs.maps["log_budget"].set({"value": 0}, {"second": 0})

    def ask(self, bits: int) -> None:
        self.programs.maps["settings"].set({"value": LOG}, {"value": bits})

    def allowed(self) -> list[dict[str, object]]:
        """What was noted since the last time."""
        return read_events(self.programs.manifest.maps["log_allowed"])

    def denied(self) -> list[tuple[dict[str, object], int]]:
        """The same; keys, and how many packets."""
        opened = self.programs.maps["log_denied"]
        found = [(key, value["count"]) for key, value in opened.items()]
        opened.clear()
        return found

    def lost(self, which: int) -> int:
        value = self.programs.maps["events_lost"].get({"value": which})
        assert value is not None
        return int(value["packets"])

    def second(self) -> int:
        """The present one, by the programs' clock."""
        return int(time.clock_gettime(CLOCK))

    def use_up(self) -> int:
        """Waits for another second, in which the log takes no new records; returns which."""
        following = self.second() + 1
        self.programs.maps["log_budget"].set({"value": 0}, {"second": following, "used": RATE})
        while self.second() < following:
            time.sleep(0.001)
        return following

    def send(self, number: int, port: int) -> None:
        """Datagrams, each from a port of its own."""
        for _ in range(number):
            self._port += 1
            with client(self.a, socket.SOCK_DGRAM) as sender:
                sender.bind((self.a.address, self._port))
                sender.sendto(b"x", (self.b.address, port))
