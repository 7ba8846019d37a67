from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import limits, qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import (
    ConnectionTerminated,
    Decoder,
    ExecCmdline,
    ExitCode,
    Hello,
    JustExec,
    MalformedTrigger,
    Message,
    ServiceConnect,
    ServiceRefused,
    Stderr,
    Stdin,
    Stdout,
    TriggerService,
)

U32 = st.integers(0, 0xFFFFFFFF)
IDENT = st.text("abcXYZ_. -019", max_size=31).map(str.encode)
NAME = st.text("abcXYZ_.@:-019", max_size=63).map(str.encode)
SERVICE = st.text("abcXYZ_.-019", min_size=1, max_size=200).map(str.encode)
TEXT = st.binary(max_size=300).map(lambda data: data.replace(b"\0", b"0"))
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, U32),
    st.builds(ExecCmdline, U32, U32, TEXT),
    st.builds(JustExec, U32, U32, TEXT),
    st.builds(ServiceConnect, U32, U32, IDENT),
    st.builds(ServiceRefused, IDENT),
    st.builds(ConnectionTerminated, U32, U32),
    st.builds(TriggerService, st.none() | NAME, NAME, IDENT, SERVICE),
    st.builds(Stdin, st.binary(max_size=200)),
    st.builds(Stdout, st.binary(max_size=200)),
    st.builds(Stderr, st.binary(max_size=200)),
    st.builds(ExitCode, st.integers(-(2**31), 2**31 - 1)),
)
DATA = (Stdin, Stdout, Stderr)


def everything() -> Decoder:
    return Decoder(qrexec.LENGTHS)


def decode_in_pieces(data: bytes, size: int) -> list[Message]:
    """Decode, then join the parts a data message was handed on in."""
    decoder = everything()
    joined: list[Message] = []
    open_bytes = 0
    for start in range(0, len(data), size):
        for message in decoder.receive(data[start : start + size]):
            if isinstance(message, DATA) and open_bytes:
                joined[-1] = type(message)(joined[-1].data + message.data)  # type: ignore[attr-defined]
            else:
                joined.append(message)
            open_bytes = decoder._body_left if isinstance(message, DATA) else 0
    assert decoder.is_between_messages
    return joined


@given(MESSAGES)
def test_decode_encoded_returns_same_message(message: Message) -> None:
    assert everything().receive(qrexec.encode(message)) == [message]


@given(st.lists(MESSAGES, max_size=4), st.integers(1, 64))
def test_decode_any_split_returns_same_messages(messages: list[Message], size: int) -> None:
    data = b"".join(qrexec.encode(message) for message in messages)
    # Joining needs to know where a data message ends, which only one piece at a time tells.
    assert decode_in_pieces(data, 1) == messages
    decoder = everything()
    parts = [m for start in range(0, len(data), size) for m in decoder.receive(data[start : start + size])]
    for kind in DATA:
        expected = b"".join(m.data for m in messages if isinstance(m, kind))
        assert b"".join(m.data for m in parts if isinstance(m, kind)) == expected
    assert [m for m in parts if not isinstance(m, DATA)] == [m for m in messages if not isinstance(m, DATA)]


@given(st.lists(MESSAGES.filter(lambda message: not isinstance(message, DATA)), max_size=4))
def test_decode_no_more_than_missing_returns_one_message_at_a_time(messages: list[Message]) -> None:
    decoder = Decoder(qrexec.LENGTHS)
    for message in messages:
        encoded = qrexec.encode(message)
        assert decoder.missing == qrexec.HEADER.size
        assert decoder.receive(encoded[: qrexec.HEADER.size]) == []
        assert decoder.missing == len(encoded) - qrexec.HEADER.size
        assert len(decoder.receive(encoded[qrexec.HEADER.size :])) == 1


@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_decode_mutated_bytes_raises_only_remote_error(messages: list[Message], data: st.DataObject) -> None:
    """MC-11, MC-12."""
    wire = bytearray(b"".join(qrexec.encode(message) for message in messages))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        everything().receive(bytes(wire))
    except RemoteProtocolError:
        return


