"""Invariant: any bytes are a stream of entries inside their own top, or CopyFailed; in pieces the same as at once.

Every entry keeps to the limits, no path or link can lead outside, and every byte of a file was announced.
"""

from __future__ import annotations

import harness

from insula.client.errors import CopyFailed
from insula.client.tar_stream import Data, Entry, Event, Kind, Limits, TarDecoder, check_target, parse_path
from insula.testing.tar_streams import END, STREAM, member

LIMITS = Limits(total_bytes=5000, entries=20)
SEEDS = [
    STREAM,
    STREAM[:1536],
    member("top", size=5001) + END,
    member("top") * 21 + END,
    member("top/l", b"2", target="../x") + END,
    member("x/" * 60 + "y") + END,
    b"",
]


def fuzz_one(data: bytes) -> None:
    whole, refusal = decode([data])
    in_pieces, refusal_in_pieces = decode(list(harness.pieces(data)))
    assert (whole, refusal) == (in_pieces, refusal_in_pieces)
    left = total = entries = 0
    for event in whole:
        if isinstance(event, Data):
            left -= len(event.data)
            assert left >= 0
            continue
        assert left == 0
        entries += 1
        total += event.size
        left = event.size
        check_entry(event)
    assert entries <= LIMITS.entries
    assert total <= LIMITS.total_bytes


def decode(pieces: list[bytes]) -> tuple[list[Event], bool]:
    """Events, the data of a file in one piece, and whether the rest was refused."""
    decoder = TarDecoder(LIMITS)
    events: list[Event] = []
    try:
        for piece in pieces:
            for event in decoder.receive(piece):
                if isinstance(event, Data) and events and isinstance(events[-1], Data):
                    events[-1] = Data(events[-1].data + event.data)
                else:
                    events.append(event)
        decoder.finish()
    except CopyFailed:
        return events, True
    return events, False


def check_entry(entry: Entry) -> None:
    assert parse_path(b"/".join(entry.path)) == entry.path
    if entry.kind is Kind.LINK:
        check_target(entry.path, entry.target)
    if entry.kind is not Kind.FILE:
        assert entry.size == 0


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
