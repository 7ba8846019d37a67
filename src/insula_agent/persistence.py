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

from insula_agent import bind_dirs
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PRIVATE = "private"
VOLATILE = "volatile"
BLOCK = "/sys/block"
RW = "/rw"
TMP_EMPTIED = "/run/insula-tmp-emptied"
"""Exists once /tmp was emptied in this boot; an agent that is restarted must not do it again."""
BLANK_SIZE = 10 << 20
"""Bytes at the beginning that must be zero before a disk counts as new (agent-services §14)."""
BLANK_STEP = 1 << 18
"""Bytes of them looked at at once."""
SWAP_SIZE = 1 << 30
PAGE = 4096

# <linux/mount.h>
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096

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

RC_LOCAL = """\
#!/bin/sh
# Runs as root at the end of each boot of this qube, as long as this file is executable.
"""
FIREWALL_SCRIPT = """\
#!/bin/sh
# Runs as root when the firewall of this qube has been set up, as long as this file is executable.
"""
SUSPEND_BLACKLIST = """\
# Kernel modules that are removed before the host sleeps and loaded afterwards, one a line.
"""
CONFIG_FILES = (
    ("rc.local", RC_LOCAL, 0o755),
    ("qubes-firewall-user-script", FIREWALL_SCRIPT, 0o755),
    ("suspend-module-blacklist", SUSPEND_BLACKLIST, 0o644),
)


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
    """Mount everything. :raise PersistenceError, OSError:"""
    if persistence == "full":
        _empty_tmp()
    swap = find_disk(VOLATILE)
    if swap is not None:
        _start_swap(swap)
    private = find_disk(PRIVATE)
    if private is None:
        log("no private disk: nothing will be kept")
        return
    if not is_mounted(private, RW):
        _mount_private(private)
    _lay_out(user)
    for source, target, flags in plan_binds(persistence):
        if os.path.isdir(source):
            _bind(source, target, flags)
    if persistence != "full":
        _bind_dirs()


