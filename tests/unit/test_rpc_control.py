from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.rpc import control
from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

TO_SESSION = [
    control.Configure("work", 7, "user"),
    control.SetKey("/name", b"work"),
    control.RemoveKey("/name"),
    control.Begin(),
    control.Shutdown(),
    control.Refuse(3),
    control.Connect(3, 4, 7),
    control.Host(3, 4, 65536),
    control.Finish(4, 126, b"no\n"),
    control.Serve(4, 7, "user", b"QUBESRPC a.B+c work"),
]
FROM_SESSION = [
    control.AgentReady(4),
    control.AgentLost("gone"),
    control.KeyWritten("/dns/1/a", b"\0\xff"),
    control.KeyRemoved("/dns/1/a"),
    control.ServiceRequested(1, "a.B+c", "dom0", "remote"),
    control.RequestDropped("a_b", "busy"),
    control.RequestCancelled(1),
    control.CallAccepted(4),
    control.CallRejected(4),
    control.Payload(4, b"\0\xff"),
    control.CallEnded(4, 1, 2),
    control.CallsChanged(1, 2, 3),
    control.SessionEnding("machine gone"),
]


@pytest.mark.parametrize("message", TO_SESSION, ids=lambda message: type(message).__name__)
def test_to_session_encoded_decodes_to_same(message: control.ToSession) -> None:
    assert control.decode_to_session(control.encode(message)) == message


@pytest.mark.parametrize("message", FROM_SESSION, ids=lambda message: type(message).__name__)
def test_from_session_encoded_decodes_to_same(message: control.FromSession) -> None:
    assert control.decode_from_session(control.encode(message)) == message


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "AgentReady", "version": 5},
        {"type": "AgentReady", "version": "4"},
        {"type": "AgentReady"},
        {"type": "AgentReady", "version": 4, "more": 1},
        {"type": "AgentLost", "reason": "x" * 201},
        {"type": "AgentLost", "reason": "\x1b[31m"},
        {"type": "AgentLost", "reason": "a\nb"},
        {"type": "KeyWritten", "path": "name", "value": b""},
        {"type": "KeyWritten", "path": "/a/../b", "value": b""},
        {"type": "KeyWritten", "path": "/a b", "value": b""},
        {"type": "KeyWritten", "path": "/" + "a" * 63, "value": b""},
        {"type": "KeyWritten", "path": "/a", "value": b"x" * 3073},
        {"type": "CallsChanged", "running": -1, "started": 0, "refused": 0},
        {"type": "ServiceRequested", "request": 0, "service": "a", "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "", "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "+a", "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "../a", "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": ".a", "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "a$b", "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "a\n", "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "a" * 65001, "target": "", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "a", "target": "x" * 64, "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "a", "target": "a b", "source": ""},
        {"type": "ServiceRequested", "request": 1, "service": "a", "target": "", "source": "a\n"},
        {"type": "Payload", "call": 1, "data": b"x" * 65537},
        {"type": "CallEnded", "call": 1, "from_qube": -1, "to_qube": 0},
        {"type": "Connect", "request": 1, "call": 1, "domain": 1},
        {"type": "Shutdown"},
        {"type": "Configure", "name": "x", "domain": 1, "default_user": "root"},
        {"type": "Nonsense"},
        {},
        [],
    ],
)
def test_from_session_field_out_of_bounds_refused(fields: object) -> None:
    """MC-16, MC-18: a session cannot say more than the types allow, nor speak as the daemon."""
    with pytest.raises(RemoteProtocolError):
        control.decode_from_session(msgspec.msgpack.encode(fields))


@given(st.binary(max_size=200))
def test_from_session_any_bytes_raise_only_remote_error(data: bytes) -> None:
    """MC-11, MC-12."""
    try:
        control.decode_from_session(data)
    except RemoteProtocolError:
        return


@given(st.sampled_from(FROM_SESSION), st.data())
def test_from_session_mutated_bytes_raise_only_remote_error(message: control.FromSession, data: st.DataObject) -> None:
    wire = bytearray(control.encode(message))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        control.decode_from_session(bytes(wire))
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "message", [control.SetKey("x", b""), control.SetKey("/x", bytes(3073)), control.AgentLost("\n")]
)
def test_encode_what_the_other_side_would_refuse_is_refused_here(message: control.ToSession) -> None:
    with pytest.raises(LocalProtocolError):
        control.encode(message)


@given(st.text(max_size=400))
def test_printable_any_text_fits_a_message(text: str) -> None:
    control.encode(control.AgentLost(control.printable(text)))


def test_largest_key_fits_a_packet() -> None:
    assert len(control.encode(control.SetKey("/" + "a" * 62, bytes(3072)))) <= control.MAX_MESSAGE


def test_longest_request_and_payload_fit_a_packet() -> None:
    service = "a" * limits.QREXEC_MAX_SERVICE
    for message in (
        control.ServiceRequested(2**53, service, "x" * 63, "x" * 63),
        control.Payload(2**53, bytes(control.MAX_PAYLOAD)),
        control.Serve(2**53, 2**32 - 1, "x" * 200, bytes(limits.QREXEC_MAX_BODY)),
    ):
        assert len(control.encode(message)) <= control.MAX_MESSAGE
