"""A program of the preloaded parent that tries what a session must not be able to do, and tells how each attempt ended.

It is what an attacker would run who has taken a session over. Its one descriptor is a socket: the report goes there as
JSON, then it waits for the other end to close, or for a byte, its exit code.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import json
import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

import msgspec

from insula.preload import syscalls
from insula.preload.forks import ForkedProcess, PreloadedParent
from insula.preload.messages import Fork
from insula.preload.syscalls import MountFlags, Namespaces

PROGRAM = "insula.testing.sandbox_probe"
ALLOWED = "allowed"
FILES = 256
MAX_REPORT = 65536

_libc = ctypes.CDLL(None, use_errno=True)
_PTRACE_ATTACH = 16
_PROT_READ_EXEC = 5
_page = mmap.mmap(-1, mmap.PAGESIZE)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _make_page_executable() -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(_page))
    _call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), _PROT_READ_EXEC)


ATTEMPTS: dict[str, dict[str, Callable[[], object]]] = {
    "file": {
        "open a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "open the root": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        "list the root": lambda: os.listdir("/"),  # noqa: PTH208 - the plainest way
        "look at the root": lambda: os.stat("/"),  # noqa: PTH116 - the plainest way
        "open /proc": lambda: os.open("/proc/self/status", os.O_RDONLY),
        "make a file": lambda: os.open("/made", os.O_RDWR | os.O_CREAT, 0o600),
        "make a file in memory": lambda: os.memfd_create("made"),
        "leave the root": lambda: os.chroot("/"),
        "import what is not there": lambda: importlib.import_module("sqlite3"),
    },
    "process": {
        "fork": os.fork,
        "execute": lambda: os.execv("/bin/true", ["true"]),
        "execute with spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "start a thread": lambda: threading.Thread(target=print).start(),
    },
    "other process": {
        "signal the parent": lambda: os.kill(os.getppid() or 1, signal.SIGTERM),
        "signal all": lambda: os.kill(-1, signal.SIGTERM),
        "hold a process": lambda: os.pidfd_open(1),
        "trace": lambda: _call("ptrace", _PTRACE_ATTACH, 1, None, None),
        "read its memory": lambda: _call("process_vm_readv", 1, None, 0, None, 0, 0),
        "change its limits": lambda: _call("prlimit", 1, 0, None, None),
        "lower its priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 1),
    },
    "network": {
        "internet socket": lambda: socket.socket(socket.AF_INET),
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "internet socket pair": lambda: socket.socketpair(socket.AF_INET),
    },
    "kernel": {
        "user namespace": lambda: syscalls.unshare(Namespaces.USER),
        "network namespace": lambda: syscalls.unshare(Namespaces.NET),
        "mount": lambda: syscalls.mount("x", "/", "tmpfs", MountFlags(0)),
        "become root": lambda: os.setuid(0),
        "host name": lambda: socket.sethostname("x"),
        "personality": lambda: _call("personality", 0xFFFFFFFF),
        "prctl": lambda: syscalls.set_dumpable(True),
        "System V shared memory": lambda: _call("shmget", 0, mmap.PAGESIZE, 0o1600),
        "System V messages": lambda: _call("msgget", 0, 0o1600),
        "System V semaphores": lambda: _call("semget", 0, 1, 0o1600),
    },
    "code": {
        "executable memory": lambda: mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC),
        "make memory executable": _make_page_executable,
    },
    "memory": {"more than the bound": lambda: bytearray(2**31)},
    "own": {"socket pair": socket.socketpair, "pipe": os.pipe, "memory": lambda: bytearray(2**24)},
}
"""By what is attempted. Those of ``own`` are what a session does all the time."""


class Report(msgspec.Struct):
    outcomes: dict[str, dict[str, str]]
    """Of :data:`ATTEMPTS`: :data:`ALLOWED`, the name of the error number, or of the exception."""
    uid: list[int]
    pid: int
    environment: dict[str, str]
    argv: list[str]
    path: list[str]
    descriptors: list[int]


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except (ImportError, MemoryError, RuntimeError) as error:
        return type(error).__name__
    return ALLOWED


def _is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def main(descriptors: Sequence[int]) -> int:
    """Program of the preloaded parent."""
    if len(descriptors) != 1:
        raise ValueError(f"{len(descriptors)} descriptors")
    report = Report(
        descriptors=[number for number in range(FILES) if _is_open(number)],
        outcomes={
            kind: {name: outcome(attempt) for name, attempt in attempts.items()} for kind, attempts in ATTEMPTS.items()
        },
        uid=[os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        pid=os.getpid(),
        environment=dict(os.environ),
        argv=sys.argv,
        path=sys.path,
    )
    with socket.socket(fileno=descriptors[0]) as connection:
        try:
            connection.sendall(json.dumps(msgspec.to_builtins(report)).encode())
            told = connection.recv(1)
        except ConnectionError:
            return 0
        return told[0] if told else 0


def request(uid: int | None) -> Fork:
    """What to ask the parent for."""
    return Fork(0, PROGRAM, uid, FILES, 2**30)


async def fork_probe(parent: PreloadedParent, uid: int | None, *, stderr: int) -> tuple[ForkedProcess, socket.socket]:
    """Return a probe and the socket it reports to."""
    return await fork_reporting(parent, request(uid), stderr=stderr)


async def fork_reporting(parent: PreloadedParent, wanted: Fork, *, stderr: int) -> tuple[ForkedProcess, socket.socket]:
    """As :func:`fork_probe`, for any program whose one descriptor is the socket it reports to."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        with theirs:
            return await parent.fork(wanted, [stderr, theirs.fileno()]), ours
    except BaseException:
        ours.close()
        raise
