"""The frame memory of a qube, as its host sees it: mapped read-only, of a size that nobody can change.

A guest writes to it at any moment, also while it is read. So nothing in it steers anything: where pictures are comes by
checked messages, and what is there is pixels whatever it is (MC-36). It must not shrink below the mapping, else reading
would be the end of the reader: a memory file that is not sealed against it is refused.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from types import TracebackType
from typing import Self

from insula.gui.desktop import Picture
from insula.hal.frames import MAX_SIZE, MIN_SIZE, SEALS
from insula_proto import gui_wire


class FrameMemory:
    """Owns the mapping; views of it must be given back before :meth:`close`."""

    def __init__(self, descriptor: int) -> None:
        """Map it; ``descriptor`` stays the caller's.

        :raise ValueError: not sealed against shrinking and growing, or of a size that cannot be.
        :raise OSError: not a memory file.
        """
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise ValueError("frame memory that can be made smaller or larger")
        # (Not fstat(2): the C library makes it by a call that could look at any path, which the sandbox forbids.)
        self.size = os.lseek(descriptor, 0, os.SEEK_END)
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"frame memory of {self.size} bytes")
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, self.size, mmap.MAP_SHARED, mmap.PROT_READ)
        self._view = memoryview(self._map)

    def view(self, picture: Picture) -> memoryview:
        """The pixels of a picture, read-only.

        :raise ValueError: outside the memory; the window machine let nothing like that through.
        """
        end = picture.offset + gui_wire.picture_size(picture.width, picture.height)
        if picture.offset < 0 or picture.width <= 0 or picture.height <= 0 or end > self.size:
            raise ValueError(f"{picture} in {self.size} bytes")
        return self._view[picture.offset : end]

    def close(self) -> None:
        """Idempotent. :raise BufferError: a view is still in use."""
        self._view.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
