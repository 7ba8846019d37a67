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
CONTROL_GROUPS = "/sys/fs/cgroup"
SERVICES = "system.slice"
OWN_GROUP = "insula-agent.service"
"""Ours, and that of the commands we run."""
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
    mount_once()
    os.sync()
    files.write(COMPACT_MEMORY, "1")
    # What is left in memory for good need not be looked through in every fork.
    gc.collect()
    gc.freeze()
    hush(is_wanted=True)


def mount_once() -> None:
    """Pass once through what a fork's start passes through, so that its pages are mapped already; what watches mounts
    does so too, systemd above all."""
    os.makedirs(REHEARSAL, exist_ok=True)
    files.write(f"{REHEARSAL}/file", files.read("/etc/hostname"))
    syscalls.mount(REHEARSAL, REHEARSAL, "none", syscalls.MS_BIND)
    syscalls.call("umount2", REHEARSAL.encode(), 0)
    os.unlink(f"{REHEARSAL}/file")
    os.rmdir(REHEARSAL)


def _other_groups() -> list[str]:
    """Control groups that are neither ours nor hold ours."""
    groups = []
    for folder in (CONTROL_GROUPS, f"{CONTROL_GROUPS}/{SERVICES}"):
        with os.scandir(folder) as entries:
            groups += [entry.path for entry in entries if entry.is_dir() and entry.name not in (SERVICES, OWN_GROUP)]
    return groups


def hush(*, is_wanted: bool) -> None:
    """Have all other processes run only when nothing of ours wants to, or no longer: what systemd, udev, dbus and the
    journal notice in a fork (a new clock, mounts), and the rest of their boot, would take the virtual CPU by turns with
    what its first commands wait for. Services that start later are in none of these groups. By control group: nice
    values count within one only, and being delegated to us they are in force."""
    for group in _other_groups():
        switch = f"{group}/cpu.idle"
        if os.path.exists(switch):
            files.write(switch, "1" if is_wanted else "0")


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
