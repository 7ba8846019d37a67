"""What a forked process goes through before its program runs: two steps, for the two processes a fork takes.

:func:`leave_host` makes the namespaces and an empty root, in a process that then forks the one that stays: a process
does not enter its own new pid namespace, its children do. :func:`give_up_rights` is the rest, in that child, which is
process 1 there. Nothing is needed of the file system any more: programs and libraries are in memory.

A step that fails raises OSError, and no program runs: there is no way to do without the sandbox.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.preload import syscalls
from insula.preload.syscalls import MountFlags, Namespaces

HOST_NAME = "session"

NO_CORE = 1
"""RLIMIT_CORE in bytes. Not 0: where ``core_pattern`` is a program the kernel heeds this value only (fs/coredump.c)."""

_EVERYWHERE = Namespaces.USER | Namespaces.MOUNT | Namespaces.PID | Namespaces.NET | Namespaces.IPC | Namespaces.UTS
_EMPTY = MountFlags.RDONLY | MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC
_MOUNT_POINT = "/proc"
"""Any folder that every host has; the empty root is put there before it becomes the root."""


@dataclass(frozen=True)
class Limits:
    files: int
    """RLIMIT_NOFILE, or less where the host allows less."""
    address_space: int
    """RLIMIT_AS in bytes."""
    file_size: int = 0
    """RLIMIT_FSIZE in bytes, of memory files too."""


def namespaces() -> Namespaces:
    """All kinds a process gets of its own; cgroup only where the kernel has it."""
    return _EVERYWHERE | Namespaces.CGROUP if Path("/proc/self/ns/cgroup").exists() else _EVERYWHERE


def become(uid: int) -> None:
    """Change to a host user and group, in no other group; only root can. Our memory stays ours to look into.

    :raise OSError: refused, or the number does not exist in this user namespace.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The kernel has /proc/self belong to root after a change of user; the id maps are written there.
    syscalls.set_dumpable(True)


def leave_host(kinds: Namespaces, paths: Sequence[str] = (), files: Sequence[tuple[str, bytes]] = ()) -> None:
    """Enter new namespaces, with a read-only root that has ``paths`` of the host, ``files``, and nothing else.

    :raise OSError: the kernel refuses, or a path is not there.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        syscalls.unshare(kinds)
    except OSError as error:
        hint = "does this system forbid user namespaces to ordinary users, or limit their number?"
        raise OSError(error.errno, f"{error.strerror}; {hint}") from error
    # Without this an ordinary user may not map a group (user_namespaces(7)).
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    # No user namespace inside this one: they are the usual way to reach kernel code that only root could reach.
    _write("/proc/sys/user/max_user_namespaces", "0")
    socket.sethostname(HOST_NAME)
    if paths or files:
        _root_with(paths, files)
    else:
        _empty_root()


def _write(path: str, text: str) -> None:
    # One write(2) each, as the kernel demands of id maps.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(fd)


def _empty_root() -> None:
    """pivot_root(2), "pivot_root(".", ".")": the old root is stacked below the new one, and taken away."""
    syscalls.mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
    syscalls.mount("insula", _MOUNT_POINT, "tmpfs", _EMPTY, "size=4096,nr_inodes=1,mode=0555")
    _enter_root()


def _enter_root() -> None:
    os.chdir(_MOUNT_POINT)
    syscalls.pivot_root(".", ".")
    syscalls.detach(".")
    os.chdir("/")


def _root_with(paths: Sequence[str], files: Sequence[tuple[str, bytes]]) -> None:
    """As :func:`_empty_root`, with some of the host in it, read-only."""
    syscalls.mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
    writable = _EMPTY & ~MountFlags.RDONLY
    syscalls.mount("insula", _MOUNT_POINT, "tmpfs", writable, "size=65536,nr_inodes=256,mode=0755")
    for path in paths:
        target = _MOUNT_POINT + path
        # (Without umask of ours: it is the folders of nobody.)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_symlink():
            Path(target).symlink_to(Path(path).readlink())
            continue
        if Path(path).is_dir():
            Path(target).mkdir(exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o400))
        syscalls.mount(path, target, None, MountFlags.BIND | MountFlags.REC)
        # What the host's mount forbids must stay forbidden (mount_namespaces(7)); the bits are the same numbers.
        kept = MountFlags(os.statvfs(target).f_flag & int(_EMPTY))
        flags = MountFlags.REMOUNT | MountFlags.BIND | MountFlags.RDONLY | MountFlags.NOSUID | MountFlags.NODEV
        syscalls.mount(None, target, None, flags | kept)
    for path, content in files:
        target = _MOUNT_POINT + path
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o400)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
    syscalls.mount(None, _MOUNT_POINT, None, MountFlags.REMOUNT | MountFlags.BIND | _EMPTY)
    _enter_root()


def give_up_rights(limits: Limits) -> None:
    """Bound what may be used, drop every capability, for good. :raise OSError:"""
    os.setsid()
    for kind, value in (
        (resource.RLIMIT_CORE, NO_CORE),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_AS, limits.address_space),
    ):
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))
    syscalls.drop_capabilities()
    syscalls.set_no_new_privs()


def end_growth() -> None:
    """No process or thread can be made from now on. :raise OSError:"""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def die_with(parent_pidfd: int) -> None:
    """Be killed when the parent ends. :raise ProcessLookupError: it has ended already."""
    syscalls.set_parent_death_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(parent_pidfd, select.POLLIN)
    if poll.poll(0):
        raise ProcessLookupError("the parent has ended")
