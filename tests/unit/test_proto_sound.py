"""Grants of samples: what they add up to, and where they end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula_proto import sound
from insula_proto.sound import AHEAD, BLOCK, Grants


def test_block_is_whole_frames_and_what_is_ahead_is_less_than_a_fifth_of_a_second() -> None:
    assert BLOCK % sound.FRAME == 0
    assert BLOCK / sound.FRAME / sound.RATE == sound.BLOCK_MS / 1000
    assert AHEAD * BLOCK < 65536, "a pipe must take all that can be granted"
    assert sound.AHEAD_S < 0.2


@given(st.lists(st.binary(max_size=3 * AHEAD)))
def test_room_is_what_was_granted_and_never_more_than_is_ahead_whatever_the_bytes(pieces: list[bytes]) -> None:
    grants, expected = Grants(), 0
    for piece in pieces:
        grants.receive(piece)
        expected = min(expected + len(piece) * BLOCK, AHEAD * BLOCK)
        assert grants.room == expected
        grants.sent(expected // 2)
        expected -= expected // 2
