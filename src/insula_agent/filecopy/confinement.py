"""A place where nothing is but one folder: for the process that takes files from another qube.

Own user and mount namespace, the folder bound onto itself with nodev, nosuid, noexec, root changed to it, every
capability dropped. So even a flaw in what follows finds nothing to write to elsewhere, and no root is involved: the
service runs as the user all the time. It is the second line: the first one is that everything is done by open folders
(:mod:`insula_agent.filecopy.incoming`). Where the kernel lets no user make namespaces, it is the only one, and said so.
"""

from __future__ import annotations

import os

from insula_agent import syscalls

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_REC = 16384
MS_PRIVATE = 1 << 18
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
"""<linux/sched.h>, <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>"""


class NotConfined(Exception):
    """The kernel does not let us."""


def separate() -> None:
    """Enter namespaces of our own; what is opened from now on can be bound. :raise NotConfined:"""
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid == 0:
            syscalls.call("unshare", CLONE_NEWNS)
        else:
            syscalls.call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
            # Ourselves, and nobody else.
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        syscalls.mount("none", "/", "none", MS_REC | MS_PRIVATE)
    except OSError as error:
        raise NotConfined(f"no namespaces: {error}") from error


def bind(folder: int, parent: int, name: str) -> int:
    """Bind an open folder onto itself; return it, opened anew through ``parent``. :raise NotConfined:"""
    flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    place = f"/proc/self/fd/{folder}"
    try:
        syscalls.mount(place, place, "none", syscalls.MS_BIND)
        bound = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        syscalls.mount("none", f"/proc/self/fd/{bound}", "none", flags)
    except OSError as error:
        raise NotConfined(f"no mount: {error}") from error
    if not os.path.sameopenfile(folder, bound):
        os.close(bound)
        raise NotConfined("the folder was replaced meanwhile")
    return bound


def enclose(folder: int) -> None:
    """Make an open folder the root, and drop every capability. :raise OSError:"""
    os.fchdir(folder)
    os.chroot(".")
    drop_capabilities()


def drop_capabilities() -> None:
    """None is left, and no program that is started could bring one. :raise OSError:"""
    import ctypes  # noqa: PLC0415 - loaded already

    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    syscalls.call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    syscalls.call("prctl", _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
