"""MC-103: console output of a guest is bounded and harmless to show."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.hal.qemu.console import LOG_NAME, OLD_LOG_NAME, READ_SIZE, ConsoleLog, ConsoleReader, printable

LIMIT = 100
WAIT_S = 120.0


@given(st.binary())
def test_any_output_becomes_printable_ascii_of_no_more_bytes(untrusted_output: bytes) -> None:
    shown = printable(untrusted_output)
    assert all(byte in b"\t\n" or 0x20 <= byte < 0x7F for byte in shown)
    assert len(shown) == len(untrusted_output) - untrusted_output.count(b"\r")


@given(st.binary(), st.binary())
def test_output_split_anywhere_becomes_the_same(first: bytes, second: bytes) -> None:
    assert printable(first) + printable(second) == printable(first + second)


def test_escape_sequences_are_made_harmless_and_text_is_kept() -> None:
    assert printable(b"\x1b[2Jroot\x07 login:\r\n\xc2\x9b") == b"?[2Jroot? login:\n??"


def test_log_keeps_the_newest_part_within_two_files(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path, part_limit=LIMIT)
    log.open(fresh=True)
    everything = bytes(range(0x20, 0x7F)) * 20
    for start in range(0, len(everything), 7):
        log.write(everything[start : start + 7])
    log.close()
    parts = (tmp_path / OLD_LOG_NAME).read_bytes(), (tmp_path / LOG_NAME).read_bytes()
    assert len(parts[0]) == LIMIT
    assert 0 < len(parts[1]) <= LIMIT
    assert everything.endswith(b"".join(parts))


def test_one_write_larger_than_both_files_stays_within_them(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path, part_limit=LIMIT)
    log.open(fresh=True)
    log.write(b"a" * 10 * LIMIT + b"end")
    log.close()
    assert (tmp_path / LOG_NAME).read_bytes() == b"end"
    assert (tmp_path / OLD_LOG_NAME).stat().st_size == LIMIT


def test_fresh_log_keeps_the_last_machines_output_as_old_part(tmp_path: Path) -> None:
    for text in (b"first", b"second"):
        log = ConsoleLog(tmp_path)
        log.open(fresh=True)
        log.write(text)
        log.close()
    assert (tmp_path / OLD_LOG_NAME).read_bytes() == b"first"
    assert (tmp_path / LOG_NAME).read_bytes() == b"second"


def test_continued_log_is_appended_to_and_its_size_counts(tmp_path: Path) -> None:
    for _ in range(3):
        log = ConsoleLog(tmp_path, part_limit=LIMIT)
        log.open(fresh=False)
        log.write(b"x" * 40)
        log.close()
    assert (tmp_path / OLD_LOG_NAME).stat().st_size == LIMIT
    assert (tmp_path / LOG_NAME).stat().st_size == 20


def test_link_in_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    (tmp_path / LOG_NAME).symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        ConsoleLog(tmp_path).open(fresh=False)


@pytest.fixture
async def reader(tmp_path: Path) -> tuple[ConsoleReader, socket.socket, Path]:
    client, server = socket.socketpair()
    client.setblocking(False)
    log = ConsoleLog(tmp_path)
    log.open(fresh=True)
    return ConsoleReader(log, client), server, tmp_path / LOG_NAME


async def test_reader_copies_until_the_end_and_closes(reader: tuple[ConsoleReader, socket.socket, Path]) -> None:
    copier, server, path = reader
    copier.start()
    server.sendall(b"hello\n")
    server.close()
    async with asyncio.timeout(WAIT_S):
        while not copier.is_closed:
            await asyncio.sleep(0)
    assert path.read_bytes() == b"hello\n"


async def test_reader_takes_one_portion_and_rests(reader: tuple[ConsoleReader, socket.socket, Path]) -> None:
    copier, server, path = reader
    with server:
        server.sendall(b"x" * 2 * READ_SIZE)
        copier.start()
        for _ in range(10):
            await asyncio.sleep(0)
        assert path.stat().st_size == READ_SIZE
        copier.close()


async def test_finish_reads_what_was_left(reader: tuple[ConsoleReader, socket.socket, Path]) -> None:
    copier, server, path = reader
    server.sendall(b"x" * 3 * READ_SIZE + b"panic")
    server.close()
    copier.finish()
    copier.finish()
    assert path.read_bytes().endswith(b"panic")
    assert copier.is_closed
