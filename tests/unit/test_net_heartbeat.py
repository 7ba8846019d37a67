"""Signs of life in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.net.heartbeat import SIZE, beat, silence_s


def test_silence_counts_from_the_last_beat(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    with path.open("wb+", buffering=0) as file:
        for _ in range(2):
            beat(file.fileno())
    assert path.stat().st_size == SIZE
    silence = silence_s(path)
    assert silence is not None
    assert 0 <= silence < 10


@pytest.mark.parametrize("content", [None, b"", b"12", b"x" * SIZE, b"\xff" * SIZE])
def test_file_that_nobody_wrote_tells_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "beat"
    if content is not None:
        path.write_bytes(content)
    assert silence_s(path) is None
