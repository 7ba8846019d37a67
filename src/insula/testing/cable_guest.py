"""The guest's end of a cable, without a machine: ARP, and the little of TCP that a test of the way out needs.

It sends what it is told to and answers nothing by itself, so a test decides how slow or wrong the guest is.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from dataclasses import dataclass
from ipaddress import IPv4Address

from insula.model.uplink import OUTSIDE_ADDRESS, OUTSIDE_GATEWAY
from insula.net.cable import FrameDecoder, encode

MAC = bytes.fromhex("00163e5e6c00")
FIN, SYN, RST, ACK = 1, 2, 4, 16
WINDOW = 65535
LIMIT_S = 120.0
_BROADCAST = b"\xff" * 6
_ME = IPv4Address(OUTSIDE_ADDRESS).packed
_PIECE = 65536


@dataclass(frozen=True)
class Segment:
    """Of TCP, as it arrived."""

    port: int
    """The guest's."""
    sequence: int
    flags: int
    data: bytes


def own_address() -> str:
    """An address of this machine that is not its loopback. Nothing is sent: a datagram socket only looks up a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp_question(address: str = OUTSIDE_GATEWAY) -> bytes:
    question = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + MAC + _ME + bytes(6) + IPv4Address(address).packed
    return _BROADCAST + MAC + b"\x08\x06" + question


def packet(target: str, protocol: int, payload: bytes, source: str = OUTSIDE_ADDRESS) -> bytes:
    """A frame with a packet of IPv4 in it."""
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    head = head[:10] + struct.pack(">H", checksum(head + addresses))
    return _BROADCAST + MAC + b"\x08\x00" + head + addresses + payload


def segment(target: str, ports: tuple[int, int], sequence: int, acknowledged: int, flags: int) -> bytes:
    """A frame with a segment of TCP without data. ``ports``: the guest's, the other one."""
    head = struct.pack(">HHIIBBHHH", *ports, sequence % 2**32, acknowledged % 2**32, 5 << 4, flags, WINDOW, 0, 0)
    covered = _ME + IPv4Address(target).packed + struct.pack(">BBH", 0, 6, len(head)) + head
    return packet(target, 6, head[:16] + struct.pack(">H", checksum(covered)) + head[18:])


class CableGuest:
    """Owns its end of the cable."""

    def __init__(self, cable: socket.socket) -> None:
        cable.settimeout(LIMIT_S)
        self._cable = cable
        self._decoder = FrameDecoder()
        self._frames: deque[bytes] = deque()

    def send(self, frame: bytes) -> None:
        self._cable.sendall(encode(frame))

    def receive(self, limit_s: float = LIMIT_S) -> bytes:
        """The next frame. :raise TimeoutError: :raise ConnectionError: the cable has ended."""
        self._cable.settimeout(limit_s)
        while not self._frames:
            data = self._cable.recv(_PIECE)
            if not data:
                raise ConnectionAbortedError("the cable has ended")
            self._frames.extend(self._decoder.receive(data))
        return self._frames.popleft()

    def introduce(self) -> None:
        """Be known, as every guest is that has asked for its gateway."""
        self.send(arp_question())
        answer = self.receive()
        assert answer[12:14] == b"\x08\x06"
        assert answer[20:22] == b"\x00\x02"

    def next_segment(self, limit_s: float = LIMIT_S) -> Segment:
        """What else comes is passed over."""
        while True:
            frame = self.receive(limit_s)
            if frame[12:14] == b"\x08\x00" and frame[23] == 6:
                return _segment_of(frame)

    def connect(self, target: str, ports: tuple[int, int]) -> int:
        """Open a connection; the sequence number that its first byte will have."""
        self.send(segment(target, ports, 1000, 0, SYN))
        answer = self.next_segment()
        assert answer.flags & (SYN | ACK | RST) == SYN | ACK
        self.send(segment(target, ports, 1001, answer.sequence + 1, ACK))
        return answer.sequence + 1

    def close(self) -> None:
        self._cable.close()


def _segment_of(frame: bytes) -> Segment:
    (size,) = struct.unpack_from(">H", frame, 16)
    _, port, sequence, _, offset, flags = struct.unpack_from(">HHIIBB", frame, 34)
    return Segment(port, sequence, flags, frame[34 + (offset >> 4) * 4 : 14 + size])
