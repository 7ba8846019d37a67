"""Sets up the namespaces of ``namespace.py`` from within and becomes the wanted program.

Run by path with ``python3 -I -S``; standard library only. Arguments: descriptor to say "user namespace is there"
on (one byte), descriptor to wait on for the id maps (one byte; end of file: give up), then the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

INSIDE = "/mnt"
COVERED = ("/home", "/root", "/media", "/srv")
"""Folders with files of people: nothing that packages run needs to see them."""

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
# <linux/mount.h>
MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), flags, data.encode())
    _check(_libc.mount(*arguments), f"mount {target}")


def _die_with_parent() -> None:
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _become_root(ready: int, go: int) -> None:
    _check(_libc.unshare(CLONE_NEWUSER), "unshare")
    os.write(ready, b"u")
    os.close(ready)
    if os.read(go, 1) != b"g":
        sys.exit("the id maps were not set")
    os.close(go)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # Changing ids clears the death signal, so it is set only now.
    _die_with_parent()


def _arrange_mounts() -> None:
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    # "." is the work folder, opened before the ids changed: no right on the folders above it is needed.
    _mount(".", INSIDE, "", MS_BIND | MS_REC)
    for folder in COVERED:
        if os.path.isdir(folder):  # noqa: PTH112 (pathlib would be the slowest import of this file)
            _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64k")
    _mount("proc", "/proc", "proc", 0)
    os.chdir(INSIDE)


def _first_process(argv: list[str]) -> NoReturn:
    """Process 1 of the namespace: runs the program, buries orphans, ends (and so kills all) with it."""
    _die_with_parent()
    _arrange_mounts()
    child = os.fork()
    if child == 0:
        os.execvp(argv[0], argv)  # noqa: S606 - the caller is our own
    while True:
        pid, status = os.wait()
        if pid == child:
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> NoReturn:
    ready, go, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    _become_root(ready, go)
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS), "unshare")
    child = os.fork()
    if child == 0:
        _first_process(argv)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
