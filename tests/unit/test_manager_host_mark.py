"""MC-40: the mark of this computer is random, kept, and nobody else's."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from insula.manager.host_mark import SEED_BYTES, SIDE, load_mark, mark_of


def test_mark_is_made_once_and_stays_in_a_file_of_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "host-mark"
    mark = load_mark(path)
    assert load_mark(path) == mark
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["host-mark"]


def test_marks_of_two_computers_differ(tmp_path: Path) -> None:
    marks = {load_mark(tmp_path / str(number) / "host-mark") for number in range(20)}
    assert len(marks) == 20


def test_two_programs_at_once_make_one_mark(tmp_path: Path) -> None:
    marks = []
    barrier = threading.Barrier(8)

    def load() -> None:
        barrier.wait()
        marks.append(load_mark(tmp_path / "host-mark"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(marks) == 8
    assert len(set(marks)) == 1


def test_picture_is_symmetric_and_depends_on_every_half_bit() -> None:
    empty = mark_of(bytes(SEED_BYTES))
    assert not any(map(any, empty.cells))
    full = mark_of(b"\xff" * SEED_BYTES)
    assert all(map(all, full.cells))
    mark = mark_of(bytes(range(SEED_BYTES)))
    assert len(mark.cells) == SIDE
    assert all(row == row[::-1] and len(row) == SIDE for row in mark.cells)


@pytest.mark.parametrize("content", ["", "zz" * SEED_BYTES, "00" * (SEED_BYTES + 1), "\xe9"])
def test_damaged_file_is_an_error_and_no_new_mark(tmp_path: Path, content: str) -> None:
    path = tmp_path / "host-mark"
    path.write_text(content)
    with pytest.raises(ValueError, match="does not hold a mark"):
        load_mark(path)
    assert path.read_text() == content
