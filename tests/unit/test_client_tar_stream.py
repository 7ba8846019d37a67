"""The tar codec: what it takes, that any cut of the stream is the same to it, and all that it refuses."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.client.errors import CopyFailed, CopyTooLarge, UnsafeStream
from insula.client.tar_stream import (
    MAX_DEPTH,
    MAX_TRAILER,
    Data,
    Entry,
    Event,
    Kind,
    Limits,
    TarDecoder,
    check_target,
    parse_path,
)
from insula.testing.tar_streams import BLOCK, END, LONG, STREAM, member

LIMITS = Limits(total_bytes=1 << 20, entries=1000)


def decode(stream: bytes, cut: int = 1 << 20, limits: Limits = LIMITS) -> list[Event]:
    decoder = TarDecoder(limits)
    events: list[Event] = []
    for start in range(0, len(stream), cut):
        events += decoder.receive(stream[start : start + cut])
    decoder.finish()
    return events


def joined(events: list[Event]) -> list[Event]:
    """With the data of each file in one piece."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, Data) and found and isinstance(found[-1], Data):
            found[-1] = Data(found[-1].data + event.data)
        else:
            found.append(event)
    return found


def test_entries_come_in_order_with_their_data() -> None:
    assert joined(decode(STREAM)) == [
        Entry((b"top",), Kind.FOLDER),
        Entry((b"top", b"a"), Kind.FILE, size=1000),
        Data(b"x" * 1000),
        Entry((b"top", b"run"), Kind.FILE, executable=True, size=512),
        Data(b"x" * 512),
        Entry((b"top", b"empty"), Kind.FILE),
        Entry((b"top", b"in"), Kind.FOLDER),
        Entry((b"top", b"in", b"link"), Kind.LINK, target=b"../a"),
        Entry((b"top", b"n" * 200), Kind.FOLDER),
        Entry((b"top", b"n" * 200, b"n" * 200), Kind.FOLDER),
        Entry(tuple(LONG.encode().split(b"/")), Kind.FILE, size=3),
        Data(b"xxx"),
    ]


@pytest.mark.parametrize("cut", [1, 7, 511, 513, 4096])
def test_any_cut_of_the_stream_gives_the_same(cut: int) -> None:
    assert joined(decode(STREAM, cut)) == joined(decode(STREAM))


def test_stream_of_gnu_tar_as_it_is_asked_for_is_understood(tmp_path: Path) -> None:
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "sub" / ("long" * 40)).write_bytes(b"one")
    (tmp_path / "top" / "twin").hardlink_to(tmp_path / "top" / "sub" / ("long" * 40))
    (tmp_path / "top" / "link").symlink_to("sub")
    command = ["tar", "--create", "--format=gnu", "--hard-dereference", "--owner=0", "--group=0", "--numeric-owner"]
    done = subprocess.run([*command, "-C", tmp_path, "--", "top"], stdout=subprocess.PIPE, check=True)
    kinds = {e.path[-1]: e.kind for e in decode(done.stdout) if isinstance(e, Entry)}
    assert kinds == {
        b"top": Kind.FOLDER, b"sub": Kind.FOLDER, b"long" * 40: Kind.FILE, b"twin": Kind.FILE, b"link": Kind.LINK,
    }  # fmt: skip


# paths (MC-01)


@pytest.mark.parametrize(
    "path",
    [b"", b"/", b"/etc/passwd", b"..", b"a/../b", b"a/..", b".", b"./a", b"a//b", b"a/", b"a\0b", b"x" * 256,
     b"/".join([b"d"] * (MAX_DEPTH + 1)), b"y/" * 2100],
)  # fmt: skip
def test_path_that_may_not_be_is_refused(path: bytes) -> None:
    with pytest.raises(UnsafeStream):
        parse_path(path)


def test_odd_names_are_kept_byte_for_byte() -> None:
    """MC-05."""
    assert parse_path(b"a\x1b[2J\xff/\xe2\x80\xae..x") == (b"a\x1b[2J\xff", b"\xe2\x80\xae..x")


@given(st.binary(max_size=40))
def test_path_taken_never_leads_outside(path: bytes) -> None:
    try:
        names = parse_path(path)
    except UnsafeStream:
        return
    assert b"/".join(names) == path
    assert all(names)
    assert not {b".", b".."} & set(names)


# links


