"""The two sides of a program's data channel; what goes through them is tested with real programs
(test_agent_requests.py)."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from insula_agent.relay import Ends


@pytest.mark.parametrize(("has_pipes", "count"), [(True, 2), (False, 1)])
def test_ends_carry_both_ways_and_ours_never_block(*, has_pipes: bool, count: int) -> None:
    ends = Ends(has_pipes=has_pipes)
    try:
        assert len(ends.theirs) == count
        kind = stat.S_ISFIFO if has_pipes else stat.S_ISSOCK
        assert all(kind(os.fstat(fd).st_mode) for fd in ends.theirs)
        os.write(ends.sink, b"to the program")
        assert os.read(ends.theirs[0], 100) == b"to the program"
        os.write(ends.theirs[-1], b"from it")
        assert os.read(ends.source, 100) == b"from it"
        with pytest.raises(BlockingIOError):
            os.read(ends.source, 1)
    finally:
        ends.passed()
        os.close(ends.source)
        os.close(ends.sink)


def test_ends_without_descriptors_left_keep_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = os.pipe2

    def scarce(flags: int) -> tuple[int, int]:
        if made:
            raise OSError(errno.EMFILE, "too many open files")
        made.extend(make(flags))
        return made[0], made[1]

    monkeypatch.setattr(os, "pipe2", scarce)
    with pytest.raises(OSError, match="too many"):
        Ends(has_pipes=True)
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
