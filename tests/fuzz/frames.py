"""Frames of IPv4 and IPv6 from bytes: whole ones, ones that are almost right, and what is left of them. Pure.

Nothing here is taken from the programs: headers are laid out, and checksums counted, by the RFCs alone.
"""

import random
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from scapy.layers.sctp import crc32c

ETHERNET = 14
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
ICMP, TCP, UDP, GRE, ICMP6, SCTP = 1, 6, 17, 47, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NONE, DESTINATION = 0, 43, 44, 51, 59, 60
# Family → protocol → where its checksum stands.
CHECKSUM_AT = {IPV4: {TCP: 16, UDP: 6, ICMP: 2}, IPV6: {TCP: 16, UDP: 6, ICMP6: 2}}
INTERESTING = (0, 1, 2, 4, 5, 7, 8, 15, 16, 20, 40, 44, 58, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0xFE, 0xFF)


def ones_sum(raw: bytes) -> int:
    """RFC 1071: the one's complement sum of 16-bit words."""
    total: int = sum(struct.unpack(f">{(len(raw) + 1) // 2}H", raw + b"\0" * (len(raw) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Parsed:
    """Where things are in a frame whose headers agree with each other. Raises ValueError for any other."""

    def __init__(self, frame: bytes) -> None:
        self.kind = int.from_bytes(frame[12:14], "big")
        body = frame[ETHERNET:]
        if self.kind == IPV4 and len(body) >= 20 and body[0] >> 4 == 4:
            self.l4 = ETHERNET + (body[0] & 15) * 4
            self.end = ETHERNET + int.from_bytes(body[2:4], "big")
            self.protocol = body[9]
            offset = int.from_bytes(body[6:8], "big")
            self.whole, self.addresses = not offset & 0x3FFF, body[12:20]
            if body[0] & 15 < 5:
                raise ValueError("no header")
        elif self.kind == IPV6 and len(body) >= 40 and body[0] >> 4 == 6:
            self.l4, self.protocol = ETHERNET + 40, body[6]
            self.end = ETHERNET + 40 + int.from_bytes(body[4:6], "big")
            self.whole, self.addresses = True, body[8:40]
            while self.protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION) and self.whole:
                if self.l4 + 8 > len(frame):
                    raise ValueError("extension cut")
                length = (frame[self.l4 + 1] + 1) * 8
                if self.protocol == FRAGMENT:
                    length, self.whole = 8, not int.from_bytes(frame[self.l4 + 2 : self.l4 + 4], "big") & 0xFFF9
                elif self.protocol == AUTHENTICATION:
                    length = (frame[self.l4 + 1] + 2) * 4
                self.protocol, self.l4 = frame[self.l4], self.l4 + length
        else:
            raise ValueError("no IP")
        if not self.l4 <= self.end <= len(frame):
            raise ValueError("lengths contradict each other")

    def _pseudo(self) -> bytes:
        length = self.end - self.l4
        if self.kind == IPV6:
            return self.addresses + struct.pack(">II", length, self.protocol)
        return b"" if self.protocol == ICMP else self.addresses + struct.pack(">HH", self.protocol, length)

    def transport_sum(self, frame: bytes) -> int | None:
        """0xffff where the checksum is right; None where there is none to look at."""
        at = CHECKSUM_AT[self.kind].get(self.protocol)
        if at is None or not self.whole:
            return None
        if self.l4 + at + 2 > self.end:
            return None
        if self.protocol == UDP:
            if not int.from_bytes(frame[self.l4 + 6 : self.l4 + 8], "big"):
                return None
            if int.from_bytes(frame[self.l4 + 4 : self.l4 + 6], "big") != self.end - self.l4:
                return None
        return ones_sum(self._pseudo() + frame[self.l4 : self.end])


def is_summed_up(frame: bytes) -> bool:
    """Whether lengths agree, and every checksum that there is is right."""
    try:
        parsed = Parsed(frame)
    except ValueError:
        return False
    if parsed.kind == IPV4 and ones_sum(frame[ETHERNET : parsed.l4]) != 0xFFFF:
        return False
    if parsed.protocol == SCTP and parsed.whole and parsed.end - parsed.l4 >= 12:
        return _sctp(frame, parsed) == frame[parsed.l4 + 8 : parsed.l4 + 12]
    return parsed.transport_sum(frame) in (None, 0xFFFF)


def _sctp(frame: bytes, parsed: Parsed) -> bytes:
    segment = frame[parsed.l4 : parsed.end]
    return struct.pack(">I", crc32c(segment[:8] + bytes(4) + segment[12:]))  # type: ignore[no-untyped-call]


def summed_up(frame: bytes) -> bytes:
    """The frame with the checksums that it should have, as far as its lengths agree."""
    try:
        parsed = Parsed(frame)
    except ValueError:
        return frame
    made = bytearray(frame)
    if parsed.kind == IPV4:
        made[ETHERNET + 10 : ETHERNET + 12] = bytes(2)
        made[ETHERNET + 10 : ETHERNET + 12] = (0xFFFF - ones_sum(bytes(made[ETHERNET : parsed.l4]))).to_bytes(2, "big")
    if parsed.protocol == SCTP and parsed.whole and parsed.end - parsed.l4 >= 12:
        made[parsed.l4 + 8 : parsed.l4 + 12] = _sctp(bytes(made), parsed)
    elif parsed.transport_sum(bytes(made)) is not None:
        at = parsed.l4 + CHECKSUM_AT[parsed.kind][parsed.protocol]
        made[at : at + 2] = bytes(2) if parsed.protocol != UDP else b"\0\1"
        total = parsed.transport_sum(bytes(made)) or 0
        if parsed.protocol == UDP:
            total = ones_sum(struct.pack(">HH", total, 0xFFFE))
        made[at : at + 2] = (0xFFFF - total or (0xFFFF if parsed.protocol == UDP else 0)).to_bytes(2, "big")
    return bytes(made)


class Frames:
    """Frames between these addresses and ports, by chance."""

    def __init__(self, choice: random.Random, ipv4: Sequence[str], ipv6: Sequence[str], ports: Sequence[int]) -> None:
        self._choice = choice
        self._addresses = {IPV4: ipv4, IPV6: ipv6}
        self._ports = ports

    def frame(self, kind: int, source: str | None = None, destination: str | None = None) -> bytes:
        """A whole one, whose checksums are right."""
        body = self._packet(kind, 1, source, destination)
        return summed_up(bytes(6) + b"\2\0\0\0\0\1" + struct.pack(">H", kind) + body)

    def _packet(self, kind: int, depth: int, source: str | None = None, destination: str | None = None) -> bytes:
        pick = self._choice.choice
        ends = [ip_address(text or pick(self._addresses[kind])).packed for text in (source, destination)]
        protocol = pick((TCP, TCP, UDP, UDP, SCTP, ICMP if kind == IPV4 else ICMP6, GRE, pick(range(256))))
        payload = self._segment(kind, protocol, depth)
        fragment = pick((0, 0, 0, 0, 0x2000, 0x2003, 185, 1))
        life = pick((0, 1, 2, 64, 255))
        if kind == IPV4:
            options = pick((b"", b"", b"", b"\x01" * 4, b"\x94\x04\0\0", b"\x83\x03\x10\0" * 10))
            header = 20 + len(options)
            head = bytes((0x40 | header // 4, pick((0, 0xB8)))) + struct.pack(
                ">HHHBBH", header + len(payload), pick((7, 8)), fragment, life, protocol, 0
            )
            return head + b"".join(ends) + options + payload
        first, extensions = self._extensions(protocol, fragment)
        head = struct.pack(">IHBB", 0x60000000, len(extensions) + len(payload), first, life)
        return head + b"".join(ends) + extensions + payload

    def _extensions(self, protocol: int, fragment: int) -> tuple[int, bytes]:
        """Number of the first header, and all of them."""
        pick = self._choice.choice
        count = pick((0, 0, 0, 0, 1, 2, 7, 8, 9))
        chain = [pick((HOP_BY_HOP, ROUTING, DESTINATION, AUTHENTICATION, 135)) for _ in range(count)]
        if fragment:
            chain.append(FRAGMENT)
        raw, following = b"", protocol
        for header in reversed(chain):
            if header == FRAGMENT:
                place = (fragment & 0x1FFF) << 3 | fragment >> 13 & 1
                raw = struct.pack(">BBHI", following, 0, place, pick((7, 8))) + raw
            else:
                units = pick((0, 0, 1))
                size = (units + 2) * 4 if header == AUTHENTICATION else (units + 1) * 8
                raw = bytes((following, units)) + bytes((1, size - 4)) + bytes(size - 4) + raw
            following = header
        return following, raw

    def _segment(self, kind: int, protocol: int, depth: int) -> bytes:
        pick = self._choice.choice
        ports = struct.pack(">HH", pick(self._ports), pick(self._ports))
        data = bytes(pick((0, 1, 3, 8, 60, 1200)))
        if protocol == TCP:
            options = pick((b"", b"\x02\x04\x05\xb4"))
            flags = pick((0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, pick(range(256))))
            return ports + struct.pack(">IIBBHHH", 1, 2, (20 + len(options)) << 2, flags, 500, 0, 0) + options + data
        if protocol == UDP:
            return ports + struct.pack(">HH", 8 + len(data), pick((0, 1)) if kind == IPV4 else 1) + data
        if protocol == SCTP:
            return ports + struct.pack(">II", 5, 0) + bytes((pick((1, 2, 0, 7, 14)), 0, 0, 4)) + data
        if protocol in (ICMP, ICMP6):
            kinds = (0, 8, 3, 3, 11, 12, 5, 13) if protocol == ICMP else (128, 129, 1, 2, 3, 4, 133, 135, 143)
            head = bytes((pick(kinds), pick((0, 3, 4)), 0, 0)) + ports
            quotes = head[0] in ((3, 4, 5, 11, 12) if protocol == ICMP else (1, 2, 3, 4)) and depth
            quoted = self._packet(kind, depth - 1)[: pick((0, 20, 28, 48, 56, 100, 2000))] if quotes else data
            return head + quoted
        return data

    def mutated(self, frame: bytes) -> bytes:
        """Almost what it was: bytes set, cut off, added, moved; with checksums that hold, or not."""
        made = bytearray(frame)
        for _ in range(self._choice.randrange(4)):
            self._choice.choice(self.MUTATIONS)(self, made)
        # The kernel's test_run takes no frame of IP that is shorter than the header.
        made = made[:2000].ljust(ETHERNET + 1, b"\0")
        made = made.ljust(ETHERNET + {IPV4: 20, IPV6: 40}.get(int.from_bytes(made[12:14], "big"), 0), b"\0")
        return summed_up(bytes(made)) if self._choice.random() < 0.7 else bytes(made)

    def _place(self, made: bytearray) -> int:
        limit = self._choice.choice((ETHERNET + 24, ETHERNET + 80, len(made)))
        return self._choice.randrange(12, max(13, min(limit, len(made))))

    def _set_byte(self, made: bytearray) -> None:
        if len(made) > 13:
            made[self._place(made)] = self._choice.choice((self._choice.randrange(256), *INTERESTING))

    def _flip(self, made: bytearray) -> None:
        if len(made) > 13:
            made[self._place(made)] ^= 1 << self._choice.randrange(8)

    def _cut(self, made: bytearray) -> None:
        del made[self._choice.randrange(12, max(13, len(made))) :]

    def _add(self, made: bytearray) -> None:
        made += self._choice.randbytes(self._choice.choice((1, 4, 40, 400)))

    def _drop(self, made: bytearray) -> None:
        place = self._place(made)
        del made[place : place + self._choice.choice((1, 2, 4, 8, 20))]

    def _repeat(self, made: bytearray) -> None:
        place = self._place(made)
        made[place:place] = made[place : place + self._choice.choice((1, 4, 8, 40))]

    def _length(self, made: bytearray) -> None:
        """What the header says of the packet's length."""
        at = ETHERNET + (4 if made[12:14] == b"\x86\xdd" else 2)
        value = max(0, int.from_bytes(made[at : at + 2], "big") + self._choice.choice((-40, -8, -1, 1, 8, 60000)))
        made[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")

    MUTATIONS: tuple[Callable[["Frames", bytearray], None], ...] = (
        _set_byte, _set_byte, _set_byte, _flip, _cut, _add, _drop, _repeat, _length,
    )  # fmt: skip
