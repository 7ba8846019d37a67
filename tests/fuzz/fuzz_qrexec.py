"""Invariant: each of the four ends, fed any bytes, returns messages it may get or raises RemoteProtocolError; a request
it lets through has only letters of the allowed alphabet (MC-16); what it keeps is bounded by one message.
"""

from __future__ import annotations

import harness

from insula_proto import limits, qrexec, qrexec_channel
from insula_proto.errors import RemoteProtocolError

ENDS = (
    qrexec_channel.AgentControl,
    qrexec_channel.DaemonControl,
    qrexec_channel.CallerEnd,
    qrexec_channel.ServiceEnd,
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
]


def fuzz_one(data: bytes) -> None:
    end = ENDS[data[0] % len(ENDS) if data else 0]()
    try:
        for piece in harness.pieces(data[1:]):
            for message in end.receive(piece):
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
