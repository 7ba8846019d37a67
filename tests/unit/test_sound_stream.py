"""A stream at the sound server, step by step: who may send what, and how much of it (no sockets)."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.sound import native
from insula.sound.native import Command, Decoder, Samples
from insula.sound.stream import Playback, Recording, Stream, StreamRefused, greeting
from insula_proto.sound import AHEAD, BLOCK, FRAME

CHANNEL = 7


class Server:
    """The other side; ``told`` is what the stream sent."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decoder = Decoder()
        self.told: list[Command | Samples] = self._decoder.receive(greeting(b"secret"))
        self.listen()

    def listen(self) -> list[Command | Samples]:
        new = self._decoder.receive(self._stream.take_for_server())
        self.told += new
        return new

    def asked(self) -> Command:
        found = self.told[-1]
        assert isinstance(found, Command)
        return found

    def answer(self, *values: native.Sent) -> None:
        self._stream.server_data(native.command(native.REPLY, self.asked().tag, *values))
        self.listen()

    def request(self, size: int, channel: int = CHANNEL) -> None:
        self._stream.server_data(native.command(native.REQUEST, native.NO_INDEX, channel, size))

    def heard(self) -> bytes:
        return b"".join(each.data for each in self.told if isinstance(each, Samples))


def begun(stream: Stream, missing: int = AHEAD * BLOCK) -> Server:
    server = Server(stream)
    server.answer(35)
    server.answer(3)
    server.answer(CHANNEL, 4, missing, 1, 2, 3, 4)
    return server


def test_steps_follow_one_another_and_the_stream_has_the_name_of_the_qube() -> None:
    """MC-18: the name comes from the host."""
    server = begun(Playback("work"))
    assert [cast("Command", each).number for each in server.told] == [
        native.AUTH, native.SET_CLIENT_NAME, native.CREATE_PLAYBACK_STREAM
    ]  # fmt: skip
    auth, client, create = (cast("Command", each) for each in server.told)
    assert auth.values == (native.VERSION, b"secret".ljust(native.COOKIE_SIZE, b"\0"))
    for command in (client, create):
        [properties] = [value for value in command.values if isinstance(value, dict)]
        assert properties["application.name"] == properties["media.name"] == b"work\0"


def test_requests_of_the_server_are_granted_in_blocks_and_nothing_before_the_first() -> None:
    stream = Playback("work")
    assert stream.room == 0
    begun(stream, missing=2 * BLOCK + 5)
    assert stream.take_for_qube() == b"\1\1"
    assert stream.room == 2 * BLOCK


@given(st.lists(st.one_of(st.integers(0, 3 * AHEAD * BLOCK), st.binary(max_size=2 * BLOCK)), max_size=20))
def test_mc14_what_is_open_and_kept_is_bounded_whatever_both_sides_do(steps: list[int | bytes]) -> None:
    stream = Playback("work")
    server = begun(stream, missing=0)
    granted = came = 0
    for step in steps:
        if isinstance(step, int):
            server.request(step)
        else:
            untrusted_data = step[: stream.room]
            stream.qube_data(untrusted_data)
            came += len(untrusted_data)
        granted += len(stream.take_for_qube()) * BLOCK
        assert 0 <= stream.room <= AHEAD * BLOCK
        assert came + stream.room == granted
        for each in server.listen():
            assert isinstance(each, Samples)
            assert each.channel == CHANNEL
            assert len(each.data) % FRAME == 0
    assert came - len(server.heard()) < FRAME


@given(st.binary(min_size=1, max_size=AHEAD * BLOCK), st.data())
def test_samples_arrive_as_they_were_in_whole_frames(untrusted_data: bytes, data: st.DataObject) -> None:
    stream = Playback("work")
    server = begun(stream)
    rest = untrusted_data
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        stream.qube_data(rest[:size])
        rest = rest[size:]
        server.listen()
    assert server.heard() == untrusted_data[: len(untrusted_data) // FRAME * FRAME]


def test_end_has_all_be_heard_first_and_grants_nothing_more() -> None:
    stream = Playback("work")
    server = begun(stream)
    stream.take_for_qube()
    stream.qube_data(b"\1\2\3\4")
    stream.qube_end()
    server.listen()
    assert server.asked().number == native.DRAIN_PLAYBACK_STREAM
    server.request(AHEAD * BLOCK)
    assert (stream.room, stream.take_for_qube(), stream.is_over) == (0, b"", False)
    server.answer()
    assert stream.is_over


def test_end_before_there_is_a_stream_is_the_end() -> None:
    stream = Playback("work")
    stream.qube_end()
    assert stream.is_over


def test_request_for_another_stream_grants_nothing() -> None:
    stream = Playback("work")
    begun(stream, missing=0).request(BLOCK, channel=CHANNEL + 1)
    assert stream.room == 0


@pytest.mark.parametrize("kind", [Playback, Recording])
def test_server_that_refuses_or_ends_it_is_the_end(kind: type[Stream]) -> None:
    for steps in range(3):
        stream = kind("work")
        server = Server(stream)
        for _ in range(steps):
            server.answer(1)
        with pytest.raises(StreamRefused, match="error 1"):
            stream.server_data(native.command(native.ERROR, server.asked().tag, 1))
    stream = kind("work")
    begun(stream)
    with pytest.raises(StreamRefused, match="ended"):
        stream.server_data(native.command(kind.killed, native.NO_INDEX, CHANNEL))


def test_recording_gives_what_is_granted_and_throws_the_rest_away() -> None:
    stream = Recording("work")
    begun(stream)
    assert stream.room > 0
    stream.server_data(native.samples(CHANNEL, b"early"))
    assert stream.take_for_qube() == b""
    stream.qube_data(b"??")
    stream.server_data(native.samples(CHANNEL, b"a" * BLOCK + b"b" * 3 * BLOCK))
    assert stream.take_for_qube() == b"a" * BLOCK + b"b" * BLOCK
    stream.server_data(native.samples(CHANNEL, b"late"))
    assert stream.take_for_qube() == b""


@given(st.binary(max_size=50), st.lists(st.binary(max_size=2 * BLOCK), max_size=10))
def test_mc14_recording_keeps_no_more_than_is_ahead(untrusted_grants: bytes, pieces: list[bytes]) -> None:
    stream = Recording("work")
    begun(stream)
    for piece in pieces:
        stream.qube_data(untrusted_grants[: stream.room])
        stream.server_data(native.samples(CHANNEL, piece))
        given_ = stream.take_for_qube()
        assert len(given_) <= AHEAD * BLOCK
        assert len(given_) % FRAME == 0
        assert piece.startswith(given_)
