"""The qfile codec: the published bytes, that any split is the same to it, and all that it refuses."""

from __future__ import annotations

import errno
import itertools
import stat
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, qfile
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qfile import (
    CUT_OFF,
    HEADER,
    Answer,
    AnswerDecoder,
    Data,
    Decoder,
    Encoder,
    End,
    Entry,
    Quota,
    StreamRefused,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_proto.qfile import Event

S = 1_000_000_000
FOLDER, FILE, LINK = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK


def header(name: bytes, mode: int, size: int = 0, *, atime_ns: int = 0, mtime_ns: int = 0) -> bytes:
    """A header as it is sent, its name with NUL."""
    return HEADER.pack(len(name) + 1, mode, size, 5, atime_ns, 6, mtime_ns) + name + b"\0"


END = bytes(32)


def decode(pieces: list[bytes], quota: Quota | None = None, *, all_names: bool = False) -> list[Event]:
    """The events, the data of each file in one piece."""
    decoder = Decoder(quota or Quota(), all_names=all_names)
    events: list[Event] = []
    for piece in pieces:
        for event in decoder.receive(piece):
            if isinstance(event, Data) and events and isinstance(events[-1], Data):
                events[-1] = Data(bytes(events[-1].data) + event.data)
            else:
                events.append(Data(bytes(event.data)) if isinstance(event, Data) else event)
    decoder.finish()
    assert decoder.crc == zlib.crc32(b"".join(pieces))
    return events


def refusal(stream: bytes, quota: Quota | None = None, *, all_names: bool = False) -> tuple[int, bytes | None]:
    with pytest.raises(StreamRefused) as raised:
        decode([stream], quota, all_names=all_names)
    return raised.value.code, raised.value.name


# the published bytes


def test_encode_file_gives_published_bytes() -> None:
    encoder = Encoder()
    head = encoder.file(b"d/f", 0o4755, 3, 1 * S + 2, 3 * S + 4)
    encoder.sent(b"abc")
    assert head == struct.pack("<IIQIIII", 4, 0o104755, 3, 1, 2, 3, 4) + b"d/f\0"
    assert encoder.end() == END
    assert encoder.crc == zlib.crc32(head + b"abc" + END)


def test_encode_link_and_folder_give_published_bytes() -> None:
    encoder = Encoder()
    link = encoder.link(b"d/l", b"f", 0, 0)
    assert link == struct.pack("<IIQIIII", 4, 0o120777, 1, 0, 0, 0, 0) + b"d/l\0f"
    assert encoder.folder(b"d", 0o40755, 0, 0)[:16] == struct.pack("<IIQ", 2, 0o40755, 0)


@pytest.mark.parametrize(("time", "expected"), [(-1, (0, 0)), (1 << 70, ((1 << 32) - 1, (1 << 70) % S))])
def test_encode_time_outside_32_bits_nearest_that_fits(time: int, expected: tuple[int, int]) -> None:
    assert struct.unpack("<II", Encoder().folder(b"d", 0, time, 0)[16:24]) == expected


def test_encode_out_of_order_is_our_fault() -> None:
    encoder = Encoder()
    encoder.file(b"f", 0, 2, 0, 0)
    for step in (encoder.end, lambda: encoder.folder(b"d", 0, 0, 0), lambda: encoder.sent(b"abc")):
        with pytest.raises(LocalProtocolError):
            step()
    encoder.sent(b"ab")
    encoder.end()
    with pytest.raises(LocalProtocolError):
        encoder.end()


@pytest.mark.parametrize("name", [b"", b"a\0b", b"x" * limits.QFILE_MAX_PATH])
def test_encode_name_that_does_not_fit_is_our_fault(name: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        Encoder().file(name, 0, 0, 0, 0)


def test_decode_published_bytes() -> None:
    stream = header(b"d", FOLDER | 0o755) + header(b"d/f", FILE | 0o640, 3) + b"abc" + header(b"d/l", LINK | 0o777, 1)
    stream += b"f" + header(b"d", FOLDER | 0o750, atime_ns=7, mtime_ns=999999999) + END
    assert decode([stream]) == [
        Entry((b"d",), FOLDER | 0o755, atime=5 * S, mtime=6 * S),
        Entry((b"d", b"f"), FILE | 0o640, 3, atime=5 * S, mtime=6 * S),
        Data(b"abc"),
        Entry((b"d", b"l"), LINK | 0o777, atime=5 * S, mtime=6 * S, target=b"f"),
        Entry((b"d",), FOLDER | 0o750, atime=5 * S + 7, mtime=6 * S + 999999999),
        End(),
    ]


def test_decode_name_without_nul_taken() -> None:
    stream = HEADER.pack(1, FILE, 0, 0, 0, 0, 0) + b"f" + END
    assert decode([stream]) == [Entry((b"f",), FILE), End()]


def test_decode_size_of_folder_has_no_meaning() -> None:
    assert decode([header(b"d", FOLDER, 4096) + END]) == [Entry((b"d",), FOLDER, atime=5 * S, mtime=6 * S), End()]


def test_decode_end_with_other_fields_is_the_end() -> None:
    assert decode([HEADER.pack(0, 1, 2, 3, 4, 5, 6)]) == [End()]


def test_decode_nothing_after_the_end_is_looked_at() -> None:
    decoder = Decoder(Quota(), all_names=False)
    assert list(decoder.receive(END + b"rest")) == [End()]
    assert list(decoder.receive(b"more")) == []
    decoder.finish()
    assert decoder.crc == zlib.crc32(END)


# what is refused


@pytest.mark.parametrize("name", [b"../x", b"/x", b"a/../x", b"", b"a\0x", b"a//b", b"a/", b".", b"\xff", b"a\nb"])
def test_decode_path_that_may_not_be_refused(name: bytes) -> None:
    """MC-01, MC-05."""
    assert refusal(header(name, FILE)) == (errno.EILSEQ, name)
    assert refusal(header(b"ok", FOLDER) + header(name, FOLDER)) == (errno.EILSEQ, name)


def test_decode_known_folder_does_not_excuse_the_rest_of_a_path() -> None:
    """MC-01: the short way for many files in one folder."""
    known = header(b"a", FOLDER) + header(b"a/b", FILE)
    for name in (b"a/..", b"a/", b"a/.", b"a/\xff", b"a//c", b"b/../c"):
        assert refusal(known + header(name, FILE)) == (errno.EILSEQ, name)


def test_decode_odd_names_taken_when_asked_for() -> None:
    """MC-05: byte for byte."""
    events = decode([header(b"\xff\n\x1b", FILE) + END], all_names=True)
    assert events[0] == Entry((b"\xff\n\x1b",), FILE, atime=5 * S, mtime=6 * S)


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, 0, 0o170000])
def test_decode_special_file_refused(kind: int) -> None:
    """MC-04."""
    assert refusal(header(b"dev", kind | 0o600)) == (errno.EINVAL, b"dev")