def _empty_tmp() -> None:
    """What the last run left in /tmp goes, once a boot, before anything of this one can be there."""
    try:
        os.close(os.open(TMP_EMPTIED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    _run(["find", "/tmp", "-xdev", "-mindepth", "1", "-delete"])  # noqa: S108 - the folder itself is meant


def find_disk(serial: str, block: str = BLOCK) -> str | None:
    """Device of the virtio disk with this serial; None if there is none."""
    for name in sorted(os.listdir(block)):
        if not name.startswith("vd"):
            continue
        with open(f"{block}/{name}/serial", encoding="ascii", errors="replace") as file:
            if file.read().strip() == serial:
                return f"/dev/{name}"
    return None


def is_mounted(device: str, folder: str) -> bool:
    """Whether what the folder shows is the file system of this block device."""
    return os.path.isdir(folder) and os.stat(folder).st_dev == os.stat(device).st_rdev


def _mount_private(device: str) -> None:
    size = _disk_size(device)
    with open(device, "rb", buffering=0) as file:
        # A known file system shows in the first page; only a disk without one is read further.
        found = parse_ext(file.read(PAGE))
        make, check, grow = plan_private(found, size, is_blank=found is None and is_blank(file.fileno()))
    if make:
        log("making a file system on the private disk")
        _run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", device])
    if check:
        log("checking the private disk")
        status = _run(["e2fsck", "-p", device], accept=_E2FSCK_FAILED - 1)
        log(f"e2fsck: exit status {status}")
    os.makedirs(RW, mode=0o755, exist_ok=True)
    _mount(device, RW, "ext4", MS_NOATIME, "discard")
    if grow:
        log("growing the file system of the private disk")
        _run(["resize2fs", device])


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


def _disk_size(device: str) -> int:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _lay_out(user: str) -> None:
    """First boot: configuration, home, /usr/local. Each appears by one rename, so an interrupted boot does no harm."""
    if not os.path.isdir(f"{RW}/config"):
        new = _fresh(f"{RW}/.config.new")
        os.mkdir(new, 0o755)
        for name, text, mode in CONFIG_FILES:
            with open(f"{new}/{name}", "w", encoding="ascii") as file:
                file.write(text)
            os.chmod(f"{new}/{name}", mode)
        _appear(new, f"{RW}/config")
    if not os.path.isdir(f"{RW}/usrlocal") and os.path.isdir("/usr/local.orig"):
        new = _fresh(f"{RW}/.usrlocal.new")
        _run(["cp", "-a", "/usr/local.orig", new])
        _appear(new, f"{RW}/usrlocal")
    os.makedirs(f"{RW}/home", mode=0o755, exist_ok=True)
    if not os.path.isdir(f"{RW}/home/{user}"):
        _make_home(user)


def _make_home(user: str) -> None:
    import pwd  # noqa: PLC0415 - only at the first boot

    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise PersistenceError(f"this template has no user {user!r}") from None
    new = _fresh(f"{RW}/home/.{user}.new")
    os.mkdir(new)
    os.chmod(new, 0o700)
    os.chown(new, account.pw_uid, account.pw_gid)
    if os.path.isdir("/etc/skel"):
        copy_for("/etc/skel", new, account.pw_uid, account.pw_gid)
    _appear(new, f"{RW}/home/{user}")


def copy_for(source: str, target: str, uid: int, gid: int) -> None:
    """Copy what is in a folder into another one, for a user: files, folders and links with their modes.

    Not by cp(1) and chown(1): the two would take longer to start than all of this.
    """
    with os.scandir(source) as entries:
        for entry in entries:
            path = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
                os.chown(path, uid, gid, follow_symlinks=False)
                continue
            if entry.is_dir():
                os.mkdir(path)
                copy_for(entry.path, path, uid, gid)
            elif entry.is_file():
                with open(entry.path, "rb") as original, open(path, "xb") as copy:
                    copy.write(original.read())
            else:
                log(f"{entry.path} is neither file nor folder nor link, and was not copied")
                continue
            os.chown(path, uid, gid)
            os.chmod(path, entry.stat().st_mode & 0o7777)


def _fresh(path: str) -> str:
    """The path, with what an interrupted boot left there removed."""
    if os.path.lexists(path):
        _run(["rm", "-rf", "--one-file-system", path])
    return path


def _appear(new: str, final: str) -> None:
    """Give a finished copy its name. What is in it is on disk first: else a machine that is killed soon after would
    have the name, and empty files below it."""
    os.sync()
    os.rename(new, final)


def _start_swap(device: str) -> None:
    """Swap is a help, not a promise: failing is reported and no more."""
    header = plan_swap(_disk_size(device))
    if header is None or _is_swap(device):
        return
    fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, header)
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        _call("swapon", device.encode(), 0)
    except OSError as error:
        log(f"no swap: {error}")


def _is_swap(device: str) -> bool:
    """Whether the kernel swaps to it already: an agent that was restarted finds what the first one did."""
    with open("/proc/swaps", encoding="ascii") as swaps:
        return any(line.split()[0] == device for line in swaps.readlines()[1:])


def _bind_dirs() -> None:
    binds: list[str] = []
    for folder in bind_dirs.FOLDERS:
        for fragment in fragments(folder):
            with open(fragment, encoding="utf-8", errors="replace") as file:
                text = file.read(bind_dirs.MAX_FRAGMENT)
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
        except (OSError, PersistenceError) as error:
            # One item of the user's that does not work must not keep the qube from starting.
            log(f"bind-dirs: {path}: {error}")


def _do(step: bind_dirs.BindStep) -> None:
    stored = bind_dirs.STORAGE + step.path
    if step.action == "copy":
        os.makedirs(os.path.dirname(stored), mode=0o755, exist_ok=True)
        new = _fresh(f"{bind_dirs.STORAGE}/.new")
        _run(["cp", "-a", step.path, new])
        _appear(new, stored)
    elif step.action == "make_folder":
        os.makedirs(step.path, mode=0o755, exist_ok=True)
    elif step.action == "make_file":
        os.makedirs(os.path.dirname(step.path), mode=0o755, exist_ok=True)
        os.close(os.open(step.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    else:
        _bind(stored, step.path, 0)


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


def _run(argv: Sequence[str], accept: int = 0) -> int:
    """Run a program; its exit status. :raise PersistenceError: it is above ``accept``."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    pid = os.posix_spawnp(argv[0], list(argv), environment)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if not 0 <= code <= accept:
        raise PersistenceError(f"{argv[0]} failed (exit status {code})")
    return code


def _call(function: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0. :raise OSError:"""
    import ctypes  # noqa: PLC0415 - cheaper than starting mount(8) once, but not free

    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    import ctypes  # noqa: PLC0415

    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def _bind(source: str, target: str, flags: int) -> None:
    if os.path.samefile(source, target):
        # Bound already; a second bind would hide the first one and be undone by nobody.
        return
    _mount(source, target, "none", MS_BIND, "")
    if flags:
        # Flags of a bind mount take a second call (mount(2)).
        _mount("none", target, "none", MS_BIND | MS_REMOUNT | flags, "")
