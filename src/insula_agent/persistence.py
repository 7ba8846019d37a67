"""What a qube keeps, and where it shows: the private disk at /rw, /home, /usr/local, bind-dirs; swap on a volatile one.

Follows agent-services §14. Disks are found by the serial the host gave them, never by their order. Differences from the
published agent:

* The volatile disk is one swap area of at most 1 GiB, without a partition table: the published second partition
  serves a snapshot of a read-only root, and our host always gives a writable one.
* A private disk that is neither empty nor ext4 ends the boot with a message: the alternatives are to overwrite it, or
  to let the user work in a home that will be gone.
* Service ``custom-persist`` is not known yet.

An agent that was restarted in a running qube finds every step done and leaves it so, each for itself: the first one may
have ended between any two.

``plan_*`` functions decide from facts; the rest does it. System calls are used where a program would have to be
started (20 to 60 ms each under software emulation).
"""

from __future__ import annotations

import errno
import os
import struct
import time

from insula_agent import bind_dirs, files, private_layout, programs, syscalls
from insula_agent.log import log
from insula_agent.syscalls import MS_NOATIME, MS_NODEV, MS_NOSUID

PRIVATE = "private"
VOLATILE = "volatile"
BLOCK = "/sys/block"
RW = private_layout.RW
TMP_EMPTIED = "/run/insula-tmp-emptied"
"""Exists once /tmp was emptied in this boot; an agent that is restarted must not do it again."""
BLANK_SIZE = 10 << 20
"""Bytes at the beginning that must be zero before a disk counts as new (agent-services §14)."""
BLANK_STEP = 1 << 18
"""Bytes of them looked at at once."""
SWAP_SIZE = 1 << 30
SIZE_PATIENCE = 1.0
"""Seconds that a disk may have another size than what is on it says."""
PAGE = 4096

# ext4: https://docs.kernel.org/filesystems/ext4/globals.html, "Super Block"
_SUPERBLOCK = 1024
_EXT_MAGIC = 0xEF53
_STATE_CLEAN, _STATE_ERRORS = 1, 2
_INCOMPAT_64BIT = 0x80

# <linux/swap.h>, union swap_header: version 1 and last page at 1024, magic in the last 10 bytes of the page
_SWAP_INFO = 1024
_SWAP_MAGIC = b"SWAPSPACE2"

_E2FSCK_FAILED = 4
"""Exit status bits from here on: errors were left (e2fsck(8)); 1 and 2 mean corrected."""


class PersistenceError(Exception):
    """What this qube keeps cannot be reached; nothing of the user may run."""


class Ext:
    """The superblock's part that matters here."""

    __slots__ = ("is_clean", "size")

    def __init__(self, size: int, *, is_clean: bool) -> None:
        self.size = size
        """Bytes."""
        self.is_clean = is_clean
        """No errors noted. A journal that must be replayed is no error: mounting does that."""


def parse_ext(head: bytes) -> Ext | None:
    """Read the beginning of a disk (at least 2 KiB) as ext2/3/4; None if it is none."""
    block = head[_SUPERBLOCK : _SUPERBLOCK + 1024]
    if len(block) < 1024:
        return None
    magic, state = struct.unpack_from("<HH", block, 0x38)
    (blocks,) = struct.unpack_from("<I", block, 0x04)
    (log_size,) = struct.unpack_from("<I", block, 0x18)
    (incompatible,) = struct.unpack_from("<I", block, 0x60)
    if magic != _EXT_MAGIC or log_size > 6:
        return None
    if incompatible & _INCOMPAT_64BIT:
        blocks += struct.unpack_from("<I", block, 0x150)[0] << 32
    return Ext(blocks * (1024 << log_size), is_clean=bool(state & _STATE_CLEAN) and not state & _STATE_ERRORS)


