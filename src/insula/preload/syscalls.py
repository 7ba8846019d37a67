"""System calls that Python 3.11 has no function for, by way of the C library; each raises OSError with its name.

Constants are the kernel's; the header that defines them is named with each group.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.close_range.argtypes = (ctypes.c_uint, ctypes.c_uint, ctypes.c_int)


class Namespaces(IntFlag):
    """``CLONE_NEW…`` of ``linux/sched.h``."""

    MOUNT = 0x00020000
    CGROUP = 0x02000000
    UTS = 0x04000000
    IPC = 0x08000000
    USER = 0x10000000
    PID = 0x20000000
    NET = 0x40000000


class MountFlags(IntFlag):
    """``MS_…`` of ``linux/mount.h``."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 1 << 12
    REC = 1 << 14
    PRIVATE = 1 << 18


MNT_DETACH = 2
"""``linux/fs.h``, umount2(2)."""

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_SECCOMP_MODE_FILTER = 2
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
"""``linux/seccomp.h``."""
_SECCOMP = {"x86_64": 317, "aarch64": 277}
"""Number of seccomp(2); keys are what ``os.uname().machine`` says."""

_CAPABILITY_VERSION_3 = 0x20080522
"""``linux/capability.h``: two words of each set."""
MAX_CAPABILITY = 63
"""No kernel can have more in version 3."""

_LAST_FD = 0xFFFFFFFF
_MAX_NAME = 15
"""Bytes of a thread's name, ``TASK_COMM_LEN`` without its NUL."""


class _CapabilityHeader(ctypes.Structure):
    """``struct __user_cap_header_struct``."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    """``struct __user_cap_data_struct``, two of them."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _SocketFilterProgram(ctypes.Structure):
    """``struct sock_fprog`` of ``linux/filter.h``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(namespaces: Namespaces) -> None:
    """Move this process to new namespaces (its children only, as for PID). :raise OSError:"""
    _check(_libc.unshare(namespaces), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: MountFlags, options: str | None = None) -> None:
    """:raise OSError:"""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check(_libc.mount(texts[0], texts[1], texts[2], flags, texts[3]), f"mount {target}")


def detach(target: str) -> None:
    """Unmount ``target`` and all below it, in use or not. :raise OSError:"""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """:raise OSError:"""
    _check(_libc.pivot_root(new_root.encode(), put_old.encode()), "pivot_root")


def _prctl(option: int, value: int, what: str, third: int = 0) -> None:
    _check(_libc.prctl(option, value, third, 0, 0), f"prctl {what}")


def set_parent_death_signal(number: int) -> None:
    """Be sent ``number`` when the thread that forked us ends. Lost when the user changes."""
    _prctl(_PR_SET_PDEATHSIG, number, "PR_SET_PDEATHSIG")


def set_dumpable(dumpable: bool) -> None:  # noqa: FBT001, RUF100 - a fact, not a switch
    """Whether others of our user may look into our memory, and ``/proc/self`` is ours."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable), "PR_SET_DUMPABLE")


def set_name(name: str) -> None:
    """Name of this thread, as ``ps`` shows it; cut to 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:_MAX_NAME])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer), "PR_SET_NAME")


def set_no_new_privs() -> None:
    """No program executed from now on can give us rights. Cannot be taken back."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def become_subreaper() -> None:
    """Orphans among our descendants become our children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def drop_capabilities() -> None:
    """Empty every set of capabilities, the bounding set included. :raise OSError:"""
    for capability in range(MAX_CAPABILITY + 1):
        try:
            _prctl(_PR_CAPBSET_DROP, capability, "PR_CAPBSET_DROP")
        except OSError:
            if capability == 0:
                raise
            break  # the kernel's last capability was the one before
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, "PR_CAP_AMBIENT_CLEAR_ALL")
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def close_from(first: int) -> None:
    """Close every descriptor from ``first`` on. :raise OSError: Linux before 5.9."""
    _check(_libc.close_range(first, _LAST_FD, 0), "close_range")


def install_filter(program: bytes) -> None:
    """Put this process under a seccomp filter (``struct sock_filter`` after another). Needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    described = _SocketFilterProgram(len(program) // 8, ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, "PR_SET_SECCOMP", ctypes.addressof(described))


def install_filter_on_all_threads(program: bytes) -> None:
    """As :func:`install_filter`, for every thread there is. :raise OSError: one of them cannot be; none is then."""
    buffer = ctypes.create_string_buffer(program, len(program))
    described = _SocketFilterProgram(len(program) // 8, ctypes.addressof(buffer))
    result = _libc.syscall(
        ctypes.c_long(_SECCOMP[os.uname().machine]),
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(described),
    )
    # (A positive number is a thread that has filters of its own.)
    _check(result, "seccomp")
