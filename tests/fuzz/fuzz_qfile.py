"""Invariant: any bytes are entries that stay inside, or StreamRefused; in pieces as at once, with the checksum.

Every entry keeps to the quota and to its place, every byte of a file was announced. Any bytes are an answer, or
RemoteProtocolError.
"""

from __future__ import annotations

import stat
import zlib

import harness

from insula_proto import qfile
from insula_proto.errors import RemoteProtocolError
from insula_proto.file_names import check_path, check_target
from insula_proto.qfile import Answer, AnswerDecoder, Data, Decoder, Encoder, Entry, Quota, StreamRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_proto.qfile import Event

QUOTA = Quota(total=5000, entries=12, depth=6)


def stream(*, is_whole: bool = True) -> bytes:
    encoder = Encoder()
    pieces = [encoder.folder(b"top", 0o755, 1, 2), encoder.file(b"top/a", 0o4644, 70, 1, 2)]
    encoder.sent(bytes(70))
    pieces += [bytes(70), encoder.link(b"top/in/l", b"../a", 3, 4), encoder.file("top/ä".encode(), 0o600, 0, 1, 2)]
    pieces += [encoder.folder(b"top", 0o755, 1, 2)]
    return b"".join(pieces) + (encoder.end() if is_whole else b"")


def header(name: bytes, mode: int, size: int, nanoseconds: int = 0) -> bytes:
    return qfile.HEADER.pack(len(name), mode, size, 0, nanoseconds, 0, 0) + name


SEEDS = [
    stream(),
    stream(is_whole=False),
    stream()[:100],
    header(b"../x", stat.S_IFREG, 0),
    header(b"top\0", stat.S_IFCHR, 0),
    header(b"top/l\0", stat.S_IFLNK, 4) + b"../x",
    header(b"big", stat.S_IFREG, 1 << 63),
    header(b"a", stat.S_IFDIR, 0, 1 << 31) * 3,
    header(b"x" * 300, stat.S_IFREG, 0),
    header(b"d/" * 7 + b"d", stat.S_IFDIR, 0),
    b"",
    qfile.encode_answer(Answer(17, 5, b"top/a")),
]


def fuzz_one(data: bytes) -> None:
    for all_names in (False, True):
        whole = decode([data], all_names=all_names)
        assert whole == decode(list(harness.pieces(data)), all_names=all_names)
        check(whole[0], all_names=all_names)
    decoder = AnswerDecoder()
    for piece in harness.pieces(data):
        decoder.receive(piece)
    at_once = AnswerDecoder()
    at_once.receive(data)
    try:
        answer = decoder.finish()
    except RemoteProtocolError:
        assert len(data) < 16
    else:
        assert answer == at_once.finish()
        assert len(answer.name) < qfile.MAX_ANSWER


def decode(pieces: list[bytes], *, all_names: bool) -> tuple[list[Event], object, int, bool]:
    """Events, the data of a file in one piece; the refusal if there was one; the checksum; whether it ended."""
    decoder = Decoder(QUOTA, all_names=all_names)
    events: list[Event] = []
    refusal: object = None
    taken = b"".join(pieces)
    try:
        for piece in pieces:
            for event in decoder.receive(piece):
                if isinstance(event, Data) and events and isinstance(events[-1], Data):
                    events[-1] = Data(bytes(events[-1].data) + event.data)
                else:
                    events.append(Data(bytes(event.data)) if isinstance(event, Data) else event)
        decoder.finish()
        assert any(decoder.crc == zlib.crc32(taken[:size]) for size in range(len(taken) + 1))
    except StreamRefused as error:
        refusal = (error.code, error.name)
        return events, refusal, 0, False
    return events, None, decoder.crc, decoder.is_ended


def check(events: list[Event], *, all_names: bool) -> None:
    left = total = entries = 0
    for event in events:
        if isinstance(event, Data):
            left -= len(event.data)
            assert left >= 0
        elif isinstance(event, Entry):
            assert left == 0
            assert event.path == check_path(event.name, all_names=all_names)
            assert event.mode & 0o7000 == 0
            if stat.S_ISLNK(event.mode):
                check_target(len(event.path), event.target, all_names=all_names)
            entries += 1
            total += event.size + len(event.target)
            left = event.size
            assert len(event.path) <= QUOTA.depth
    assert entries <= QUOTA.entries
    assert total <= QUOTA.total


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
