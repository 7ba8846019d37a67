from __future__ import annotations

import struct

import pytest
from gui_strategies import FRAME_PICTURE, FROM_AGENT, FROM_HOST, GRANT_PICTURE, ICON
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import gui, gui_channel
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.gui import ClipboardData, Destroy, DumpAcknowledged, Message, Painted
from insula_proto.gui_channel import AgentEnd, Hello, HostEnd, Screen

SCREEN = Screen(1921, 1080)


def opened(*, frames: bool = True, agent_minor: int = 8, host_minor: int = 8) -> tuple[AgentEnd, HostEnd]:
    agent, host = AgentEnd(uses_frames=frames, own_minor=agent_minor), HostEnd(uses_frames=frames, own_minor=host_minor)
    host.receive(agent.hello())
    agent.receive(host.answer(SCREEN))
    return agent, host


def test_handshake_is_the_published_one() -> None:
    agent, host = AgentEnd(uses_frames=False), HostEnd(uses_frames=False)
    assert agent.hello() == bytes.fromhex("08000100")
    assert host.receive(agent.hello()) == [Hello(8)]
    answer = host.answer(SCREEN)
    # The width is rounded up to a multiple of 8; memory in KiB.
    assert answer == struct.pack("<IIIII", 0x10008, 1928, 1080, 24, 1928 * 1080 * 4 // 1024 + 1)
    assert agent.receive(answer) == [Hello(8, Screen(1928, 1080))]


@pytest.mark.parametrize(("theirs", "ours", "both"), [(8, 8, 8), (4, 8, 4), (8, 6, 6), (0xFFFF, 8, 8)])
def test_versions_smaller_minor_counts(theirs: int, ours: int, both: int) -> None:
    host = HostEnd(uses_frames=True, own_minor=ours)
    assert host.receive(struct.pack("<I", 0x10000 | theirs)) == [Hello(both)]
    assert struct.unpack_from("<I", host.answer(SCREEN)) == (0x10000 | both,)


@pytest.mark.parametrize("version", [0, 0x10003, 0x00008, 0x20000, 0x20008, 0xFFFFFFFF])
def test_host_another_major_or_too_old_refused(version: int) -> None:
    with pytest.raises(RemoteProtocolError, match=r"too (old|new)"):
        HostEnd(uses_frames=True).receive(struct.pack("<I", version))


@pytest.mark.parametrize("version", [0x10003, 0x10009, 0x20008, 0])
def test_agent_answer_it_did_not_offer_refused(version: int) -> None:
    with pytest.raises(RemoteProtocolError):
        AgentEnd(uses_frames=True).receive(struct.pack("<IIIII", version, 1, 1, 24, 1))


@given(st.lists(FROM_AGENT | FRAME_PICTURE | ICON, max_size=4), st.integers(1, 50))
def test_host_any_split_handshake_included_returns_same_messages(messages: list[Message], size: int) -> None:
    agent, host = opened()
    data = agent.hello() + agent.send_all(messages)
    host = HostEnd(uses_frames=True)
    got = [m for start in range(0, len(data), size) for m in host.receive(data[start : start + size])]
    assert got == [Hello(8), *messages]
    assert host.is_between_messages


@given(st.lists(FROM_HOST, max_size=4), st.integers(1, 50))
def test_agent_any_split_handshake_included_returns_same_messages(messages: list[Message], size: int) -> None:
    _, host = opened()
    data = host.answer(SCREEN) + b"".join(map(host.send, messages))
    agent = AgentEnd(uses_frames=True)
    got = [m for start in range(0, len(data), size) for m in agent.receive(data[start : start + size])]
    assert got == [Hello(8, Screen(1928, 1080)), *messages]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_raise_only_remote_error(data: bytes, frames: bool) -> None:
    """MC-11, MC-12."""
    for end in (HostEnd(uses_frames=frames), AgentEnd(uses_frames=frames), *opened(frames=frames)):
        try:
            for byte in data:
                end.receive(bytes([byte]))
        except RemoteProtocolError:
            continue


@given(FROM_HOST.filter(lambda m: type(m) not in gui.FROM_AGENT))
def test_host_message_of_the_other_direction_refused(message: Message) -> None:
    """MC-44: a guest has no message that is input or focus."""
    agent, host = opened()
    with pytest.raises(LocalProtocolError):
        agent.send(message)
    with pytest.raises(RemoteProtocolError):
        host.receive(gui_channel.encode(message))


@given(FRAME_PICTURE, GRANT_PICTURE)
def test_host_other_kind_of_picture_refused(frame: Message, grant: Message) -> None:
    _, with_frames = opened(frames=True)
    _, with_grants = opened(frames=False)
    with pytest.raises(RemoteProtocolError):
        with_frames.receive(gui_channel.encode(grant))
    with pytest.raises(RemoteProtocolError):
        with_grants.receive(gui_channel.encode(frame))


@pytest.mark.parametrize(("minor", "limit"), [(8, 256001), (7, 65000), (4, 65000)])
def test_host_clipboard_longer_than_the_version_has_refused_at_its_header(minor: int, limit: int) -> None:
    """MC-52."""
    _, host = opened(agent_minor=minor)
    assert host.receive(struct.pack("<III", 140, 0, limit)) == []
    _, host = opened(agent_minor=minor)
    with pytest.raises(RemoteProtocolError):
        host.receive(struct.pack("<III", 140, 0, limit + 1))


def test_agent_says_too_long_with_one_byte_more_than_may_be() -> None:
    agent, host = opened()
    [message] = host.receive(agent.refuse_clipboard(7))
    assert isinstance(message, ClipboardData)
    assert len(message.data) == 256001
    older, _ = opened(agent_minor=7)
    assert older.refuse_clipboard(7) == b""


@pytest.mark.parametrize("minor", [7, 8])
def test_send_clipboard_over_the_limit_raises(minor: int) -> None:
    agent, host = opened(agent_minor=minor)
    data = bytes(gui_channel.max_clipboard(minor) + 1)
    for end in (agent, host):
        with pytest.raises(LocalProtocolError):
            end.send(ClipboardData(0, data))


@pytest.mark.parametrize(("message", "first"), [(Destroy(1), 5), (DumpAcknowledged(1), 7)])
def test_send_what_the_version_does_not_have_raises(message: Message, first: int) -> None:
    _, host = opened(agent_minor=first)
    assert host.may_send(type(message))
    host.send(message)
    _, host = opened(agent_minor=first - 1)
    assert not host.may_send(type(message))
    with pytest.raises(LocalProtocolError):
        host.send(message)


def test_send_painted_only_where_frames_are_used() -> None:
    """A published agent, which shows its pictures by grants, never gets a message it does not know."""
    _, host = opened(frames=False)
    with pytest.raises(LocalProtocolError):
        host.send(Painted(1))
    agent, host = opened(frames=True)
    assert agent.receive(host.send(Painted(1))) == [Painted(1)]


def test_send_before_the_handshake_raises() -> None:
    with pytest.raises(LocalProtocolError):
        AgentEnd(uses_frames=True).send(Destroy(1))
    host = HostEnd(uses_frames=True)
    with pytest.raises(LocalProtocolError):
        host.send(Destroy(1))
    with pytest.raises(LocalProtocolError):
        host.answer(SCREEN)


def test_half_a_message_is_a_debt() -> None:
    """MC-13: whoever reads knows that the rest is owed."""
    _, host = opened()
    assert host.is_between_messages
    host.receive(struct.pack("<II", 131, 1))
    assert not host.is_between_messages
