"""Invariant: whatever bytes come, in sync or not, the mux returns events or raises RemoteProtocolError; data come only
on streams that are open, never more than was granted; queued output and kept input stay within their limits.
"""

from __future__ import annotations

import struct

import harness

from insula_proto import limits, mux, mux_events, mux_frames
from insula_proto.errors import RemoteProtocolError

NONCE = b"n" * 16


def hello(answer_to: bytes) -> bytes:
    return struct.pack(
        "<III16sI16s16s", 0, mux_frames.HELLO, 52, mux_frames.MAGIC, mux_frames.VERSION, NONCE, answer_to
    )


def frame(stream: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<III", stream, kind, len(body)) + body


SEEDS = [
    b"\1"
    + frame(1, mux_frames.OPEN, struct.pack("<II", 512, 65536))
    + frame(1, mux_frames.DATA, b"x" * 70)
    + frame(1, mux_frames.FIN),
    b"\1" + frame(2, mux_frames.CREDIT, struct.pack("<I", 1000)) + frame(2, mux_frames.RESET, struct.pack("<I", 1)),
    b"\1" + frame(2, mux_frames.DATA, b"abc") + frame(2, mux_frames.FIN) + hello(bytes(16)),
    b"\0"
    + hello(bytes(16))
    + frame(2, mux_frames.OPEN, struct.pack("<II", 513, 65536))
    + frame(2, mux_frames.DATA, b"abc"),
    b"\1"
    + frame(0, mux_frames.MEMORY, NONCE)
    + frame(2, mux_frames.SHARED, struct.pack("<II", 1, 99))
    + frame(2, mux_frames.FIN),
    b"\1"
    + frame(0, mux_frames.MEMORY, NONCE)
    + frame(0, mux_frames.FREED, struct.pack("<I", 15))
    + frame(2, mux_frames.RESET, bytes(4)),
    b"\0" + hello(bytes(16)) + frame(0, mux_frames.MEMORY, NONCE) + frame(0, mux_frames.FREED, struct.pack("<I", 1)),
    b"\0" + bytes(90) + hello(bytes(16)) + bytes(13) + hello(bytes(16)),
    b"\2" + b"junk" * 9 + hello(NONCE) + frame(1, mux_frames.OPEN, struct.pack("<II", 111, 1)),
]


def fuzz_one(data: bytes) -> None:
    flags = data[:1]
    is_host = flags in (b"\1", b"\2")
    end = mux.Mux(mux.HOST if is_host else mux.GUEST, nonce=lambda size: NONCE[:size], max_peer_streams=4)
    end.start(pad=False)
    if flags == b"\1":
        end.receive(hello(NONCE))
        end.open(513)
        end.offer_memory(NONCE)
    granted: dict[int, int] = {}
    try:
        for piece in harness.pieces(data[1:]):
            for event in end.receive(piece):
                if isinstance(event, (mux_events.Synced, mux_events.Reset)):
                    granted.clear()
                elif isinstance(event, mux_events.MemoryOffered):
                    end.accept_memory(event.token)
                elif isinstance(event, mux_events.SharedReceived):
                    assert 0 < event.slot < limits.BULK_SIZE // limits.BULK_SLOT_SIZE
                    assert 0 < event.size <= limits.BULK_SLOT_SIZE
                    granted[event.stream] = granted.get(event.stream, 0) + event.size
                    assert not end.is_open(event.stream) or granted[event.stream] <= limits.MUX_MAX_WINDOW
                    end.free(event.slot)
                elif isinstance(event, mux_events.DataReceived):
                    assert event.data
                    granted[event.stream] = granted.get(event.stream, 0) + len(event.data)
                    assert granted[event.stream] <= limits.MUX_MAX_WINDOW
    except RemoteProtocolError:
        assert not end.in_sync
        end.start(pad=False)
    assert end.queued <= limits.MUX_MAX_QUEUED + limits.MUX_MAX_DATA
    assert len(end._partial) < 128


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
