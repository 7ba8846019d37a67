"""A frozen machine on disk, and loaded for forks (decision 011).

A seed is a folder of three files: ``memory`` (sparse, the guest's RAM), ``state`` (QEMU's migration stream without the
RAM) and ``manifest.json``, written last. Until it is there, or when anything does not agree with it, the folder is no
seed. :func:`write_seed` makes one, :func:`load_seed` checks it *while* copying it into two memory files, which are
then sealed: what was checked is what forks use, and neither a later change on disk nor a VMM can alter it.

The digest of the memory covers holes without reading them: it is made of the blocks that are not all zero, each with
its offset. A hole and written zeros are the same, as they are to the guest.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import msgspec

from insula.hal.errors import DriverError, SeedUnusable

FORMAT = 1
"""Of the folder; another one is refused."""
MEMORY_NAME = "memory"
STATE_NAME = "state"
MANIFEST_NAME = "manifest.json"

MAX_MANIFEST = 64 * 1024
MAX_STATE = 64 << 20
"""Bytes of device state; 0.4 MB in practice."""

BLOCK = 64 * 1024
"""Bytes that are read, hashed and left out (if zero) together."""
SEGMENT = 32 << 20
"""Bytes of memory that one thread hashes; part of the format, since each segment has a digest of its own."""
MAX_THREADS = 4

ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_ZEROS = bytes(BLOCK)


class FileNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    qemu: str
    """Version of QEMU; device state is read by the same one only."""
    model: str
    """See :func:`insula.hal.qemu.machine_model.model_digest`."""
    memory: FileNote
    state: FileNote
    format: int = FORMAT


class Cancelled(Exception):
    """The copy was told to stop."""


class LoadedSeed:
    """A checked seed in two sealed memory files. Owns both."""

    def __init__(self, manifest: Manifest, memory: int, state: int) -> None:
        self.manifest = manifest
        self._fds: tuple[int, int] | None = (memory, state)

    def open(self, stack: ExitStack) -> tuple[int, int]:
        """Descriptors of memory and state for one fork, closed by ``stack``. The state's is at its beginning and
        shares its position with no other.

        :raise SeedUnusable: it was unloaded meanwhile.
        """
        if self._fds is None:
            raise SeedUnusable("the seed was unloaded")
        memory, state = self._fds
        for fd in self._fds:
            # A hostile VMM with the daemon's own uid may have changed the mode; it can do no more than that.
            os.fchmod(fd, 0o666)
        return _reopened(stack, memory), _reopened(stack, state)

    def close(self) -> None:
        """Forks that have opened it keep it. Idempotent."""
        if self._fds is not None:
            for fd in self._fds:
                os.close(fd)
            self._fds = None


def _reopened(stack: ExitStack, fd: int) -> int:
    opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, opened)
    return opened


def machine_memory(size: int) -> int:
    """A memory file that can be the RAM of a machine to be frozen: its size is fixed."""
    return _fixed_memfd("machine-memory", size)


def state_memory() -> int:
    """A memory file for a migration stream: what does not fit is refused by the kernel."""
    return _fixed_memfd("machine-state", MAX_STATE)


def _fixed_memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


# Writing


def write_seed(folder: Path, manifest: Manifest, memory: int, state: int, cancelled: Event) -> None:
    """Write a seed into an empty folder. Blocking: seconds.

    :param manifest: its ``sha256`` fields are filled in here.
    :raise DriverError: the disk is full or fails; the folder is empty.
    :raise Cancelled: the same.
    """
    try:
        memory_sum = _write_file(folder / MEMORY_NAME, memory, manifest.memory.size, cancelled)
        state_sum = _write_file(folder / STATE_NAME, state, manifest.state.size, cancelled)
        complete = msgspec.structs.replace(
            manifest,
            memory=FileNote(manifest.memory.size, memory_sum),
            state=FileNote(manifest.state.size, state_sum),
        )
        # Everything else is on disk before the manifest has its name.
        _sync_folder(folder)
        partial = folder / f"{MANIFEST_NAME}.partial"
        with partial.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(complete), indent=2))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / MANIFEST_NAME)
        _sync_folder(folder)
    except BaseException as error:
        empty(folder)
        if isinstance(error, OSError):
            raise DriverError(f"the seed cannot be written to {folder}: {error.strerror}", str(error)) from error
        raise


def _write_file(path: Path, source: int, size: int, cancelled: Event) -> str:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("xb", buffering=0) as file:
        file.truncate(size)
        digest = copy_sparse(source, file.fileno(), size, cancelled)
        os.fsync(file.fileno())
    partial.rename(path)
    return digest


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def empty(folder: Path) -> None:
    """Remove what a freeze has written; best before last, so that a kill meanwhile leaves no whole seed."""
    for name in (MANIFEST_NAME, STATE_NAME, MEMORY_NAME):
        (folder / name).unlink(missing_ok=True)
        (folder / f"{name}.partial").unlink(missing_ok=True)


# Loading


def load_seed(folder: Path, qemu: str, cancelled: Event) -> LoadedSeed:
    """Check a seed while copying it into sealed memory. Blocking: about a second for 400 MB.

    :param qemu: version of the QEMU that would use it.
    :raise SeedUnusable: incomplete, damaged, or of another version.
    :raise Cancelled:
    """
    manifest = read_manifest(folder)
    if manifest.qemu != qemu:
        raise SeedUnusable(f"the seed in {folder} was frozen by QEMU {manifest.qemu}, this is {qemu}")
    with ExitStack() as undo:
        memory = _load_file(folder / MEMORY_NAME, manifest.memory, cancelled)
        undo.callback(os.close, memory)
        state = _load_file(folder / STATE_NAME, manifest.state, cancelled)
        undo.pop_all()
    return LoadedSeed(manifest, memory, state)


def read_manifest(folder: Path) -> Manifest:
    """:raise SeedUnusable: there is none, or it makes no sense."""
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            text = file.read(MAX_MANIFEST + 1)
        manifest = msgspec.json.decode(text, type=Manifest)
    except OSError as error:
        raise SeedUnusable(f"there is no complete seed in {folder}", str(error)) from error
    except msgspec.DecodeError as error:
        raise SeedUnusable(f"the seed in {folder} has a damaged manifest", str(error)) from error
    if manifest.format != FORMAT:
        raise SeedUnusable(f"the seed in {folder} has format {manifest.format}, not {FORMAT}")
    return manifest


def _load_file(path: Path, note: FileNote, cancelled: Event) -> int:
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SeedUnusable(f"the seed lacks {path}", str(error)) from error
    with ExitStack() as stack, ExitStack() as undo:
        stack.callback(os.close, source)
        if os.fstat(source).st_size != note.size:
            raise SeedUnusable(f"{path} has another size than when it was written")
        target = os.memfd_create(f"seed-{path.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        undo.callback(os.close, target)
        os.ftruncate(target, note.size)
        try:
            digest = copy_sparse(source, target, note.size, cancelled)
        except OSError as error:
            raise SeedUnusable(f"{path} cannot be read", str(error)) from error
        if digest != note.sha256:
            raise SeedUnusable(f"{path} is damaged: its digest is not the one it had when it was written")
        fcntl.fcntl(target, fcntl.F_ADD_SEALS, ALL_SEALS)
        undo.pop_all()
    return target


# Copying


def copy_sparse(source: int, target: int, size: int, cancelled: Event) -> str:
    """Copy what is not zero from one file to another that has holes there; the digest of what was copied.

    :return: SHA-256 (hex) of the segments' SHA-256s, each over (offset, 8 bytes little-endian ‖ block) of the blocks
        that are not zero.
    :raise OSError: a file fails, is full, or is shorter than ``size``.
    :raise Cancelled:
    """
    starts = range(0, size, SEGMENT)
    threads = min(MAX_THREADS, os.cpu_count() or 1, max(len(starts), 1))
    with ThreadPoolExecutor(threads) as pool:
        parts = [
            pool.submit(_copy_segment, source, target, (start, min(start + SEGMENT, size)), cancelled)
            for start in starts
        ]
        return hashlib.sha256(b"".join(part.result() for part in parts)).hexdigest()


def _copy_segment(source: int, target: int, bounds: tuple[int, int], cancelled: Event) -> bytes:
    digest = hashlib.sha256()
    end = bounds[1]
    for offset in _data_blocks(source, *bounds):
        if cancelled.is_set():
            raise Cancelled
        block = os.pread(source, min(BLOCK, end - offset), offset)
        if len(block) != min(BLOCK, end - offset):
            raise OSError(errno.EIO, "shorter than it was")
        if block == _ZEROS[: len(block)]:
            continue
        digest.update(offset.to_bytes(8, "little"))
        digest.update(block)
        if os.pwrite(target, block, offset) != len(block):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return digest.digest()


def _data_blocks(fd: int, start: int, end: int) -> Iterator[int]:
    """Offsets of the blocks within a range that are not holes altogether."""
    offset = start
    while offset < end:
        try:
            data = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        offset = max(offset, data - data % BLOCK)
        while offset < hole:
            yield offset
            offset += BLOCK
