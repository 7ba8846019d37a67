"""Invariant: any bytes are frames or RemoteProtocolError, in pieces the same as at once, and each frame is judged."""

from __future__ import annotations

import harness

from insula.model.uplink import OUTSIDE_DNS
from insula.net.cable import FrameDecoder, encode
from insula.net.screen import may_pass
from insula.testing.cable_guest import SYN, arp_question, packet, segment
from insula_proto.errors import RemoteProtocolError

SEEDS = [
    encode(arp_question()),
    encode(segment("198.51.100.7", (40000, 80), 1000, 0, SYN)),
    encode(packet(OUTSIDE_DNS, 17, b"\x9c\x40\x00\x35" + bytes(20))) * 2,
    encode(packet("127.0.0.1", 6, bytes(20))),
    b"\xff\xff\xff\xff",
    b"",
]


def fuzz_one(data: bytes) -> None:
    whole = decode([data])
    in_pieces = decode(list(harness.pieces(data)))
    # (At once, the frames before a length that is none go with it.)
    assert (whole is None) == (in_pieces is None)
    assert whole == in_pieces
    for frame in whole or []:
        assert may_pass(frame) in (True, False)


def decode(pieces: list[bytes]) -> list[bytes] | None:
    """None: refused."""
    decoder, frames = FrameDecoder(), []
    try:
        for piece in pieces:
            frames += decoder.receive(piece)
    except RemoteProtocolError:
        return None
    return frames


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
