"""What a VMM gets as open descriptors: disks, kernel, initrd and listening sockets.

:class:`MachineFiles` opens all of it and closes the daemon's copies at the end of a ``with`` block, whether the start
worked or not; after that only the VMM holds them. Sockets are bound here and *listen* from the start, so the sandbox
needs no writable path, a client may connect before the VMM runs, and a later daemon connects to the same paths again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from insula.hal.driver import MachineSpec
from insula.hal.errors import DriverError
from insula.hal.qemu.chain import DiskDescriptors
from insula.hal.qemu.command import Descriptors
from insula.hal.qemu.seed_files import LoadedSeed, machine_memory
from insula.model.block import BlockSource

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
NIC_SOCKET = "nic.sock"
STATUS_FILE = "vmm.status"
"""First line: the machine's uuid. Second: bubblewrap's report, with the VMM's pid, written before the VMM runs. So a
VMM can be found by its folder alone, whatever becomes of the daemon that started it."""

MAX_BOOT_FILE = 1 << 30
"""Bytes of a kernel or initrd."""
BOOT_HEAD = 64 * 1024
"""Bytes of a compressed kernel that a fork's VMM gets: it looks at the setup header (at most 33 KiB, Linux
Documentation/arch/x86/boot.rst) and would keep a copy of all the rest for nobody."""
_ELF_MAGIC = b"\x7fELF"


def channel_socket(channel: str) -> str:
    """File name of a channel's socket; the prefix keeps it apart from all other names in the folder."""
    return f"channel-{channel}.sock"


def socket_names(spec: MachineSpec) -> tuple[str, ...]:
    return (QMP_SOCKET, CONSOLE_SOCKET, *(channel_socket(name) for name in spec.channels))


def remove_runtime_files(runtime_dir: Path) -> None:
    """Remove what a start makes in the folder, except for the console log. Absent files are fine."""
    channels = runtime_dir.glob(channel_socket("*"))
    for name in (QMP_SOCKET, CONSOLE_SOCKET, NIC_SOCKET, STATUS_FILE):
        (runtime_dir / name).unlink(missing_ok=True)
    for path in channels:
        path.unlink(missing_ok=True)


def refuse_second(runtime_dir: Path) -> None:
    """Replacing the sockets of a living VMM would make it unreachable. :raise DriverError: there is one."""
    try:
        connect(runtime_dir / QMP_SOCKET).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return
    except BlockingIOError:
        # Somebody listens and has a client already.
        pass
    raise DriverError(f"a VMM already serves {runtime_dir}")


class MachineFiles:
    """Context manager; its attributes are valid inside it.

    Unlinks ``unlink_top`` layers once they are open, but not those of a fork: if that fails, its spec can still be
    started without a seed.

    :param vmm_uid: user of the VMM if it is not the daemon's.
    :param seed: what to fork, if anything.
    :raise DriverError: on entering; nothing stays open, no socket stays behind.
    """

    descriptors: Descriptors
    status: IO[bytes]
    """:data:`STATUS_FILE`, begun; bubblewrap appends to it."""

    def __init__(self, spec: MachineSpec, vmm_uid: int | None, seed: LoadedSeed | None = None) -> None:
        self._spec = spec
        self._vmm_uid = vmm_uid
        self._seed = seed
        self._stack = ExitStack()
        self.keys = KeyFiles()
        """Closed by the caller."""
        self.memory: int | None = None
        """Memory file of a freezable machine; closed by the caller."""

    def __enter__(self) -> MachineFiles:
        folder = self._spec.runtime_dir
        with ExitStack() as stack, explained(f"machine {self._spec.name!r}"):
            # Before anything is touched: what is in the folder may belong to a living VMM.
            refuse_second(folder)
            with ExitStack() as undo:
                undo.callback(remove_runtime_files, folder)
                undo.callback(self._close_kept)
                self.descriptors = self._open(stack)
                self.status = stack.enter_context((folder / STATUS_FILE).open("wb", buffering=0))
                # Held by whatever inherits the file, so that a start nobody finishes can be waited for (`is_in_use`).
                fcntl.flock(self.status, fcntl.LOCK_SH)
                self.status.write(f"{self._spec.uuid}\n".encode())
                undo.pop_all()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close_kept(self) -> None:
        self.keys.wipe()
        if self.memory is not None:
            os.close(self.memory)
            self.memory = None

    def _open(self, stack: ExitStack) -> Descriptors:
        spec = self._spec
        kernel, initrd = self._boot_files(stack)
        disks = tuple(open_disk(stack, self.keys, disk.source) for disk in spec.disks)
        cd = None if spec.cd is None else open_disk(stack, self.keys, spec.cd)
        qmp, console, *channels = (self._listen(stack, name) for name in socket_names(spec))
        nic = self._listen(stack, NIC_SOCKET)
        memory, state = self._memory(stack)
        if self._seed is None:
            unlink_thrown_away(spec)
        return Descriptors(kernel, initrd, qmp, console, tuple(channels), nic, disks, memory, state, cd)

    def _memory(self, stack: ExitStack) -> tuple[int | None, int | None]:
        if self._seed is not None:
            return self._seed.open(stack)
        if self._spec.freezable:
            self.memory = machine_memory(self._spec.memory_mib << 20)
        return self.memory, None

    def _boot_files(self, stack: ExitStack) -> tuple[int | None, int | None]:
        spec = self._spec
        if spec.kernel is None or spec.initrd is None:
            return None, None
        if self._seed is None:
            return self._boot_file(stack, spec.kernel), self._boot_file(stack, spec.initrd)
        # A fork never boots: its guest's reboot ends the machine. So a part of the kernel is enough, and anything will
        # do for an initrd. An uncompressed kernel is mapped, not copied, and has to be whole.
        head = _own(stack, os.memfd_create("kernel-head", os.MFD_CLOEXEC))
        with spec.kernel.open("rb", buffering=0) as kernel:
            os.write(head, kernel.read(BOOT_HEAD))
        is_elf = os.pread(head, len(_ELF_MAGIC), 0) == _ELF_MAGIC
        return self._boot_file(stack, spec.kernel) if is_elf else head, _own(stack, os.dup(head))

    def _boot_file(self, stack: ExitStack, path: Path) -> int:
        fd = _own(stack, _open_block(path, os.O_RDONLY))
        status = os.fstat(fd)
        if not 0 < status.st_size <= MAX_BOOT_FILE or not stat.S_ISREG(status.st_mode):
            raise DriverError(f"{path} is no kernel or initrd: not a file of 1 byte to 1 GiB")
        if self._vmm_uid is None or status.st_mode & stat.S_IROTH:
            return fd
        # The VMM opens the descriptor's link in /proc anew, with its own rights. A memory file has no owner's mode.
        copy = _own(stack, os.memfd_create(path.name, os.MFD_CLOEXEC))
        with open(fd, "rb", closefd=False) as source, open(copy, "wb", closefd=False) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        return copy

    def _listen(self, stack: ExitStack, name: str) -> int:
        path = self._spec.runtime_dir / name
        path.unlink(missing_ok=True)
        server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with short_path(path) as address:
            server.bind(address)
        # QEMU serves one client at a time; nobody else has a reason to queue.
        server.listen(1)
        return server.fileno()


