from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from insula.model.block import MIB
from insula.storage import files
from insula.storage.pool import NoSpace, StorageError


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, StorageError), (errno.EMLINK, StorageError)],
)
def test_os_error_becomes_storage_error_that_says_what_was_done(code: int, expected: type[StorageError]) -> None:
    with pytest.raises(expected, match="painting") as caught, files.storage_errors("painting"):
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, OSError)


def test_new_file_is_private_and_gone_if_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.new_file(path):
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError), files.new_file(path):
        raise AssertionError("not reached")
    assert path.exists(), "somebody else's file stays"
    path.unlink()
    with pytest.raises(KeyError), files.new_file(path):
        raise KeyError
    assert not path.exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="Too many levels"):
        files.open_file(tmp_path / "link")
    with pytest.raises(FileExistsError):
        files.create_file(tmp_path / "link")


def test_replaced_file_has_new_content_and_no_rest_of_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "record"
    (tmp_path / "record.new").write_text("half")
    files.replace_file(path, b"one")
    files.replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_removed_tree_takes_links_but_not_their_targets(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "link").symlink_to(outside)
    (tree / "file").write_text("x")
    files.remove_tree(tree)
    files.remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").exists()


pieces = st.lists(st.tuples(st.sampled_from([b"\0", b"a", b"\0\0b"]), st.integers(0, 90_000)), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces)
def test_sparse_writer_stores_any_stream_in_any_pieces(tmp_path: Path, parts: list[tuple[bytes, int]]) -> None:
    path = tmp_path / files.unique_name()
    stream = [pattern * count for pattern, count in parts]
    with files.new_file(path) as fd:
        writer = files.SparseWriter(fd)
        for piece in stream:
            writer.write(piece)
        writer.finish()
    assert path.read_bytes() == b"".join(stream)


def test_sparse_writer_and_copy_leave_holes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with files.new_file(one) as fd:
        writer = files.SparseWriter(fd)
        writer.write(bytes(8 * MIB) + b"x" * 4096 + bytes(8 * MIB))
        writer.finish()
    files.copy_sparse(one, two)
    for path in (one, two):
        assert files.allocated(path) < MIB
        assert path.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_copy_between_file_systems_is_the_same_and_as_sparse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(code, os.strerror(code))

    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for position in (0, 4 * MIB, 9 * MIB):
            file.seek(position)
            file.write(os.urandom(100_000))
    monkeypatch.setattr(os, "copy_file_range", refuse)
    files.copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert files.allocated(target) < MIB


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV])
def test_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_args: object, **_keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    monkeypatch.setattr(os, "link", refuse)
    files.link_or_copy(source, target)
    assert target.read_bytes() == b"content"
    assert target.stat().st_ino != source.stat().st_ino


def test_allocated_of_absent_file_is_zero(tmp_path: Path) -> None:
    assert files.allocated(tmp_path / "absent") == 0


def test_space_check_keeps_the_reserve(tmp_path: Path) -> None:
    free = files.Space(tmp_path, 0).free()
    files.Space(tmp_path, reserve=free // 2).check(free // 4, "doing")
    with pytest.raises(NoSpace, match="doing: needs"):
        files.Space(tmp_path, reserve=free // 2).check(free, "doing")


def test_default_reserve_is_a_share_of_large_disks(tmp_path: Path) -> None:
    space = files.Space(tmp_path)
    assert space.kept_free() == max(512 * MIB, int(space.total() * 0.02))
