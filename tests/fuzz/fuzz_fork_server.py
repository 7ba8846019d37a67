"""Invariant: the reader of calls that are handed over to a session, fed any bytes in any pieces, returns one message
with a command of bounded length and without NUL, or nothing yet, or raises RemoteProtocolError; it keeps at most one.
"""

from __future__ import annotations

import harness

from insula_agent.fork_server import HEADER, MAX_COMMAND, Decoder, encode
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import ExecCmdline, JustExec

SEEDS = [
    encode(ExecCmdline(0, 513, b""), b"true"),
    encode(JustExec(7, 768, b""), b"QUBESRPC a.B+c work"),
    encode(ExecCmdline(0, 513, b""), b"x" * 500),
]


def fuzz_one(data: bytes) -> None:
    decoder = Decoder()
    try:
        for piece in harness.pieces(data):
            message = decoder.receive(piece)
            assert message is None or b"\0" not in (message.command or b"")
            assert message is None or len(message.command or b"") < MAX_COMMAND
    except RemoteProtocolError:
        pass
    assert len(decoder._data) <= MAX_COMMAND + HEADER.size + 61


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
