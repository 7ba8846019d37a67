"""Invariant: any bytes decode to arguments without NUL, whose encoding is those bytes, or RemoteProtocolError."""

from __future__ import annotations

import harness

from insula_proto import vmexec
from insula_proto.errors import RemoteProtocolError

SEEDS = [b"ls+--a+-2Fhome-2Fuser", b"", b"a++b", b"-C3-A4", b"-2f", b"-00"]


def fuzz_one(data: bytes) -> None:
    try:
        arguments = vmexec.decode(data)
    except RemoteProtocolError:
        return
    assert not any(b"\0" in argument for argument in arguments)
    if all(_is_canonical(byte) for argument in arguments for byte in argument):
        assert vmexec.encode(arguments) == data


def _is_canonical(byte: int) -> bool:
    """``-41`` decodes to ``A``, which has a shorter form of its own; such input is taken but not reproduced."""
    return byte not in vmexec._PLAIN and byte != ord("-")


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