@given(st.integers(0, (1 << 32) - 1).map(lambda bits: bits & ~0o170000), st.sampled_from([FOLDER, FILE]))
def test_decode_mode_reduced_to_plain_permissions(bits: int, kind: int) -> None:
    """MC-04: no set-uid, set-gid or sticky bit, nor anything above."""
    (entry, _) = decode([header(b"f", kind | bits) + END])
    assert isinstance(entry, Entry)
    assert entry.mode == kind | (bits & 0o777)


@pytest.mark.parametrize("target", [b"../x", b"/x", b"x/../.."])
def test_decode_link_that_leads_outside_refused_naming_target(target: bytes) -> None:
    """MC-02: the published answer names the target."""
    assert refusal(header(b"a/l", LINK, len(target)) + target) == (errno.ENOLINK, target)


def test_decode_link_at_the_top_refused() -> None:
    """MC-02."""
    assert refusal(header(b"l", LINK, 1) + b"x") == (errno.ENOLINK, b"x")


@pytest.mark.parametrize("field", ["atime_ns", "mtime_ns"])
def test_decode_too_many_nanoseconds_refused(field: str) -> None:
    assert refusal(header(b"f", FILE, **{field: S})) == (errno.EINVAL, b"f")


def test_decode_length_over_limit_refused_before_memory_is_taken() -> None:
    """MC-11."""
    decoder = Decoder(Quota(), all_names=True)
    tracemalloc.start()
    for head in (
        HEADER.pack(limits.QFILE_MAX_PATH + 1, FILE, 0, 0, 0, 0, 0),
        HEADER.pack(2, LINK, limits.QFILE_MAX_PATH + 1, 0, 0, 0, 0),
    ):
        with pytest.raises(StreamRefused) as raised:
            list(Decoder(Quota(), all_names=True).receive(head))
        assert (raised.value.code, raised.value.name) == (errno.ENAMETOOLONG, None)
    largest = HEADER.pack(limits.QFILE_MAX_PATH, FILE, 1 << 40, 0, 0, 0, 0) + b"a/" * 8191 + b"\0"
    for start in range(0, len(largest), 100):
        list(decoder.receive(largest[start : start + 100]) if start < 16000 else [])
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


def test_decode_quota_of_bytes_counts_files_and_targets() -> None:
    """MC-06: what is announced counts, before it comes."""
    quota = Quota(total=10)
    assert decode([header(b"a/f", FILE, 9) + bytes(9) + header(b"a/l", LINK, 1) + b"x" + END], quota)
    assert refusal(header(b"a/f", FILE, 11), quota) == (errno.EDQUOT, b"a/f")
    assert refusal(header(b"a/f", FILE, 10) + bytes(10) + header(b"a/l", LINK, 1) + b"x", quota)[0] == errno.EDQUOT
    assert refusal(header(b"a/f", FILE, (1 << 64) - 1)) == (errno.EDQUOT, b"a/f")


def test_decode_quota_of_entries_and_depth() -> None:
    """MC-06."""
    quota = Quota(entries=3, depth=2)
    assert decode([header(b"f", FILE) * 3 + END], quota)
    assert refusal(header(b"f", FILE) * 4, quota) == (errno.EDQUOT, b"f")
    assert refusal(header(b"a/b/c", FOLDER), quota) == (errno.EDQUOT, b"a/b/c")
    assert refusal(header(b"/".join([b"d"] * 65), FOLDER)) == (errno.EDQUOT, b"/".join([b"d"] * 65))


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"", (errno.EREMOTEIO, None)),
        (header(b"f", FILE), (errno.EREMOTEIO, b"f")),
        (END[:31], (errno.EREMOTEIO, None)),
        (header(b"f", FILE, 5) + b"abcd", (CUT_OFF, b"f")),
        (header(b"a/l", LINK, 5) + b"abcd", (CUT_OFF, None)),
        (header(b"f", FILE)[:33], (CUT_OFF, None)),
    ],
)
def test_decode_stream_that_ends_early_refused(stream: bytes, expected: tuple[int, bytes | None]) -> None:
    """MC-07."""
    assert refusal(stream) == expected


# properties

names = st.lists(st.sampled_from([b"a", b"bc", "ü".encode(), b"x" * 50]), min_size=1, max_size=4).map(b"/".join)
times = st.integers(0, (1 << 32) * S - 1)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    encoder = Encoder()
    pieces: list[bytes] = []
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 5))):
        name, mode, atime, mtime = draw(names), draw(st.integers(0, 0o777)), draw(times), draw(times)
        path = tuple(name.split(b"/"))
        kind = draw(st.sampled_from([FILE, FOLDER] + [LINK] * (len(path) > 1)))
        if kind == FILE:
            data = draw(st.binary(max_size=100))
            pieces += [encoder.file(name, mode, len(data), atime, mtime), data]
            encoder.sent(data)
            events.append(Entry(path, FILE | mode, len(data), atime=atime, mtime=mtime))
            events += [Data(data)] if data else []
        elif kind == FOLDER:
            pieces.append(encoder.folder(name, mode, atime, mtime))
            events.append(Entry(path, FOLDER | mode, atime=atime, mtime=mtime))
        else:
            pieces.append(encoder.link(name, b"t", atime, mtime))
            events.append(Entry(path, LINK | 0o777, atime=atime, mtime=mtime, target=b"t"))
    pieces.append(encoder.end())
    assert encoder.crc == zlib.crc32(b"".join(pieces))
    return b"".join(pieces), [*events, End()]


@given(streams(), st.lists(st.integers(0, 2000), max_size=20))
def test_round_trip_in_any_split(stream: tuple[bytes, list[Event]], cuts: list[int]) -> None:
    data, events = stream
    places = sorted({0, len(data), *[cut for cut in cuts if cut < len(data)]})
    assert decode([data[a:b] for a, b in itertools.pairwise(places)]) == events


@given(streams(), st.data())
def test_mutated_stream_raises_only_stream_refused(stream: tuple[bytes, list[Event]], data: st.DataObject) -> None:
    mutated = bytearray(stream[0])
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    del mutated[data.draw(st.integers(0, len(mutated))) :]
    decoder = Decoder(Quota(total=1 << 20), all_names=data.draw(st.booleans()))
    try:
        for _ in decoder.receive(mutated):
            pass
        decoder.finish()
    except StreamRefused as error:
        assert 0 < error.code <= CUT_OFF


# answers


def test_answer_published_bytes() -> None:
    assert qfile.encode_answer(Answer(17, 0xFFFFFFFF, b"d/f")) == struct.pack("<IIQI", 17, 0, 0xFFFFFFFF, 3) + b"d/f"


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), st.binary(max_size=300), st.integers(1, 30))
def test_answer_round_trip_in_any_split(code: int, crc: int, name: bytes, size: int) -> None:
    decoder = AnswerDecoder()
    data = qfile.encode_answer(Answer(code, crc, name))
    for start in range(0, len(data), size):
        assert not decoder.is_full
        decoder.receive(data[start : start + size])
    assert decoder.is_full
    assert decoder.finish() == Answer(code, crc, name)


def test_answer_of_old_receiver_without_name() -> None:
    decoder = AnswerDecoder()
    decoder.receive(struct.pack("<IIQ", 0, 0, 7))
    assert not decoder.is_full
    assert decoder.finish() == Answer(0, 7)


def test_answer_more_than_it_may_be_is_not_kept() -> None:
    """MC-10: a receiver cannot send anything but a status and, for people, a name."""
    decoder = AnswerDecoder()
    for _ in range(1000):
        decoder.receive(struct.pack("<IIQI", 0, 0, 7, 0xFFFFFFFF) * 1000)
    assert decoder.is_full
    answer = decoder.finish()
    assert (answer.code, answer.crc) == (0, 7)
    assert len(answer.name) == limits.QFILE_MAX_PATH


def test_answer_after_the_name_nothing_counts() -> None:
    """MC-10."""
    decoder = AnswerDecoder()
    decoder.receive(qfile.encode_answer(Answer(0, 7, b"f")) + b"secret")
    assert decoder.finish() == Answer(0, 7, b"f")


@given(st.binary(max_size=60))
def test_answer_any_bytes_raise_only_remote_error(data: bytes) -> None:
    decoder = AnswerDecoder()
    decoder.receive(data)
    try:
        decoder.finish()
    except RemoteProtocolError:
        assert len(data) < 16
