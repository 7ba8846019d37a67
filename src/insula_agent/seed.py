"""A machine that is nobody's: it boots up, waits to be frozen, and wakes up as somebody (docs/decisions/009).

The host says so by the key ``/insula-seed``. Then nothing of the private and volatile disks is touched, and the boot
goes on in two halves, joined by a *gate*, a FIFO::

    agent READY ─► sysinit, udev, dbus, logind ─► rests, is frozen
                └► insula-identity.service waits at the gate ……… fork: identity applied, gate opened
                                                                       └► journal starts anew, basic.target, the rest

What runs before the gate is a short list of the system's own (drop-ins in ``rootfs``); everything else, above all what
a user installed, is ordered after ``basic.target`` and so starts in the fork, as it does after a cold start.

The journal of a seed is kept nowhere: what is logged goes to the kernel's log, which the fork's journal reads from the
beginning, under its own machine and boot id.
"""

from __future__ import annotations

import errno
import gc
import os

from insula_agent import files, persistence, programs, syscalls
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "/insula-seed"
RUN = "/run/insula"
GATE = f"{RUN}/gate"
BOOTED = f"{RUN}/booted"
"""Made by insula-seed.service, when all before the gate has started and udev has nothing more to do."""
REPORTING_TIME = 3.0
"""Seconds the kernel takes to tell the host of free pages: it begins 2 s after the last was freed
(mm/page_reporting.c). Frozen before, every fork would tell of all of them."""
BOOT_LIMIT = 150.0
"""Seconds until a boot counts as complete although it is not: better a seed that still does something than none."""
JOURNAL_SETTINGS = "/run/systemd/journald.conf.d/90-insula-seed.conf"
_JOURNAL_SETTINGS_TEXT = """\
[Journal]
Storage=none
ReadKMsg=no
ForwardToKMsg=yes
MaxLevelKMsg=info
"""
JOURNAL_GROUP = "/sys/fs/cgroup/system.slice/systemd-journald.service/cgroup.procs"
COMPACT_MEMORY = "/proc/sys/vm/compact_memory"
PROCESSES = "/proc"
HUSHED = f"{RUN}/hushed"
"""Processes that go after everything else, one a line: number, the nice value it had."""
LEAST = 19
REHEARSAL = f"{RUN}/rehearsal"
SIGTERM = 15

REHEARSALS = (["/bin/sh", "-l", "-c", ":"], ["/bin/bash", "-l", "-c", ":"], ["/usr/bin/python3", "-I", "-c", ""])
"""What first commands of a qube are made of, run once: their files are then in the memory that all forks share."""


def is_seed(keys: Mapping[str, bytes]) -> bool:
    return keys.get(KEY) == b"1"


def prepare() -> None:
    """Before systemd goes on: shut the gate, have the journal keep nothing. Repeated is fine.

    :raise OSError: this cannot be a seed.
    """
    os.makedirs(RUN, mode=0o755, exist_ok=True)
    try:
        os.mkfifo(GATE, 0o600)
    except FileExistsError:
        log("the gate is there already")
    os.makedirs(os.path.dirname(JOURNAL_SETTINGS), mode=0o755, exist_ok=True)
    files.write(JOURNAL_SETTINGS, _JOURNAL_SETTINGS_TEXT)


def is_booted() -> bool:
    return os.path.exists(BOOTED)


def settle() -> None:
    """Do once what every fork would have to do for itself, and give back what no fork needs.

    The page cache stays: forks share it. Free memory is made contiguous, because free pages go back to the host in
    large pieces only, and a page that went back takes no room in the seed.
    """
    syscalls.load()
    for name in (persistence.PRIVATE, persistence.VOLATILE):
        # Not read by us, but by udev, which looks for file systems.
        device = persistence.find_disk(name)
        if device is not None:
            syscalls.forget_buffers(device)
    for argv in REHEARSALS:
        if os.path.exists(argv[0]):
            try:
                programs.run(argv)
            except programs.ProgramFailed as error:
                log(f"rehearsal: {error}")
    _rehearse()
    os.sync()
    files.write(COMPACT_MEMORY, "1")
    # What is left in memory for good need not be looked through in every fork.
    gc.collect()
    gc.freeze()
    hush()


def _rehearse() -> None:
    """Pass once through what a fork's start passes through, so that its pages are mapped already."""
    os.makedirs(REHEARSAL, exist_ok=True)
    files.write(f"{REHEARSAL}/file", files.read("/etc/hostname"))
    syscalls.mount(REHEARSAL, REHEARSAL, "none", syscalls.MS_BIND)
    syscalls.call("umount2", REHEARSAL.encode(), 0)
    os.unlink(f"{REHEARSAL}/file")
    os.rmdir(REHEARSAL)


def hush() -> None:
    """Have all other processes go after everything else: what a fork's kernel, systemd and udev notice (a new clock,
    mounts) would take the one virtual CPU by turns with what the first command waits for."""
    lines = []
    for name in os.listdir(PROCESSES):
        # Threads of the kernel have no command line.
        if name.isdigit() and int(name) != os.getpid() and files.read(f"{PROCESSES}/{name}/cmdline"):
            lines.append(f"{name} {os.getpriority(os.PRIO_PROCESS, int(name))}\n")
            os.setpriority(os.PRIO_PROCESS, int(name), LEAST)
    files.write(HUSHED, "".join(lines))


def rouse() -> None:
    """Undo :func:`hush`, for this process too: one that systemd has started since is as it was then."""
    for line in files.read(HUSHED).splitlines():
        pid, nice = [int(word) for word in line.split()]
        try:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
        except ProcessLookupError:
            continue
    if os.path.exists(HUSHED):
        os.unlink(HUSHED)
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def is_gated() -> bool:
    """Whether this is a seed, or a fork of one whose second half of the boot has not begun."""
    return os.path.exists(GATE)


def open_gate() -> bool:
    """Let the second half of the boot begin; False: nobody waits at the gate yet, ask again."""
    try:
        fd = os.open(GATE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    rouse()
    _renew_journal()
    os.close(fd)
    os.unlink(GATE)
    return True


def look_again() -> None:
    """The disks hold something else than at the seed's boot; programs ask udev what."""
    for name in (persistence.PRIVATE, persistence.VOLATILE):
        persistence.announce(name)


def _renew_journal() -> None:
    """End the journal's process; systemd starts another, keeping the streams of all services for it."""
    if not os.path.exists(JOURNAL_SETTINGS):
        return
    os.unlink(JOURNAL_SETTINGS)
    for line in files.read(JOURNAL_GROUP).splitlines():
        _kill(int(line))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, SIGTERM)
    except ProcessLookupError:
        return
