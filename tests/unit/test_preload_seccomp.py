"""The filter, run by a small interpreter of its instructions, with the system calls of two kinds of machines."""

from __future__ import annotations

import os
import struct

import pytest

from insula.preload import seccomp
from insula.preload.seccomp import ALLOW, KILL_PROCESS, MACHINES, REFUSE

FORBIDDEN = {
    "x86_64": {
        "open": 2, "stat": 4, "socket": 41, "connect": 42, "bind": 49, "clone": 56, "fork": 57,
        "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "setuid": 105, "prctl": 157, "pivot_root": 155,
        "chroot": 161, "mount": 165, "umount2": 166, "add_key": 248, "keyctl": 250, "openat": 257, "unshare": 272,
        "perf_event_open": 298, "setns": 308, "process_vm_readv": 310, "seccomp": 317, "memfd_create": 319,
        "bpf": 321, "execveat": 322, "userfaultfd": 323, "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435,
        "process_madvise": 440,
    },
    "aarch64": {
        "openat": 56, "socket": 198, "connect": 203, "bind": 200, "clone": 220, "execve": 221, "kill": 129,
        "ptrace": 117, "setuid": 146, "prctl": 167, "mount": 40, "keyctl": 219, "unshare": 97, "setns": 268,
        "bpf": 280, "userfaultfd": 282, "io_uring_setup": 425, "clone3": 435,
    },
}  # fmt: skip
"""Numbers of asm/unistd_64.h and asm-generic/unistd.h. (``mprotect`` is allowed without PROT_EXEC; see below.)"""

PROT_READ, PROT_EXEC = 1, 4
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
FIONBIO, TIOCSTI = 0x5421, 0x5412


def decision(program: bytes, data: bytes) -> int:
    """Run a filter over ``struct seccomp_data``, as the kernel does. A jump out of the program is an error."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        if code == seccomp.LOAD_WORD:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == seccomp.JUMP_IF_EQUAL:
            position += if_true if accumulator == value else if_false
        elif code == seccomp.JUMP_IF_BITS:
            position += if_true if accumulator & value else if_false
        else:
            assert code == seccomp.RETURN
            return int(value)


def asked(
    machine: str, number: int, *arguments: int, architecture: int | None = None, reaches_network: bool = False
) -> int:
    known = MACHINES[machine]
    values = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, known.architecture if architecture is None else architecture, 0, *values)
    return decision(seccomp.assemble(machine, reaches_network=reaches_network), data)


@pytest.mark.parametrize("machine", MACHINES)
def test_only_what_is_listed_is_allowed(machine: str) -> None:
    known = MACHINES[machine]
    listed = set(known.numbers.values()) | set(known.mapping.values())
    answers = {number: asked(machine, number) for number in range(1024)}
    # Without arguments: mapping without PROT_EXEC is allowed, ioctl 0 and a socket pair of family 0 are not.
    assert {number for number, answer in answers.items() if answer == ALLOW} == listed
    assert set(answers.values()) == {ALLOW, REFUSE}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_reaches_beyond_the_process_is_refused(machine: str) -> None:
    assert {name for name, number in FORBIDDEN[machine].items() if asked(machine, number) != REFUSE} == set()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("number", [-1, 2**31, 0x40000000, 0x40000001])
def test_odd_numbers_are_refused(machine: str, number: int) -> None:
    """0x40000000 marks the x32 calls of x86-64, which have other numbers for the same deeds."""
    assert asked(machine, number % 2**32) == REFUSE


@pytest.mark.parametrize("machine", MACHINES)
def test_memory_may_be_mapped_but_not_to_execute(machine: str) -> None:
    for number in MACHINES[machine].mapping.values():
        assert asked(machine, number, 0, 4096, PROT_READ) == ALLOW
        assert asked(machine, number, 0, 4096, PROT_READ | PROT_EXEC) == REFUSE


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_about_ioctl_and_socket_pairs(machine: str) -> None:
    known = MACHINES[machine]
    assert asked(machine, known.ioctl, 3, FIONBIO) == ALLOW
    assert asked(machine, known.ioctl, 3, TIOCSTI) == REFUSE
    assert asked(machine, known.socketpair, AF_UNIX) == ALLOW
    assert asked(machine, known.socketpair, AF_INET) == REFUSE


@pytest.mark.parametrize("machine", MACHINES)
def test_other_instruction_set_of_the_same_cpu_ends_the_process(machine: str) -> None:
    i386 = 0x40000003
    assert asked(machine, MACHINES[machine].numbers["read"], architecture=i386) == KILL_PROCESS


def test_unknown_machine_has_no_filter_so_no_process() -> None:
    with pytest.raises(NotImplementedError, match="pdp11"):
        seccomp.assemble("pdp11")


@pytest.mark.parametrize("machine", MACHINES)
def test_program_that_leads_to_the_network_connects_and_does_not_listen(machine: str) -> None:
    numbers = MACHINES[machine].numbers
    forbidden = FORBIDDEN[machine]

    def answer(number: int, *arguments: int) -> int:
        return asked(machine, number, *arguments, reaches_network=True)

    assert answer(forbidden["connect"]) == ALLOW
    assert answer(forbidden["socket"], AF_INET) == ALLOW
    for family in (AF_UNIX, AF_INET6, AF_NETLINK, AF_PACKET):
        assert answer(forbidden["socket"], family) == REFUSE
    for name in ("listen", "accept4"):
        assert answer(numbers[name]) == REFUSE
    still = forbidden.keys() - {"connect", "socket", "openat"}
    assert {name for name in still if answer(forbidden[name]) != REFUSE} == set()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("flags", "expected"), [(os.O_RDONLY | os.O_CLOEXEC, ALLOW), (os.O_WRONLY, REFUSE),
    (os.O_RDWR, REFUSE), (os.O_CREAT, REFUSE)])  # fmt: skip
def test_program_that_leads_to_the_network_opens_files_to_read_alone(machine: str, flags: int, expected: int) -> None:
    assert asked(machine, FORBIDDEN[machine]["openat"], 0, 0, flags, reaches_network=True) == expected
