from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from insula_agent import files


def test_absent_file_reads_as_empty(tmp_path: Path) -> None:
    assert files.read(str(tmp_path / "absent")) == ""


@pytest.mark.parametrize("content", [b"", b"text\n", "Zürich".encode(), b"\xff\xfe no text \x80"])
def test_what_is_read_is_written_again_as_it_was(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "from").write_bytes(content)
    files.write(str(tmp_path / "to"), files.read(str(tmp_path / "from")))
    assert (tmp_path / "to").read_bytes() == content


@pytest.mark.parametrize("change", [files.write, files.change])
@pytest.mark.parametrize("text", ["", "short", "longer than what there was before"])
def test_file_is_changed_in_place(tmp_path: Path, text: str, change: Callable[[str, str], None]) -> None:
    path = tmp_path / "file"
    path.write_text("what there was")
    path.chmod(0o600)
    before = path.stat()
    change(str(path), text)
    assert path.read_text() == text
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)


def test_absent_file_is_made_by_a_change(tmp_path: Path) -> None:
    files.change(str(tmp_path / "new"), "text")
    assert (tmp_path / "new").read_text() == "text"


def test_file_of_the_kernel_is_read_whole(tmp_path: Path) -> None:
    """Their sizes are not known before."""
    assert files.read("/proc/self/status").startswith("Name:")
    big = "x" * (files.MAX_SIZE // 2)
    (tmp_path / "big").write_text(big)
    assert files.read(str(tmp_path / "big")) == big


def test_touch_leaves_what_is_there(tmp_path: Path) -> None:
    files.touch(str(tmp_path / "new"))
    assert (tmp_path / "new").read_bytes() == b""
    (tmp_path / "new").write_text("kept")
    files.touch(str(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "kept"
