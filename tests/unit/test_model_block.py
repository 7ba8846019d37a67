from __future__ import annotations

import base64
from pathlib import Path

from insula.model.block import KEY_SIZE, MIB, BlockLayer, BlockSource, LayerFormat, new_key


def test_keys_are_different_text_of_the_stated_size_with_at_least_128_random_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert len(key) == KEY_SIZE
        assert key.isascii()
        assert len(base64.urlsafe_b64decode(key)) >= 16


def test_key_of_a_source_is_neither_shown_nor_in_what_is_written_down() -> None:
    key = new_key()
    source = BlockSource((BlockLayer(Path("/disk"), LayerFormat.QCOW2),), MIB, writable=True, key=key)
    assert key.decode() not in repr(source)
    assert source.without_key().key is None
    assert source.without_key().layers == source.layers
