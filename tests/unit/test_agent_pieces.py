"""What was written of a command's input is taken off its queue."""

from __future__ import annotations

import pytest

from insula_agent.pieces import drop


@pytest.mark.parametrize("count", range(10))
def test_drop_takes_off_exactly_what_was_written(count: int) -> None:
    pieces: list[bytes | memoryview] = [b"abc", memoryview(b"de"), b"fghi"]
    drop(pieces, count)
    assert b"".join(pieces) == b"abcdefghi"[count:]
    assert all(pieces)
