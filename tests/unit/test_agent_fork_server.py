"""Handing calls over to a process inside the user's session."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent import fork_server
from insula_agent.fork_server import HEADER, Decoder, encode
from insula_agent.loop import Loop
from insula_proto import limits, qrexec
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import ExecCmdline, JustExec

NUMBERS = st.integers(0, 0x7FFFFFFF)
COMMANDS = st.binary(max_size=300).map(lambda data: data.replace(b"\0", b"x"))
MESSAGES = st.builds(
    lambda kind, domain, port, command: kind(domain, port, command),
    st.sampled_from((ExecCmdline, JustExec)),
    NUMBERS,
    NUMBERS,
    COMMANDS,
)


@given(MESSAGES, st.data())
def test_decode_any_split_gives_what_was_encoded(message: ExecCmdline | JustExec, data: st.DataObject) -> None:
    wire = encode(message, message.command or b"")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    decoder = Decoder()
    found = [
        result
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)
        if end > start and (result := decoder.receive(wire[start:end])) is not None
    ]
    assert found == [message]


@given(MESSAGES, st.data())
def test_decode_mutated_raises_only_the_documented_error(message: ExecCmdline | JustExec, data: st.DataObject) -> None:
    """MC-11."""
    wire = bytearray(encode(message, message.command or b""))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = Decoder().receive(bytes(wire))
    except RemoteProtocolError:
        return
    assert result is None or b"\0" not in (result.command or b"")


@pytest.mark.parametrize(
    ("kind", "domain", "port", "length"),
    [
        (qrexec.SERVICE_CONNECT, 0, 513, 2),
        (qrexec.EXEC_CMDLINE, -1, 513, 2),
        (qrexec.EXEC_CMDLINE, 0, -1, 2),
        (qrexec.EXEC_CMDLINE, 0, 513, 0),
        (qrexec.EXEC_CMDLINE, 0, 513, -1),
        (qrexec.EXEC_CMDLINE, 0, 513, limits.QREXEC_MAX_BODY + 1),
    ],
)
def test_decode_header_outside_bounds_is_refused_before_the_command_comes(
    kind: int, domain: int, port: int, length: int
) -> None:
    """MC-11, MC-12."""
    with pytest.raises(RemoteProtocolError):
        Decoder().receive(HEADER.pack(kind, domain, port, length))


@pytest.mark.parametrize("user", [b"../x", b"a/b", b".", b"a\0b", b".x"])
def test_user_that_would_leave_the_folder_has_no_server(user: bytes) -> None:
    """MC-16."""
    message = ExecCmdline(0, 513, b"x")
    assert fork_server.hand_over(Loop(), "/nowhere/%s.sock", user, message, b"true", lambda: None) is None