def plan_private(found: Ext | None, size: int, *, is_blank: bool) -> tuple[bool, bool, bool]:
    """What a private disk needs: (make a file system, check it, grow it once mounted).

    :param found: the file system on it.
    :raise PersistenceError: something unknown is on it.
    """
    if found is not None:
        # A last group that is too small for its own tables is left unused: not worth asking resize2fs at each boot.
        return False, not found.is_clean, size - found.size >= 1 << 20
    if not is_blank:
        raise PersistenceError("the private disk is neither empty nor ext4; it was left as it is")
    return True, False, False


def plan_swap(size: int) -> bytes | None:
    """Header page of a swap area on a disk of ``size`` bytes, at most 1 GiB; None if it is too small to be of use."""
    pages = min(size, SWAP_SIZE) // PAGE
    if pages < 256:
        return None
    header = bytearray(PAGE)
    struct.pack_into("<III", header, _SWAP_INFO, 1, pages - 1, 0)
    header[-len(_SWAP_MAGIC) :] = _SWAP_MAGIC
    return bytes(header)


def plan_binds(persistence: str) -> list[tuple[str, str, int]]:
    """Binds (source, target, flags) after /rw is there.

    Where the whole root persists, /usr/local is part of it and is what based qubes start from; else it is private.
    """
    local = f"{RW}/usrlocal" if persistence != "full" else "/usr/local.orig"
    return [(f"{RW}/home", "/home", MS_NOSUID | MS_NODEV), (local, "/usr/local", 0)]


