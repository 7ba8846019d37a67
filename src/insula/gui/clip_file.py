"""What is copied, as a memory file that nobody can change: so it goes from process to process without being read.

The daemon passes on descriptors and looks at their size alone; the bytes are read where they came from a guest, and
where they go to one.
"""

from __future__ import annotations

import fcntl
import os

from insula_proto import gui_wire, limits
from insula_proto.gui import ClipboardImage

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def limit(*, is_image: bool) -> int:
    """Bytes that one may have."""
    if is_image:
        return gui_wire.lengths([ClipboardImage])[ClipboardImage.kind][1]
    return limits.GUI_MAX_CLIPBOARD


def make(data: bytes) -> int:
    """Return the descriptor of a sealed file; the caller owns it. :raise OSError:"""
    descriptor = os.memfd_create("clip", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def size(descriptor: int, limit: int) -> int:
    """Return how long it is. :raise ValueError: it is longer than ``limit``, or can be changed. :raise OSError:"""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError("a clipboard that can be changed")
    length = os.lseek(descriptor, 0, os.SEEK_END)  # as in frame_memory
    if length > limit:
        raise ValueError(f"a clipboard of {length} bytes, {limit} allowed")
    return length


def read(descriptor: int, limit: int) -> bytes:
    """Return what is in it. :raise ValueError, OSError: as :func:`size`."""
    length = size(descriptor, limit)
    os.lseek(descriptor, 0, os.SEEK_SET)
    data = bytearray()
    while len(data) < length:
        data += os.read(descriptor, length - len(data))
    return bytes(data)
