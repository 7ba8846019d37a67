"""The ssh-agent codec: framing, the two requests, what a person is told."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, ssh_agent
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.ssh_agent import Identity, Message, MessageDecoder, SignRequest

BYTES = st.binary(max_size=60)
MESSAGES = st.lists(st.builds(Message, st.integers(0, 255), BYTES), max_size=5)


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


@given(MESSAGES, st.data())
def test_messages_any_split_gives_the_same(messages: list[Message], data: st.DataObject) -> None:
    rest = b"".join(ssh_agent.encode(message) for message in messages)
    decoder, received = MessageDecoder(), []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        received += decoder.receive(rest[:size])
        rest = rest[size:]
    assert received == messages
    assert decoder.is_between_messages


@given(st.binary(max_size=100))
def test_receive_any_bytes_only_the_remote_error(data: bytes) -> None:
    """MC-11."""
    decoder = MessageDecoder()
    try:
        messages = decoder.receive(data)
    except RemoteProtocolError:
        return
    assert data.startswith(b"".join(ssh_agent.encode(message) for message in messages))


@pytest.mark.parametrize("length", [0, limits.SSH_AGENT_MAX_MESSAGE + 1, 0x80000000, 0xFFFFFFFF])
def test_length_out_of_bounds_refused_at_the_header(length: int) -> None:
    """MC-11."""
    with pytest.raises(RemoteProtocolError):
        MessageDecoder().receive(struct.pack(">I", length))


def test_message_that_is_too_long_is_our_fault() -> None:
    with pytest.raises(LocalProtocolError):
        ssh_agent.encode(Message(1, bytes(limits.SSH_AGENT_MAX_MESSAGE)))


@given(st.builds(SignRequest, BYTES, BYTES, st.sampled_from(sorted(ssh_agent.FLAGS))))
def test_sign_request_round_trip(request_: SignRequest) -> None:
    (message,) = MessageDecoder().receive(ssh_agent.encode_sign_request(request_))
    assert message.kind == ssh_agent.SIGN_REQUEST
    assert ssh_agent.parse_sign_request(message.body) == request_


@given(st.lists(st.builds(Identity, BYTES, BYTES), max_size=4))
def test_identities_round_trip(identities: list[Identity]) -> None:
    (message,) = MessageDecoder().receive(ssh_agent.encode_identities(identities))
    assert ssh_agent.parse_identities(message.body) == identities


@given(BYTES)
def test_signature_round_trip(signature: bytes) -> None:
    (message,) = MessageDecoder().receive(ssh_agent.encode_signature(signature))
    assert ssh_agent.parse_signature(message.body) == signature


@pytest.mark.parametrize("parse", [ssh_agent.parse_sign_request, ssh_agent.parse_identities, ssh_agent.parse_signature])
@given(body=st.binary(max_size=80))
def test_parse_any_body_only_the_remote_error(parse: Callable[[bytes], object], body: bytes) -> None:
    """MC-11."""
    try:
        parse(body)
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "body",
    [
        b"", string(b"k"), string(b"k") + string(b"d"), string(b"k") + string(b"d") + struct.pack(">I", 1),
        string(b"k") + string(b"d") + struct.pack(">I", 0) + b"x", b"\xff\xff\xff\xff",
        string(b"k") + string(b"d") + struct.pack(">I", 6),
    ],
)  # fmt: skip
def test_sign_request_that_is_none_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ssh_agent.parse_sign_request(body)


def test_identities_more_than_can_be_refused_before_they_are_read() -> None:
    with pytest.raises(RemoteProtocolError, match="keys"):
        ssh_agent.parse_identities(struct.pack(">I", limits.SSH_AGENT_MAX_KEYS + 1))


LOGIN = string(b"session") + b"\x32" + string(b"git") + string(b"ssh-connection") + string(b"publickey") + b"\1"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (LOGIN + string(b"ssh-ed25519") + string(b"key"), "log in somewhere as 'git'"),
        (
            b"SSHSIG" + string(b"file") + string(b"") + string(b"sha512") + string(b"h"),
            "sign data for the purpose 'file'",
        ),
        (b"SSHSIG" + string(b"\x1b[2J\n"), "sign data for the purpose '?[2J?'"),
        (b"", "sign data of an unknown kind"),
        (LOGIN.replace(b"publickey", b"passwords"), "sign data of an unknown kind"),
        (b"SSHSIG\xff\xff\xff\xff", "sign data of an unknown kind"),
    ],
)
def test_describe_says_what_the_data_claim(data: bytes, text: str) -> None:
    assert ssh_agent.describe(data) == text


@given(st.binary(max_size=200), st.booleans())
def test_describe_any_data_is_one_printable_line(data: bytes, is_file: bool) -> None:
    """MC-39, MC-103."""
    text = ssh_agent.describe((b"SSHSIG" if is_file else b"") + data)
    assert text.isprintable()
    assert len(text) < 200
