"""Invariant: whatever bytes come, in any split, the Admin API decoders return values or raise RemoteProtocolError; what
they accept as a request line encodes again and means the same; kept input stays within its limits.
"""

from __future__ import annotations

import contextlib

import harness

from insula_proto import admin
from insula_proto.admin import RequestDecoder, ResponseDecoder
from insula_proto.errors import RemoteProtocolError

SEEDS = [
    b"\0admin.vm.List+ dom0 name dom0\0",
    b"\0admin.vm.property.Set+a+b work keyword adminvm\0payload",
    b"\0admin.vm.List dom0 name uuid:00000000-0000-0000-0000-000000000000\0",
    b"\x010\0dom0 class=AdminVM state=Running\n",
    b"\x011\0\0connection-established\0\x001\0work\0property-set:label\0name\0label\0newvalue\0red\0\0",
    b"\x012\0QubesException\0\0no %s in 5%%\0tag\0",
]


def fuzz_one(data: bytes) -> None:
    """The first byte chooses the decoder."""
    if data[:1] == b"\0":
        fuzz_request(data[1:])
    else:
        fuzz_response(data[1:])


def fuzz_request(data: bytes) -> None:
    decoder = RequestDecoder()
    with contextlib.suppress(RemoteProtocolError):
        for piece in harness.pieces(data):
            decoder.receive(piece)
        request = decoder.finish()
        again = RequestDecoder()
        again.receive(admin.encode_request_head(request.head))
        assert again.head == request.head
        assert len(request.payload) < len(data) <= admin.MAX_REQUEST


def fuzz_response(data: bytes) -> None:
    decoder = ResponseDecoder()
    with contextlib.suppress(RemoteProtocolError):
        for piece in harness.pieces(data):
            for record in decoder.receive(piece):
                assert record.name
                assert len(record.kwargs) <= admin.MAX_EVENT_KEYS
        end = decoder.finish()
        if isinstance(end, admin.Failure):
            assert len(end.message) <= len(data)


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