@pytest.mark.parametrize("length", [0, 3, 5, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", [qrexec.HELLO, qrexec.CONNECTION_TERMINATED, qrexec.TRIGGER_SERVICE4])
def test_decode_wrong_length_refused_at_header_without_memory(kind: int, length: int) -> None:
    """MC-11: refused before the body is awaited, memory grows by no more than a message."""
    decoder = Decoder(qrexec.lengths(kind))
    if qrexec.LENGTHS[kind][0] <= length <= qrexec.LENGTHS[kind][1]:
        pytest.fail("the case is meant to be wrong")
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        decoder.receive(struct.pack("<II", kind, length))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16384


def test_decode_endless_data_message_keeps_nothing() -> None:
    """MC-11: payload is handed on; peak memory does not follow the announced length."""
    decoder = everything()
    decoder.receive(struct.pack("<II", qrexec.STDIN, limits.QREXEC_MAX_CHUNK))
    assert sum(len(m.data) for _ in range(limits.QREXEC_MAX_CHUNK) for m in decoder.receive(b"x")) == 65536  # type: ignore[attr-defined]
    assert not decoder._partial


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"t".ljust(64, b"\0") + b"i" * 32 + b"svc\0", "ident"),
        (b"t".ljust(64, b"\0") + b"i\0x".ljust(32, b"\0") + b"svc\0", "ident"),
        (b"t".ljust(64, b"\0") + b"i/".ljust(32, b"\0") + b"svc\0", "ident"),
        (b"t".ljust(64, b"\0") + b"i".ljust(32, b"\0") + b"svc", "NUL"),
        (b"t".ljust(64, b"\0") + b"i".ljust(32, b"\0") + b"s\0vc\0", "NUL"),
        (b"t".ljust(64, b"\0") + b"i".ljust(32, b"\0") + b"\0", "empty"),
        (b"t".ljust(64, b"\0") + b"i".ljust(32, b"\0") + b"+a\0", "empty"),
    ],
)
def test_decode_recoverable_trigger_fault_reported_with_ident_as_sent(body: bytes, reason: str) -> None:
    """MC-16."""
    [message] = everything().receive(struct.pack("<II", qrexec.TRIGGER_SERVICE3, len(body)) + body)
    assert isinstance(message, MalformedTrigger)
    assert message.raw_ident == body[64:96]
    assert reason in message.reason


@pytest.mark.parametrize("body", [b"cmd", b"c\0md\0"])
def test_decode_command_without_final_nul_refused(body: bytes) -> None:
    body = struct.pack("<II", 0, 513) + body
    with pytest.raises(RemoteProtocolError):
        everything().receive(struct.pack("<II", qrexec.EXEC_CMDLINE, len(body)) + body)


@pytest.mark.parametrize(
    "message",
    [
        ExecCmdline(0, 513, b"a\0b"),
        ExecCmdline(0, 513, b"a" * 65535),
        ExecCmdline(-1, 513, b"a"),
        ServiceConnect(0, 513, b"i" * 32),
        ServiceRefused(b"i" * 33),
        TriggerService(b"s" * 64, b"t", b"i", b"svc"),
        TriggerService(b"s", b"t", b"i", b""),
        TriggerService(b"s", b"t", b"i", b"s" * 65001),
        MalformedTrigger(b"i", "because"),
        Stdin(b"x" * 65537),
        ExitCode(2**31),
    ],
)
def test_encode_beyond_wire_refused(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        qrexec.encode(message)


def test_encode_data_large_is_cut_into_chunks() -> None:
    chunks = qrexec.encode_data(qrexec.STDOUT, bytes(150000))
    assert [len(chunk) - 8 for chunk in chunks] == [65536, 65536, 18928]
    assert qrexec.encode_data(qrexec.STDOUT, b"") == []


@pytest.mark.parametrize(("theirs", "effective"), [(3, 3), (4, 4), (5, 4), (0xFFFFFFFF, 4)])
def test_negotiate_takes_smaller(theirs: int, effective: int) -> None:
    assert qrexec.negotiate(theirs) == effective


@pytest.mark.parametrize("theirs", [0, 1, 2])
def test_negotiate_too_old_refused(theirs: int) -> None:
    with pytest.raises(RemoteProtocolError):
        qrexec.negotiate(theirs)


@given(st.binary(max_size=100))
def test_sanitise_any_bytes_only_alphabet_gets_through(data: bytes) -> None:
    """MC-16."""
    text = qrexec.sanitise(data, qrexec.SERVICE_ALPHABET)
    assert len(text) == len(data)
    assert qrexec.SERVICE_ALPHABET.issuperset(text.encode())
