"""Invariant: either end, fed any bytes, returns events or raises RemoteProtocolError; a key a qube manages to write
has a valid path on the list of what qubes may write; the number of keys and the size of answers stay within limits.
"""

from __future__ import annotations

import harness

from insula_proto import limits, qubesdb
from insula_proto.errors import RemoteProtocolError

SEEDS = [
    b"\0" + qubesdb.encode(qubesdb.KeyMessage(qubesdb.MULTIREAD)),
    b"\0" + qubesdb.encode(qubesdb.KeyMessage(qubesdb.WRITE, "/dns/1/a", b"value")),
    b"\0" + qubesdb.encode(qubesdb.KeyMessage(qubesdb.RM, "/name")),
    b"\1"
    + qubesdb.encode(qubesdb.KeyMessage(qubesdb.RESP_MULTIREAD, "/name", b"work"))
    + qubesdb.encode(qubesdb.KeyMessage(qubesdb.RESP_MULTIREAD))
    + qubesdb.encode(qubesdb.KeyMessage(qubesdb.WRITE, "/a", b"1")),
]


def fuzz_one(data: bytes) -> None:
    keys = {"/name": b"work"}
    server = qubesdb.KeyServer(keys, lambda path, value: True)
    client = qubesdb.KeyClient()
    end: qubesdb.KeyServer | qubesdb.KeyClient = client if data[:1] == b"\1" else server
    try:
        for piece in harness.pieces(data[1:]):
            for event in end.receive(piece):
                if end is server and isinstance(event, qubesdb.KeyWritten):
                    assert qubesdb.is_valid_path(event.path)
                    assert qubesdb.guest_may_write(event.path)
                    assert len(event.value) <= limits.QUBESDB_MAX_VALUE
    except RemoteProtocolError:
        pass
    assert len(keys) <= limits.QUBESDB_MAX_KEYS
    assert len(server.take_output()) <= limits.QUBESDB_MAX_OUTPUT + 72 + limits.QUBESDB_MAX_VALUE


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
