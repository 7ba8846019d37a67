"""Volume data on its way in: between ``internal.vm.volume.ImportBegin`` and ``ImportEnd`` (admin-api §2).

The script behind ``admin.vm.volume.Import`` is told a file and writes exactly the announced bytes into it; only
then does the pool read them. So the published tool's helper needs no right but to write one sparse file, and the
volume is untouched until all data are there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from insula.model.errors import QubesException, QubesVMInUseError
from insula.model.names import QubeName

MAX_UPLOADS = 16
"""At a time; each may fill the disk up to its announced size."""
CHUNK = 4 * 1024 * 1024
"""Bytes read at once when the pool takes the data."""


@dataclass(frozen=True)
class UploadedData:
    path: Path
    size: int
    """Bytes announced; the file has this size from the start."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """The content, read in a thread: it may be many GiB."""
        with self.path.open("rb") as source:
            while chunk := await asyncio.to_thread(source.read, CHUNK):
                yield chunk


class Uploads:
    """Owner of the files, one a volume. A context manager: the folder is empty inside at first, and gone after."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is ours alone: whatever an earlier daemon left in it is removed."""
        self._folder = folder
        self._open: dict[tuple[QubeName, str], UploadedData] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def begin(self, qube: QubeName, volume: str, size: int) -> UploadedData:
        """:raise QubesVMInUseError: data for this volume are on their way already."""
        if (qube, volume) in self._open:
            raise QubesVMInUseError(f"Data for volume {volume} of {qube} are being imported already")
        if len(self._open) >= MAX_UPLOADS:
            raise QubesException(f"{MAX_UPLOADS} volumes are being imported already")
        data = UploadedData(self._folder / f"{qube}.{volume}", size)
        file = os.open(data.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, size)
        finally:
            os.close(file)
        self._open[qube, volume] = data
        return data

    def end(self, qube: QubeName, volume: str) -> UploadedData:
        """Hand the data over; the caller calls :meth:`discard` when it has used them.

        :raise QubesException: no import of this volume was begun.
        """
        try:
            return self._open[qube, volume]
        except KeyError:
            raise QubesException(f"No import of volume {volume} of {qube} was begun") from None

    def discard(self, qube: QubeName, volume: str) -> None:
        data = self._open.pop((qube, volume), None)
        if data is not None:
            data.path.unlink(missing_ok=True)
