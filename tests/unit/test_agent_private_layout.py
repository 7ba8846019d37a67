"""The first start of a private disk."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from insula_agent import private_layout
from insula_agent.private_layout import LayoutError, copy_into, lay_out


@pytest.fixture
def rw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private disk as it is delivered: a file system with nothing but lost+found."""
    skeleton, local, rw = tmp_path / "skel", tmp_path / "local", tmp_path / "rw"
    skeleton.mkdir()
    (skeleton / ".profile").write_text("# shell")
    (local / "bin").mkdir(parents=True)
    (rw / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(private_layout, "SKELETON", str(skeleton))
    monkeypatch.setattr(private_layout, "LOCAL_ORIGIN", str(local))
    return rw


def me() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("is_kept", [False, True])
def test_empty_disk_gets_configuration_local_and_home(rw: Path, *, is_kept: bool) -> None:
    lay_out(me(), str(rw), is_kept=is_kept)
    assert names(rw) == {"lost+found", "config", "usrlocal", "home"}
    assert names(rw / "config") == {"rc.local", "qubes-firewall-user-script", "suspend-module-blacklist"}
    assert (rw / "config" / "rc.local").stat().st_mode & 0o7777 == 0o755
    assert names(rw / "usrlocal") == {"bin"}
    assert names(rw / "home") == {me()}
    assert (rw / "home" / me()).stat().st_mode & 0o7777 == 0o700
    assert (rw / "home" / me() / ".profile").read_text() == "# shell"


def test_disk_that_is_laid_out_is_left_alone(rw: Path) -> None:
    lay_out(me(), str(rw))
    (rw / "config" / "rc.local").unlink()
    (rw / "home" / me() / ".profile").write_text("mine")
    lay_out(me(), str(rw))
    assert not (rw / "config" / "rc.local").exists()
    assert (rw / "home" / me() / ".profile").read_text() == "mine"


def test_what_an_interrupted_start_left_is_made_anew(rw: Path) -> None:
    (rw / ".config.new").mkdir()
    (rw / ".config.new" / "half").touch()
    (rw / "home").mkdir()
    (rw / "home" / f".{me()}.new").mkdir()
    lay_out(me(), str(rw))
    assert "half" not in names(rw / "config")
    assert names(rw) == {"lost+found", "config", "usrlocal", "home"}
    assert names(rw / "home") == {me()}


def test_user_whom_the_template_lacks_is_an_error(rw: Path) -> None:
    with pytest.raises(LayoutError, match="no user"):
        lay_out("nobody-of-that-name", str(rw))


def test_copy_has_modes_and_links(tmp_path: Path) -> None:
    source, target = tmp_path / "skel", tmp_path / "home"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "script").write_text("#!/bin/sh")
    (source / "folder" / "script").chmod(0o750)
    (source / "folder").chmod(0o711)
    (source / ".link").symlink_to("/nowhere")
    source.chmod(0o700)
    os.mkfifo(source / "pipe")
    target.mkdir()
    copy_into(str(source), str(target), (os.getuid(), os.getgid()))
    assert names(target) == {".link", "folder"}
    assert (target / ".link").readlink() == Path("/nowhere")
    assert target.stat().st_mode & 0o7777 == 0o700
    assert (target / "folder").stat().st_mode & 0o7777 == 0o711
    assert (target / "folder" / "script").stat().st_mode & 0o7777 == 0o750
    assert (target / "folder" / "script").read_text() == "#!/bin/sh"
