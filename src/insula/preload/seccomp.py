"""The filter of system calls a forked process may make, assembled as a pure function.

It is a list of what may be done: read, write and wait on descriptors that are there, take connections from a listening
socket, memory, clock, random numbers, end. Everything else fails with EPERM, so that code which tries gets an ordinary
OSError: opening a file, making a socket (but a pair of unix sockets), executing, forking, signals to others, ptrace,
mounting, namespaces, keys, BPF, io_uring, and whatever a newer kernel invents. Memory cannot be made executable, so
code cannot be brought along.

Programs that show windows may make memory files as well; those that lead to the network may make sockets of IPv4,
connect and read files, but not listen.

The program sees ``struct seccomp_data`` (``linux/seccomp.h``): number at 0, architecture at 4, arguments from 16 on,
eight bytes each. Only low halves of arguments are looked at: those compared here are ``int`` in the kernel.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass

# Instructions of linux/bpf_common.h: class | size | mode, or class | operation | operand.
LOAD_WORD = 0x20
"""``BPF_LD | BPF_W | BPF_ABS``"""
JUMP_IF_EQUAL = 0x15
"""``BPF_JMP | BPF_JEQ | BPF_K``"""
JUMP_IF_BITS = 0x45
"""``BPF_JMP | BPF_JSET | BPF_K``"""
RETURN = 0x06
"""``BPF_RET | BPF_K``"""

# linux/seccomp.h
ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
REFUSE = 0x00050000 | errno.EPERM
"""``SECCOMP_RET_ERRNO``"""

_NUMBER = 0
_ARCHITECTURE = 4
_ARGUMENTS = 16

_PROT_EXEC = 4
"""``asm-generic/mman-common.h``"""
_AF_UNIX = 1
_AF_INET = 2
_WRITES = 0o103
"""``O_WRONLY | O_RDWR | O_CREAT`` of ``asm-generic/fcntl.h``."""
_FIONBIO = 0x5421
_FIOCLEX = 0x5451
_FIONCLEX = 0x5450
"""``asm-generic/ioctls.h``: what ``socket.setblocking`` and ``os.set_inheritable`` use."""
_FIONREAD = 0x541B


@dataclass(frozen=True)
class Machine:
    architecture: int
    """``AUDIT_ARCH_…`` of ``linux/audit.h``."""
    numbers: Mapping[str, int]
    """System calls that may be made whatever their arguments. A call that this machine does not have is left out."""
    mapping: Mapping[str, int]
    """Those that may be made without PROT_EXEC; it is the third argument of both."""
    ioctl: int
    socketpair: int


_X86_64 = Machine(
    architecture=0xC000003E,
    # asm/unistd_64.h
    numbers={
        # descriptors
        "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "readv": 19, "writev": 20, "select": 23,
        "dup": 32, "dup2": 33, "fcntl": 72, "tee": 276, "splice": 275, "dup3": 292, "pipe2": 293, "pselect6": 270,
        "ppoll": 271, "eventfd2": 290,
        "epoll_wait": 232, "epoll_ctl": 233, "epoll_pwait": 281, "epoll_create1": 291, "epoll_pwait2": 441,
        # sockets that are there
        "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "getsockname": 51,
        "getpeername": 52, "setsockopt": 54, "getsockopt": 55, "listen": 50, "accept4": 288,
        # memory
        "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28,
        # clock, random numbers, itself
        "gettimeofday": 96, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "nanosleep": 35,
        "getrandom": 318, "getpid": 39, "gettid": 186, "getppid": 110, "getuid": 102, "getgid": 104, "geteuid": 107,
        "getegid": 108, "sched_yield": 24, "futex": 202, "membarrier": 324, "rseq": 334,
        # signal handlers and the end
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131, "restart_syscall": 219,
        "exit": 60, "exit_group": 231,
    },
    mapping={"mmap": 9, "mprotect": 10},
    ioctl=16,
    socketpair=53,
)  # fmt: skip

_AARCH64 = Machine(
    architecture=0xC00000B7,
    # asm-generic/unistd.h
    numbers={
        "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "readv": 65, "writev": 66, "dup": 23,
        "fcntl": 25, "tee": 77, "splice": 76, "dup3": 24, "pipe2": 59, "pselect6": 72, "ppoll": 73, "eventfd2": 19,
        "epoll_ctl": 21, "epoll_pwait": 22, "epoll_create1": 20, "epoll_pwait2": 441,
        "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "shutdown": 210, "getsockname": 204,
        "getpeername": 205, "setsockopt": 208, "getsockopt": 209, "listen": 201, "accept4": 242,
        "munmap": 215, "brk": 214, "mremap": 216, "madvise": 233,
        "gettimeofday": 169, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "nanosleep": 101,
        "getrandom": 278, "getpid": 172, "gettid": 178, "getppid": 173, "getuid": 174, "getgid": 176, "geteuid": 175,
        "getegid": 177, "sched_yield": 124, "futex": 98, "membarrier": 283, "rseq": 293,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sigaltstack": 132, "restart_syscall": 128,
        "exit": 93, "exit_group": 94,
    },
    mapping={"mmap": 222, "mprotect": 226},
    ioctl=29,
    socketpair=199,
)  # fmt: skip

_MORE: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"ftruncate": 77, "memfd_create": 319},
    "aarch64": {"ftruncate": 46, "memfd_create": 279},
}
"""What a program that shows windows makes too: memory that it shares with its display server."""


@dataclass(frozen=True)
class _Network:
    """Of a program that leads to the network."""

    numbers: Mapping[str, int]
    """As in :class:`Machine`."""
    socket: int
    """Of IPv4 only; its first argument is the family."""
    openat: int
    """For reading; its third argument has the flags."""


_NETWORK: Mapping[str, _Network] = {
    "x86_64": _Network({"connect": 42, "newfstatat": 262}, socket=41, openat=257),
    "aarch64": _Network({"connect": 203, "newfstatat": 79}, socket=198, openat=56),
}
_INWARDS = frozenset(("listen", "accept4"))
"""What such a program must not do."""

MACHINES: Mapping[str, Machine] = {"x86_64": _X86_64, "aarch64": _AARCH64}
"""Keys are what ``os.uname().machine`` says."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """``struct sock_filter`` (``linux/filter.h``); jumps count instructions from the next one."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    return _instruction(LOAD_WORD, _ARGUMENTS + 8 * index)


