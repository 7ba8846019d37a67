"""What a hostile stream can do to this machine's folders: nothing."""

from __future__ import annotations

import contextlib
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.client.errors import CopyFailed, CopyTooLarge, UnsafeStream
from insula.client.receive import Reception
from insula.client.tar_stream import Limits
from insula.testing.tar_streams import END, FOLDER, STREAM, member

LIMITS = Limits(total_bytes=1 << 20, entries=1000)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a copy goes; around it there is a canary, and nothing is left but what the test says."""
    (tmp_path / "canary").write_bytes(b"alive")
    inner = tmp_path / "inner"
    inner.mkdir()
    yield inner
    assert (tmp_path / "canary").read_bytes() == b"alive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary", "inner"]
    assert {path.name for path in inner.iterdir()} <= {"got", "other"}


def copy(folder: Path, stream: bytes, limits: Limits = LIMITS, name: bytes = b"top") -> Path:
    """As it is done with a qube: one writes a pipe, another reads it."""
    read_fd, write_fd = os.pipe()
    target = folder / "got"

    def send() -> None:
        left = memoryview(stream)
        with contextlib.suppress(BrokenPipeError):
            while left:
                left = left[os.write(write_fd, left) :]
        os.close(write_fd)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with Reception(target, name) as reception:
            reception.read(read_fd, limits)
            reception.keep()
    finally:
        os.close(read_fd)
        sender.join()
    return target


def test_folder_arrives_whole(folder: Path) -> None:
    got = copy(folder, STREAM)
    assert (got / "a").read_bytes() == b"x" * 1000
    assert (got / "in" / "link").readlink() == Path("../a")
    assert (got / "in" / "link").read_bytes() == b"x" * 1000
    assert (got / "empty").stat().st_size == 0


def test_of_modes_only_executable_is_kept(folder: Path) -> None:
    """MC-04."""
    got = copy(folder, STREAM)
    mask = os.umask(0)
    os.umask(mask)
    assert (got / "run").stat().st_mode & 0o7777 == 0o755 & ~mask
    assert (got / "a").stat().st_mode & 0o7777 == 0o644 & ~mask
    assert got.stat().st_mode & 0o7777 == 0o755 & ~mask


def test_file_arrives_under_the_name_that_was_chosen(folder: Path) -> None:
    got = copy(folder, member("top", size=700) + END)
    assert got.read_bytes() == b"x" * 700
    assert got.stat().st_nlink == 1


@pytest.mark.parametrize(
    "stream",
    [
        FOLDER + member("top/d", tarfile.SYMTYPE, target="in") + member("top/d/x", size=5),
        FOLDER + member("top/in/", tarfile.DIRTYPE) + member("top/d", tarfile.SYMTYPE, target="in")
        + member("top/d/x", size=5),
        FOLDER + member("top/l", tarfile.SYMTYPE, target="../../canary") + member("top/l", size=5),
        FOLDER + member("top/a", size=5) + member("top/a", size=6),
        FOLDER + member("top/a", size=5) + member("top/a/b", size=6),
        FOLDER + member("top/a", size=5) + member("top/a", tarfile.SYMTYPE, target="b"),
        FOLDER + FOLDER,
        member("top/a", size=5),
        member("other", size=5),
        member("top", size=5) + member("other", size=5),
        FOLDER + member("canary", size=5),
        FOLDER + member("top/../../canary", size=5),
        FOLDER + member("/etc/x", size=5),
        FOLDER + member("top/null", tarfile.CHRTYPE),
        b"",
    ],
)  # fmt: skip
def test_stream_that_reaches_elsewhere_is_refused_and_leaves_nothing(folder: Path, stream: bytes) -> None:
    """MC-01, MC-02, MC-04: the fixture looks for what was left and for the canary."""
    with pytest.raises(UnsafeStream):
        copy(folder, stream + END)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("link", [b"../canary", b"/etc", b"in"], ids=str)
def test_link_instead_of_the_thing_itself_is_refused(folder: Path, link: bytes) -> None:
    with pytest.raises(CopyFailed):
        copy(folder, member("top", tarfile.SYMTYPE, target=link.decode()) + END)
    assert list(folder.iterdir()) == []


def test_stream_that_breaks_off_leaves_nothing(folder: Path) -> None:
    """MC-07."""
    with pytest.raises(UnsafeStream, match="ended early"):
        copy(folder, STREAM[: 3 * 512])
    assert list(folder.iterdir()) == []


def test_endless_stream_ends_at_the_limit_and_leaves_nothing(folder: Path) -> None:
    """MC-06, MC-08: neither bytes nor files without end."""
    with pytest.raises(CopyTooLarge):
        copy(folder, FOLDER + b"".join(member(f"top/{n}") for n in range(2000)) + END)
    with pytest.raises(CopyTooLarge):
        copy(folder, FOLDER + member("top/x", size=4000) * 400 + END, Limits(3000, 1000))
    assert list(folder.iterdir()) == []


def test_what_is_there_is_never_replaced(folder: Path) -> None:
    """MC-09."""
    (folder / "got").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        copy(folder, STREAM)
    assert (folder / "got").read_bytes() == b"mine"
    (folder / "got").unlink()
    (folder / "got").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        copy(folder, STREAM)


@pytest.mark.parametrize("stream", [STREAM, member("top", size=3) + END])
def test_target_that_appears_meanwhile_is_not_replaced(folder: Path, stream: bytes) -> None:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, stream)
    os.close(write_fd)
    with Reception(folder / "got", b"top") as reception:
        reception.read(read_fd, LIMITS)
        (folder / "got").write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            reception.keep()
    os.close(read_fd)
    assert (folder / "got").read_bytes() == b"mine"


def test_folder_moved_while_it_is_written_to_is_still_the_one_written_to(folder: Path) -> None:
    """MC-03: going by open folders, a folder that was swapped for a link is not entered."""
    outside = folder / "other"
    outside.mkdir()
    read_fd, write_fd = os.pipe()
    with Reception(folder / "got", b"top") as reception:
        [temporary] = folder.glob(".insula-*")
        reading = threading.Thread(target=_read_quietly, args=(reception, read_fd))
        reading.start()
        os.write(write_fd, FOLDER + member("top/in/", tarfile.DIRTYPE))
        while not (temporary / "received" / "in").exists():
            os.sched_yield()
        (temporary / "received" / "in").rename(temporary / "moved")
        (temporary / "received" / "in").symlink_to(outside)
        os.write(write_fd, member("top/in/x", size=5) + END)
        os.close(write_fd)
        reading.join()
    os.close(read_fd)
    assert list(outside.iterdir()) == []


def _read_quietly(reception: Reception, fd: int) -> None:
    with pytest.raises(UnsafeStream):
        reception.read(fd, LIMITS)