class KeyFiles:
    """Passphrases in memory files for a VMM to read once.

    :meth:`wipe` overwrites them; the VMM has the same files open, so nothing is left there either.
    """

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        """Descriptor → length."""

    def add(self, key: bytes) -> int:
        fd = os.memfd_create("key", os.MFD_CLOEXEC)
        self._fds[fd] = os.write(fd, key)
        return fd

    def wipe(self) -> None:
        """Overwrite and close all; idempotent."""
        while self._fds:
            fd, length = self._fds.popitem()
            os.pwrite(fd, bytes(length), 0)
            os.close(fd)


def open_disk(stack: ExitStack, keys: KeyFiles, source: BlockSource) -> DiskDescriptors:
    """Open all layers of a disk, for writing only the top one; ``stack`` closes them. :raise OSError, DriverError:"""
    top = os.O_RDWR if source.writable else os.O_RDONLY
    access = (top, *(os.O_RDONLY for _ in source.layers[1:]))
    layers = zip(source.layers, access, strict=True)
    opened = tuple(_own(stack, _open_block(layer.path, mode)) for layer, mode in layers)
    return DiskDescriptors(opened, None if source.key is None else keys.add(source.key))


def unlink_thrown_away(spec: MachineSpec) -> None:
    for disk in spec.disks:
        if disk.source.unlink_top:
            disk.source.layers[0].path.unlink()


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of at most 107 bytes (``sun_path``, unix(7)) for a socket at any path, through an open folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def connect(path: Path, *, is_named: bool = False) -> socket.socket:
    """Connect to a listening unix socket; non-blocking.

    :param is_named: give our end a name of its own first, by which the other end can be told from others.
    :raise OSError: nobody listens, or its queue is full.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if is_named:
            client.bind("")  # the kernel chooses one that is free (unix(7), autobind)
        with short_path(path) as address:
            client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def _own(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _open_block(path: Path, access: int) -> int:
    """Open a regular file or block device. O_NONBLOCK: a FIFO in its place must not hang the daemon."""
    fd = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        os.set_blocking(fd, True)
        return fd
    os.close(fd)
    raise DriverError(f"{path} is neither a file nor a block device")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """:raise DriverError: in place of an OSError."""
    try:
        yield
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        raise DriverError(f"{what}: cannot use{place}: {error.strerror}", str(error)) from error


@dataclass(frozen=True)
class StatusNote:
    """What :data:`STATUS_FILE` says."""

    uuid: str
    pid: int


def is_in_use(runtime_dir: Path) -> bool:
    """Whether a process lives that was started with the status file of this folder: a VMM, noted there yet or not, or
    its sandbox."""
    try:
        with (runtime_dir / STATUS_FILE).open("rb") as status:
            fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_status(runtime_dir: Path) -> StatusNote | None:
    """None if there is no complete note: no VMM was started in that folder."""
    try:
        uuid, report, *_ = (runtime_dir / STATUS_FILE).read_text(encoding="utf-8").splitlines()
        pid = json.loads(report)["child-pid"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return StatusNote(uuid, pid) if uuid and isinstance(pid, int) else None
