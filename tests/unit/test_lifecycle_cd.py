"""Images of CDs: looked at from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.lifecycle.cd import cd_image
from insula.model.block import BlockLayer, BlockSource, LayerFormat
from insula.model.errors import QubesException


def test_file_of_whole_sectors_is_a_cd_that_is_only_read_and_taken_as_it_is(tmp_path: Path) -> None:
    """MC-65: whatever it says of itself, it is raw."""
    image = tmp_path / "image.iso"
    image.write_bytes(b"QFI\xfb" + bytes(2044))
    assert cd_image(image) == BlockSource((BlockLayer(image, LayerFormat.RAW),), 2048, writable=False)


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_file_that_can_be_none_is_refused(tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "image.iso"
    image.write_bytes(content)
    with pytest.raises(QubesException, match="no image of a CD"):
        cd_image(image)


def test_folder_fifo_and_what_is_not_there_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "nothing"):
        with pytest.raises(QubesException):
            cd_image(path)
    with pytest.raises(QubesException, match="begins with a slash"):
        cd_image(Path("image.iso"))
