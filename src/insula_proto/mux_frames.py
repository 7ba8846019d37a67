"""Frames of the mux on the wire (docs/protocols/mux.md): a header of stream, type and length, and a body."""

from __future__ import annotations

import struct

from insula_proto import bulk, limits

# Wire constants: docs/protocols/mux.md, "Frames".
VERSION = 2
MEMORY_VERSION = 2
"""The first that has the frames MEMORY, SHARED and FREED."""
MAGIC = b"insula-mux\r\n\x00\xffv1"
PAD, HELLO, OPEN, CREDIT, DATA, FIN, RESET, MEMORY, SHARED, FREED = range(10)

RESET_CANCELLED = 0
RESET_REFUSED = 1
RESET_BUSY = 2
RESET_FAILED = 3

HEADER = struct.Struct("<III")
HEADER_SIZE = 12
U32 = struct.Struct("<I")
TWO_U32 = struct.Struct("<II")
HELLO_BODY = struct.Struct("<16sI16s16s")
NONCE_SIZE = 16
NO_NONCE = bytes(NONCE_SIZE)
HELLO_PREFIX = HEADER.pack(0, HELLO, HELLO_BODY.size) + MAGIC
HELLO_SIZE = HEADER.size + HELLO_BODY.size
PADDING = bytes(limits.MUX_MAX_DATA + 2 * HEADER.size)
"""Completes any half-read frame of an old session, then reads as a PAD header wherever it is cut."""

BODY_SIZES = {
    PAD: 0,
    HELLO: HELLO_BODY.size,
    OPEN: TWO_U32.size,
    CREDIT: U32.size,
    FIN: 0,
    RESET: U32.size,
    MEMORY: bulk.TOKEN_SIZE,
    SHARED: TWO_U32.size,
    FREED: U32.size,
}
"""Of the types with a size of their own: all but DATA."""
OF_MEMORY = (MEMORY, SHARED, FREED)


def frame(stream: int, kind: int, body: bytes = b"") -> bytes:
    """One that is small enough to be made in one piece."""
    return HEADER.pack(stream, kind, len(body)) + body


def hello(nonce: bytes, answer_to: bytes) -> bytes:
    return frame(0, HELLO, HELLO_BODY.pack(MAGIC, VERSION, nonce, answer_to))
