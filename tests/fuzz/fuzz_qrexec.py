"""Invariant: each of the six ends, fed any bytes, returns messages it may get or raises RemoteProtocolError; a request
it lets through has only letters of the allowed alphabet (MC-16); what it keeps is bounded by one message.
"""

from __future__ import annotations

import functools

import harness

from insula_proto import limits, qrexec, qrexec_channel
from insula_proto.errors import RemoteProtocolError

ENDS = (
    qrexec_channel.AgentControl,
    qrexec_channel.DaemonControl,
    qrexec_channel.CallerEnd,
    qrexec_channel.ServiceEnd,
    qrexec_channel.LocalServer,
    qrexec_channel.LocalClient,
    functools.partial(qrexec_channel.DaemonControl, oldest=qrexec.OLDEST_VERSION),
    functools.partial(qrexec_channel.ServiceEnd, oldest=qrexec.OLDEST_VERSION),
)

HELLO = qrexec.encode(qrexec.Hello(4))
SEEDS = [
    b"\0" + HELLO + qrexec.encode(qrexec.ExecCmdline(0, 513, b"user:true")),
    b"\0" + HELLO + qrexec.encode(qrexec.ServiceRefused(b"SOCKET7")),
    b"\1" + HELLO + qrexec.encode(qrexec.TriggerService(b"", b"dom0", b"SOCKET1", b"a.B+c")),
    b"\1" + qrexec.encode(qrexec.Hello(3)) + qrexec.encode(qrexec.TriggerService(None, b"@default", b"S", b"a.B+c")),
    b"\1" + HELLO + qrexec.encode(qrexec.ConnectionTerminated(0, 600)),
    b"\2" + HELLO + qrexec.encode(qrexec.Stdout(b"hello")) + qrexec.encode(qrexec.ExitCode(3)),
    b"\3" + HELLO + qrexec.encode(qrexec.Stdin(b"hello")) + qrexec.encode(qrexec.Stdin(b"")),
    b"\x82" + HELLO + qrexec.encode(qrexec.Stdout(b"hello")) + qrexec.encode(qrexec.ExitCode(3)),
    b"\x83" + HELLO + qrexec.encode(qrexec.Stdin(b"hello")) + qrexec.encode(qrexec.Stdin(b"")),
    b"\4" + qrexec.encode(qrexec.Hello(3)) + qrexec.encode(qrexec.ServiceConnect(7, 513, b"SOCKET1", 8)),
    b"\4" + qrexec.encode(qrexec.Hello(3)) + qrexec.encode(qrexec.JustExec(0, 0, b"user:true")),
    b"\5" + qrexec.encode(qrexec.Hello(3)) + qrexec.encode(qrexec.JustExec(7, 513)),
    b"\6" + qrexec.encode(qrexec.Hello(2)) + qrexec.HEADER.pack(qrexec.TRIGGER_SERVICE, 128) + b"a.B".ljust(128, b"\0"),
    b"\7" + qrexec.encode(qrexec.Hello(2)) + qrexec.encode(qrexec.Stdin(b"hello")) + qrexec.encode(qrexec.Stdin(b"")),
]


def fuzz_one(data: bytes) -> None:
    end = ENDS[data[0] % len(ENDS) if data else 0]()
    # With the highest bit, bulk is taken as bodies first, as callers and agents do.
    is_bulk = bool(data) and data[0] >= 0x80
    try:
        for piece in harness.pieces(data[1:]):
            bodies: list[bytes | memoryview] = []
            taken = 0
            if is_bulk and isinstance(end, qrexec_channel.CallerEnd):
                taken = end.take_stdout(piece, bodies)
            elif is_bulk and isinstance(end, qrexec_channel.ServiceEnd):
                taken = end.take_stdin(piece, bodies)
            assert sum([len(body) for body in bodies]) <= taken <= len(piece)
            for message in end.receive(piece[taken:]):
                if isinstance(message, qrexec_channel.ServiceRequested):
                    assert qrexec.SERVICE_ALPHABET.issuperset(message.service.encode())
                    assert qrexec.NAME_ALPHABET.issuperset(message.target.encode())
                    assert qrexec.NAME_ALPHABET.issuperset(message.claimed_source.encode())
                    assert qrexec.IDENT_ALPHABET.issuperset(message.ident)
    except RemoteProtocolError:
        pass
    assert len(end._decoder._partial) <= limits.QREXEC_MAX_SERVICE + 200


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
