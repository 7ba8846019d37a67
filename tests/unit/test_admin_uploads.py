"""Files between ImportBegin and ImportEnd."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.admin.uploads import MAX_UPLOADS, Uploads
from insula.model.errors import QubesException, QubesVMInUseError
from insula.model.names import QubeName

WORK = QubeName("work")


def test_leftovers_of_an_earlier_daemon_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "old").touch()
    with Uploads(folder):
        assert list(folder.iterdir()) == []
    assert not folder.exists()


async def test_file_has_its_size_at_once_and_takes_no_space(tmp_path: Path) -> None:
    with Uploads(tmp_path / "uploads") as uploads:
        data = uploads.begin(WORK, "private", 1024**4)
        status = data.path.stat()
        assert (status.st_size, status.st_blocks, status.st_mode & 0o777) == (1024**4, 0, 0o600)


async def test_content_is_read_back_whole(tmp_path: Path) -> None:
    with Uploads(tmp_path / "uploads") as uploads:
        uploads.begin(WORK, "private", 9_000_000).path.write_bytes(b"x" * 9_000_000)
        data = uploads.end(WORK, "private")
        assert b"".join([chunk async for chunk in data.chunks()]) == b"x" * 9_000_000
        uploads.discard(WORK, "private")
        assert not data.path.exists()


async def test_one_upload_a_volume_and_a_limit_for_all(tmp_path: Path) -> None:
    with Uploads(tmp_path / "uploads") as uploads:
        for number in range(MAX_UPLOADS):
            uploads.begin(WORK, f"v{number}", 512)
        with pytest.raises(QubesVMInUseError):
            uploads.begin(WORK, "v0", 512)
        with pytest.raises(QubesException, match="already"):
            uploads.begin(WORK, "private", 512)
        uploads.discard(WORK, "v0")
        uploads.begin(WORK, "private", 512)


def test_end_without_begin_is_refused(tmp_path: Path) -> None:
    with Uploads(tmp_path / "uploads") as uploads, pytest.raises(QubesException, match="begun"):
        uploads.end(WORK, "private")
