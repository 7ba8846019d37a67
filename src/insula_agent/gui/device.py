"""The frame memory as this qube sees it: a PCI device that the host plugs when windows are first asked for.

Its memory is mapped through sysfs, so no driver is needed. Written by the X server alone, never read: mapped so that
writes are combined, which real CPUs need for speed where they treat it as a device's.
"""

from __future__ import annotations

import _socket
import os
import time

from insula_proto import limits

DEVICES = "/sys/bus/pci/devices"
VENDOR, DEVICE = "0x1af4", "0x1110"
"""ivshmem (QEMU, docs/specs/ivshmem-spec.txt)."""
MEMORIES = ("resource2_wc", "resource2")
"""The first that is there."""
WAIT_S = 30.0
"""For the kernel to see it: a fifth of a second under emulation, seconds beside a busy boot."""
FILES_S = 0.02
"""Its files come a moment after it, and nothing tells of them."""

_EVENT = b"PCI_ID=1AF4:1110"
_EVENT_SIZE = 8192
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1


class NoFrames(Exception):
    """The host has plugged none."""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def find(devices: str = DEVICES) -> list[str]:
    """Folders in sysfs of all devices of this kind."""
    folders = [f"{devices}/{name}" for name in sorted(os.listdir(devices), reverse=True)]
    return [folder for folder in folders if _read(f"{folder}/device") == DEVICE and _read(f"{folder}/vendor") == VENDOR]


def memory_of(folder: str) -> str | None:
    """Path of its memory; None: not there yet, or another's: what the qube shares with its session looks the same but
    for its size (:mod:`insula_agent.bulk_memory`)."""
    for name in MEMORIES:
        path = f"{folder}/{name}"
        if os.path.exists(path):
            return None if os.stat(path).st_size == limits.BULK_SIZE else path
    return None


def _wait(devices: str) -> tuple[str, str]:
    # The kernel's own words about devices; udev need not have heard them yet. Listened to before looked: nothing is
    # missed in between.
    events = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
    try:
        events.bind((0, _KERNEL_GROUP))
        deadline = time.monotonic() + WAIT_S
        while True:
            folders = find(devices)
            for folder in folders:
                memory = memory_of(folder)
                if memory is not None:
                    return folder, memory
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoFrames("the host has plugged no frame memory")
            _until_told(events, FILES_S if folders else left)
    finally:
        events.close()


def _until_told(events: _socket.socket, seconds: float) -> None:
    """Return when something was told of the device, or after that time."""
    events.settimeout(seconds)
    try:
        while _EVENT not in events.recv(_EVENT_SIZE):
            pass
    except OSError:
        # Nothing came; or more than fits, and some of it was lost.
        return


def open_memory(devices: str = DEVICES) -> int:
    """Wait for the device, enable it and open its memory. :raise NoFrames: :raise OSError: as the kernel says."""
    return _open(*_wait(devices))


def open_if_there(devices: str = DEVICES) -> int | None:
    """As :func:`open_memory`, without waiting; None: it is not there yet. :raise OSError:"""
    for folder in find(devices):
        memory = memory_of(folder)
        if memory is not None:
            return _open(folder, memory)
    return None


def _open(folder: str, memory: str) -> int:
    with open(f"{folder}/enable", "w", encoding="ascii") as file:
        file.write("1")
    return os.open(memory, os.O_RDWR | os.O_CLOEXEC)
