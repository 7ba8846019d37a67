from __future__ import annotations

import errno
from pathlib import Path

import pytest

from insula_agent import syscalls


def test_failing_call_is_an_error_with_the_reason(tmp_path: Path) -> None:
    syscalls.load()
    with pytest.raises(OSError, match="swapon") as caught:
        syscalls.call("swapon", str(tmp_path / "absent").encode(), 0)
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)


def test_what_is_bound_already_is_not_bound_again(tmp_path: Path) -> None:
    """An agent that was restarted; a call of mount(2) would fail here, or (as root) change the machine."""
    folder = tmp_path / "home"
    folder.mkdir()
    same = tmp_path / "shown"
    same.symlink_to(folder)
    syscalls.bind(str(folder), str(same), syscalls.MS_NOSUID)


def test_file_system_is_synced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    syscalls.sync_file_system(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        syscalls.sync_file_system(str(tmp_path / "absent"))


def test_file_that_is_no_block_device_has_no_buffers(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="ioctl"):
        syscalls.forget_buffers(str(tmp_path / "file"))
