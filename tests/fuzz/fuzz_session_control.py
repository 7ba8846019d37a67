"""Invariant: any bytes from a session process decode to a message whose fields are within their bounds and whose
encoding decodes to it again, or RemoteProtocolError; the same for bytes to a session."""

from __future__ import annotations

import harness

from insula.rpc import control
from insula_proto import limits
from insula_proto.errors import RemoteProtocolError

SEEDS = [
    control.encode(message)
    for message in (
        control.ServiceRequested(1, "qubes.Filecopy+a", "@default", "remote"),
        control.RequestDropped("a_b", "busy"),
        control.RequestCancelled(1),
        control.CallAccepted(2),
        control.CallRejected(2),
        control.Payload(2, b"\0\xff"),
        control.CallEnded(2, 10, 20),
        control.KeyWritten("/features-request/os", b"Linux"),
        control.CallsChanged(1, 2, 3),
        control.AgentReady(4),
        control.SessionEnding("machine gone"),
        control.Connect(1, 2, 3),
        control.Host(1, 2, 65536),
        control.Serve(2, 3, "", b"QUBESRPC a.B+ work"),
        control.Finish(2, 0, b""),
        control.MemoryWanted(),
        control.Memory(),
    )
]


def fuzz_one(data: bytes) -> None:
    for decode in (control.decode_from_session, control.decode_to_session):
        try:
            message = decode(data)
        except RemoteProtocolError:
            continue
        assert decode(control.encode(message)) == message
        for name in message.__struct_fields__:
            field = getattr(message, name)
            if isinstance(field, str):
                assert field.isascii()
                assert field.isprintable()
                assert len(field) <= (limits.QREXEC_MAX_SERVICE if name == "service" else control.MAX_TEXT)
            elif isinstance(field, int):
                assert 0 <= field <= control.MAX_NUMBER
            else:
                assert len(field) <= limits.QREXEC_MAX_BODY + 1


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