def _only(number: int, check: list[bytes]) -> list[bytes]:
    """If it is that system call, what ``check`` says; it must end in a return. Else go on."""
    return [_instruction(JUMP_IF_EQUAL, number, 0, len(check)), *check]


def _one_of(index: int, values: tuple[int, ...]) -> list[bytes]:
    allow = [
        _instruction(JUMP_IF_EQUAL, value, len(values) - position, 0) for position, value in enumerate(values)
    ]  # each to the last instruction, past the refusal
    return [_argument(index), *allow, _instruction(RETURN, REFUSE), _instruction(RETURN, ALLOW)]


def _none_of(index: int, bits: int) -> list[bytes]:
    return [
        _argument(index),
        _instruction(JUMP_IF_BITS, bits, 0, 1),
        _instruction(RETURN, REFUSE),
        _instruction(RETURN, ALLOW),
    ]


def assemble(machine: str, *, shows_windows: bool = False, reaches_network: bool = False) -> bytes:
    """Return the filter for a kind of machine, ``struct sock_filter`` after another.

    :raise NotImplementedError: no numbers are known for that kind of machine.
    """
    if machine not in MACHINES:
        raise NotImplementedError(f"no filter of system calls for {machine} machines")
    known = MACHINES[machine]
    program = [
        _instruction(LOAD_WORD, _ARCHITECTURE),
        _instruction(JUMP_IF_EQUAL, known.architecture, 1, 0),
        _instruction(RETURN, KILL_PROCESS),  # another instruction set of the same CPU: other numbers
        _instruction(LOAD_WORD, _NUMBER),
    ]
    for number in known.mapping.values():
        program += _only(number, _none_of(2, _PROT_EXEC))
    requests: tuple[int, ...] = (_FIONBIO, _FIOCLEX, _FIONCLEX)
    allowed = {**known.numbers, **(_MORE[machine] if shows_windows else {})}
    if reaches_network:
        network = _NETWORK[machine]
        requests = (*requests, _FIONREAD)
        allowed = {name: number for name, number in allowed.items() if name not in _INWARDS} | dict(network.numbers)
        program += _only(network.socket, _one_of(0, (_AF_INET,)))
        program += _only(network.openat, _none_of(2, _WRITES))
    program += _only(known.ioctl, _one_of(1, requests))
    program += _only(known.socketpair, _one_of(0, (_AF_UNIX,)))
    numbers = sorted(allowed.values())
    program += [
        _instruction(JUMP_IF_EQUAL, number, len(numbers) - position, 0) for position, number in enumerate(numbers)
    ]
    program += [_instruction(RETURN, REFUSE), _instruction(RETURN, ALLOW)]
    return b"".join(program)
