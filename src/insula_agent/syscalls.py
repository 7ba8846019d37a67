"""System calls that Python's standard library has no function for.

Through the C library by ``ctypes``: starting a program instead (``mount``, ``swapon``, ``blockdev``) takes 20 to 60 ms
each under software emulation. ``ctypes`` itself is imported late, because a restarted agent needs none of this.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# <linux/mount.h>
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096

_BLKFLSBUF = 0x1261
"""<linux/fs.h>: _IO(0x12, 97)."""

_functions: dict[str, Callable[..., int]] = {}


def load() -> None:
    """Have everything ready, so that the first call takes no longer than the others."""
    for name in ("mount", "umount2", "swapon", "syncfs"):
        _function(name)
    import fcntl  # noqa: F401, PLC0415 - imported so that it is there


def _function(name: str) -> Callable[..., int]:
    import ctypes  # noqa: PLC0415 - cheaper than starting mount(8) once, but not free

    if name not in _functions:
        _functions[name] = getattr(ctypes.CDLL(None, use_errno=True), name)
    return _functions[name]


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0. :raise OSError:"""
    if _function(name)(*arguments) != 0:
        import ctypes  # noqa: PLC0415

        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2). :raise OSError:"""
    import ctypes  # noqa: PLC0415

    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def bind(source: str, target: str, flags: int = 0) -> None:
    """Show ``source`` at ``target``, with these flags; done already is fine. :raise OSError:"""
    if os.path.samefile(source, target):
        # A second bind would hide the first one and be undone by nobody.
        return
    mount(source, target, "none", MS_BIND)
    if flags:
        # Flags of a bind mount take a second call (mount(2)).
        mount("none", target, "none", MS_BIND | MS_REMOUNT | flags)


def sync_file_system(path: str) -> None:
    """Write out the one file system that ``path`` is on, unlike sync(2). :raise OSError:"""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("syncfs", fd)
    finally:
        os.close(fd)


def forget_buffers(device: str) -> None:
    """Drop what the kernel remembers of a block device's content. :raise OSError:"""
    import fcntl  # noqa: PLC0415

    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKFLSBUF)
    finally:
        os.close(fd)
