"""The native protocol of sound servers: what we say is understood in any pieces, and what is none is refused."""

from __future__ import annotations

import struct
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.sound import native
from insula.sound.native import Command, Decoder, Long, Positions, Samples, Sent, Spec, Volume
from insula_proto.errors import RemoteProtocolError

TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
NUMBERS = st.integers(0, 0xFFFFFFFF)
VALUES: st.SearchStrategy[Sent] = st.one_of(
    NUMBERS,
    TEXTS,
    st.booleans(),
    st.none(),
    st.builds(Spec, st.integers(0, 255), NUMBERS),
    st.builds(Positions, st.lists(st.integers(0, 255), max_size=8).map(tuple)),
    st.builds(Volume, st.lists(NUMBERS, max_size=8).map(tuple)),
    st.builds(Long, st.binary(max_size=40)),
    st.dictionaries(TEXTS, TEXTS, max_size=3),
)
PACKETS = st.one_of(
    st.builds(lambda number, tag, values: native.command(number, tag, *values), NUMBERS, NUMBERS, st.lists(VALUES)),
    st.builds(native.samples, st.integers(0, native.NO_INDEX - 1), st.binary(max_size=100)),
)


def expected(value: Sent) -> object:
    if isinstance(value, Spec):
        return (3, value.channels, value.rate)
    if isinstance(value, (Positions, Volume, Long)):
        return value[0]
    return {name: text.encode() + b"\0" for name, text in value.items()} if isinstance(value, dict) else value


@given(NUMBERS, NUMBERS, st.lists(VALUES))
def test_values_of_every_type_come_back(number: int, tag: int, values: list[Sent]) -> None:
    [found] = Decoder().receive(native.command(number, tag, *values))
    assert found == Command(number, tag, cast("tuple[native.Value, ...]", tuple([expected(value) for value in values])))


@given(st.lists(PACKETS, max_size=5), st.data())
def test_any_split_of_the_bytes_gives_the_same_packets(packets: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(packets)
    decoder, found = Decoder(), []
    rest = whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += decoder.receive(rest[:size])
        rest = rest[size:]
    assert found == Decoder().receive(whole)
    assert len(found) == len(packets)


@given(PACKETS, st.data())
def test_changed_bytes_are_packets_or_refused(packet: bytes, data: st.DataObject) -> None:
    changed = bytearray(packet)
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        for found in Decoder().receive(bytes(changed)):
            assert isinstance(found, (Command, Samples))
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"L\0\0\0\2",
        b"L\0\0\0\2tx\0",
        b"L\0\0\0\2L\0\0\0\1?",
        b"L\0\0\0\2L\0\0\0\1tno end",
        b"L\0\0\0\2L\0\0\0\1x\0\0\0\5abcd",
        b"L\0\0\0\2L\0\0\0\1P1",
        b"L\0\0\0\2L\0\0\0\1Pta\0L\0\0\0\1x\0\0\0\2abN",
        b"L\0\0\0\2L\0\0\0\1" + b"1" * native.MAX_VALUES,
    ],
)
def test_what_is_no_command_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        native.decode_command(body)


@pytest.mark.parametrize(
    ("length", "channel", "flags"), [(native.MAX_BODY + 1, 0, 0), (10, native.NO_INDEX, 0x80000000)]
)
def test_packet_too_long_or_in_memory_is_refused(length: int, channel: int, flags: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Decoder().receive(struct.pack(">5I", length, channel, 0, 0, flags) + b"\0" * 10)