def fragments(folder: str) -> list[str]:
    """Paths of ``*.conf`` in a folder, sorted; none if it is absent."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [f"{folder}/{name}" for name in names if name.endswith(".conf") and not name.startswith(".")]


# --- acting --------------------------------------------------------------------------------------------------------


def apply(persistence: str, user: str) -> None:
    """Mount everything. :raise PersistenceError, LayoutError, ProgramFailed, OSError:"""
    if persistence == "full":
        _empty_tmp()
    private = find_disk(PRIVATE)
    if private is None:
        log("no private disk: nothing will be kept")
        return
    if not is_mounted(private, RW):
        _mount_private(private)
    private_layout.lay_out(user, is_kept=persistence != "none")
    for source, target, flags in plan_binds(persistence):
        if os.path.isdir(source):
            syscalls.bind(source, target, flags)
    if persistence != "full":
        _bind_dirs()


def _empty_tmp() -> None:
    """What the last run left in /tmp goes, once a boot, before anything of this one can be there."""
    try:
        os.close(os.open(TMP_EMPTIED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    programs.run(["find", "/tmp", "-xdev", "-mindepth", "1", "-delete"])  # noqa: S108 - the folder itself is meant


def find_disk(serial: str, block: str = BLOCK) -> str | None:
    """Device of the virtio disk with this serial; None if there is none."""
    for name in sorted(os.listdir(block)):
        if name.startswith("vd") and files.read(f"{block}/{name}/serial").strip() == serial:
            return f"/dev/{name}"
    return None


def is_mounted(device: str, folder: str) -> bool:
    """Whether what the folder shows is the file system of this block device."""
    return os.path.isdir(folder) and os.stat(folder).st_dev == os.stat(device).st_rdev


def _mount_private(device: str) -> None:
    # In a fork another disk is here than when the kernel last read from it.
    syscalls.forget_buffers(device)
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A known file system shows in the first page; only a disk without one is read further.
        found = parse_ext(os.pread(fd, PAGE, 0))
        size = _size(fd, 0 if found is None else found.size)
        make, check, grow = plan_private(found, size, is_blank=found is None and is_blank(fd))
    finally:
        os.close(fd)
    if make:
        log("making a file system on the private disk")
        options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        programs.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, device])
    if check:
        log("checking the private disk")
        status = programs.run(["e2fsck", "-p", device], accept=_E2FSCK_FAILED - 1)
        log(f"e2fsck: exit status {status}")
    os.makedirs(RW, mode=0o755, exist_ok=True)
    syscalls.mount(device, RW, "ext4", MS_NOATIME, "discard")
    if grow:
        log("growing the file system of the private disk")
        programs.run(["resize2fs", device])


def is_blank(fd: int) -> bool:
    """Whether the first :data:`BLANK_SIZE` bytes, or all of a smaller disk, are zero.

    Each byte looked at by itself, as ``strip`` does, took half a second under software emulation.
    """
    buffer, zeros = bytearray(BLANK_STEP), bytes(BLANK_STEP)
    position = 0
    while position < BLANK_SIZE and (size := os.preadv(fd, [buffer], position)):
        if (buffer if size == BLANK_STEP else buffer[:size]) != zeros[:size]:
            return False
        position += size
    return True


def _size(fd: int, expected: int) -> int:
    """Bytes of a disk. A fork's may have another size than its seed's had; the kernel learns it from an interrupt, so
    one that is smaller than its file system is given a moment to become larger."""
    deadline = time.monotonic() + SIZE_PATIENCE
    while (size := os.lseek(fd, 0, os.SEEK_END)) < expected and time.monotonic() < deadline:
        time.sleep(0.002)
    return size


def start_swap() -> None:
    """Swap on the volatile disk. It is a help, not a promise: failing is reported and no more."""
    device = find_disk(VOLATILE)
    if device is None or _is_swap(device):
        return
    try:
        syscalls.forget_buffers(device)
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            header = plan_swap(_size(fd, 0))
            if header is None:
                return
            # Not brought to the disk: the kernel reads it where this leaves it, and nobody after this run.
            os.pwrite(fd, header, 0)
        finally:
            os.close(fd)
        syscalls.call("swapon", device.encode(), 0)
    except OSError as error:
        log(f"no swap: {error}")


def announce(serial: str) -> None:
    """Have udev look at a disk again, whose content is not what it was at boot."""
    device = find_disk(serial)
    if device is not None:
        files.write(f"{BLOCK}/{device[5:]}/uevent", "change")


def _is_swap(device: str) -> bool:
    """Whether the kernel swaps to it already: an agent that was restarted finds what the first one did."""
    return any([line.split()[0] == device for line in files.read("/proc/swaps").splitlines()[1:]])  # noqa: C419


def _bind_dirs() -> None:
    binds: list[str] = []
    for folder in bind_dirs.FOLDERS:
        for fragment in fragments(folder):
            text = files.read(fragment)[: bind_dirs.MAX_FRAGMENT]
            binds, complaints = bind_dirs.parse_fragment(text, binds)
            for complaint in complaints:
                log(f"{fragment}: {complaint}")
    if len(binds) > bind_dirs.MAX_BINDS:
        log(f"{len(binds)} bind-dirs; only the first {bind_dirs.MAX_BINDS} are done")
    for item in binds[: bind_dirs.MAX_BINDS]:
        path = bind_dirs.resolve(item, _read_link) if bind_dirs.is_bindable(item) else None
        if path is None:
            log(f"bind-dirs: {item!r} cannot be kept")
            continue
        try:
            for step in bind_dirs.plan_bind(path, _kind(path), _kind(bind_dirs.STORAGE + path)):
                _do(step)
        except (OSError, programs.ProgramFailed) as error:
            # One item of the user's that does not work must not keep the qube from starting.
            log(f"bind-dirs: {path}: {error}")


def _do(step: bind_dirs.BindStep) -> None:
    stored = bind_dirs.STORAGE + step.path
    if step.action == "copy":
        os.makedirs(os.path.dirname(stored), mode=0o755, exist_ok=True)
        new = f"{bind_dirs.STORAGE}/.new"
        if os.path.lexists(new):
            programs.run(["rm", "-rf", "--one-file-system", new])
        programs.run(["cp", "-a", step.path, new])
        # On the disk before it has its name, like private_layout.
        syscalls.sync_file_system(RW)
        os.rename(new, stored)
    elif step.action == "make_folder":
        os.makedirs(step.path, mode=0o755, exist_ok=True)
    elif step.action == "make_file":
        os.makedirs(os.path.dirname(step.path), mode=0o755, exist_ok=True)
        os.close(os.open(step.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    else:
        syscalls.bind(stored, step.path)


def _kind(path: str) -> str | None:
    if os.path.isdir(path):
        return "folder"
    return "file" if os.path.lexists(path) else None


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise
