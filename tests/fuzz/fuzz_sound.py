"""Invariant: any bytes of a sound server are packets in any split, or RemoteProtocolError; and a stream that hears them
keeps its bounds, or ends with StreamRefused or RemoteProtocolError."""

from __future__ import annotations

import harness

from insula.sound import native
from insula.sound.native import Decoder
from insula.sound.stream import Playback, Recording, StreamRefused
from insula_proto.errors import RemoteProtocolError
from insula_proto.sound import AHEAD, BLOCK

_STEPS = native.command(native.REPLY, 1, 35) + native.command(native.REPLY, 2, 5)
SEEDS = [
    _STEPS + native.command(native.REPLY, 3, 7, 1, AHEAD * BLOCK, 1, 2, 3, 4),
    _STEPS
    + native.command(native.REPLY, 3, 7, 1, 0)
    + native.command(native.REQUEST, native.NO_INDEX, 7, 0xFFFFFFFF)
    + native.samples(7, b"abcdefgh"),
    _STEPS + native.command(native.ERROR, 3, 1),
    native.command(native.PLAYBACK_STREAM_KILLED, native.NO_INDEX, 7),
    native.command(native.REPLY, 1, True, None, {"application.name": "x"}, native.Long(b"abc"), native.Spec(2, 48000)),
    b"",
]


def fuzz_one(data: bytes) -> None:
    try:
        whole = Decoder().receive(data)
    except RemoteProtocolError:
        pass
    else:
        decoder = Decoder()
        assert [each for piece in harness.pieces(data) for each in decoder.receive(piece)] == whole
    for stream in (Playback("work"), Recording("work")):
        try:
            for piece in harness.pieces(data):
                stream.server_data(piece)
                assert 0 <= stream.room <= AHEAD * BLOCK
                assert len(stream.take_for_qube()) <= AHEAD * BLOCK
                stream.qube_data(piece[: stream.room])
        except (RemoteProtocolError, StreamRefused):
            continue


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