@pytest.mark.parametrize(
    ("link", "target"),
    [
        (b"top/l", b"a"), (b"top/l", b"a/b"), (b"top/in/l", b"../a"), (b"top/x/y/l", b"../../a/b"), (b"top/l", b"./a"),
        (b"top/in/l", b".."), (b"top/l", b"."),
    ],
)  # fmt: skip
def test_link_that_stays_inside_is_taken(link: bytes, target: bytes) -> None:
    check_target(parse_path(link), target)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        (b"top/l", b"/etc/passwd"), (b"top/l", b".."), (b"top/l", b"../x"), (b"top/in/l", b"../.."), (b"l", b"a/../.."),
        (b"top/in/l", b"a/../../.."), (b"top/in/l", b"a/.."), (b"top/l", b""), (b"top/l", b"a//b"), (b"top/l", b"a\0"),
        (b"top/l", b"./.."), (b"top/l", b"x" * 300), (b"top/l", b"x/" * 3000),
    ],
)  # fmt: skip
def test_link_that_may_lead_elsewhere_is_refused(link: bytes, target: bytes) -> None:
    with pytest.raises(UnsafeStream):
        check_target(parse_path(link), target)


# the rest of what is refused (MC-04, MC-06, MC-07)


def patched(header: bytes, at: int, field: bytes) -> bytes:
    """The header with another field and the checksum that fits."""
    block = bytearray(header)
    block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


PLAIN = member("top")


@pytest.mark.parametrize(
    "stream",
    [
        member("top", tarfile.LNKTYPE, target="/etc/passwd"),
        member("top", tarfile.CHRTYPE),
        member("top", tarfile.BLKTYPE),
        member("top", tarfile.FIFOTYPE),
        member("top", tarfile.CONTTYPE),
        member("top", tarfile.GNUTYPE_SPARSE),
        member("top", tarfile.XHDTYPE, size=20),
        member("top", tarfile.XGLTYPE, size=20),
        member("top", tarfile.SOLARIS_XHDTYPE, size=20),
        patched(member("top", tarfile.DIRTYPE), 124, b"00000001000\0"),
        patched(PLAIN, 124, b"\x80" + bytes(10) + b"\x01"),
        patched(PLAIN, 124, b"-0000000001\0"),
        patched(PLAIN, 124, b"0x000000001\0"),
        patched(PLAIN, 124, bytes(12)),
        patched(PLAIN, 257, b"ustar\x0000"),
        PLAIN[:148] + b"0000000\0" + PLAIN[156:],
        bytes(BLOCK) + PLAIN,
        END + PLAIN,
        END + bytes(MAX_TRAILER + 1),
        patched(member("././@LongLink", tarfile.GNUTYPE_LONGNAME), 124, b"77777777777\0"),
        patched(member("././@LongLink", tarfile.GNUTYPE_LONGNAME), 124, b"00000000000\0"),
        member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=3) * 2,
        member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=3) + END,
        b"garbage" * 200,
    ],
)
def test_what_no_copy_needs_is_refused(stream: bytes) -> None:
    with pytest.raises(UnsafeStream):
        decode(stream + END)


@pytest.mark.parametrize("length", [0, 100, BLOCK, BLOCK + 10, 3 * BLOCK, len(STREAM) - 8 * BLOCK])
def test_stream_that_ends_early_is_no_success(length: int) -> None:
    with pytest.raises(UnsafeStream, match="ended early"):
        decode(STREAM[:length])


def test_more_files_than_allowed_are_refused_at_the_first_too_many() -> None:
    with pytest.raises(CopyTooLarge, match="more than 3 files"):
        decode(member("top") * 4 + END, limits=Limits(1 << 20, 3))


def test_more_bytes_than_allowed_are_refused_when_announced() -> None:
    header = patched(PLAIN, 124, b"77777777777\0")
    with pytest.raises(CopyTooLarge, match="more than 1000 bytes"):
        decode(header, limits=Limits(1000, 3))
    with pytest.raises(CopyTooLarge):
        decode(member("top", size=600) * 2, limits=Limits(1000, 3))


def test_long_name_is_all_that_is_ever_buffered() -> None:
    decoder = TarDecoder(Limits(1 << 40, 10))
    list(decoder.receive(patched(PLAIN, 124, b"77777777777\0")))
    for _ in range(100):
        assert sum(len(e.data) for e in decoder.receive(bytes(65536)) if isinstance(e, Data)) == 65536
    assert len(decoder._buffer) == 0


def test_damaged_streams_raise_only_what_is_promised() -> None:
    """Bytes changed, dropped, doubled: understood or refused, nothing else."""
    chance = random.Random(3)
    for _ in range(2000):
        stream = bytearray(STREAM)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(stream))
            match chance.randrange(3):
                case 0:
                    stream[at] = chance.randrange(256)
                case 1:
                    del stream[at : at + chance.randint(1, 700)]
                case _:
                    stream[at:at] = stream[at : at + chance.randint(1, 700)]
        with contextlib.suppress(CopyFailed):
            decode(bytes(stream), chance.choice([100, 512, 70000]))


def test_stream_of_python_is_understood() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert decode(buffer.getvalue()) == [Entry((b"x",), Kind.FILE, size=3), Data(b"abc")]
