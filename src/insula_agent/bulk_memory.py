"""The memory that this qube shares with its session, as the qube sees it: a PCI device that the host plugs.

It is mapped through sysfs, so no driver is needed; only root may. It comes some time after the host has offered it, and
is known from other devices of its kind by its size and by the token at its beginning.
"""

from __future__ import annotations

import os

from insula_proto import bulk

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap

DEVICES = "/sys/bus/pci/devices"
VENDOR, DEVICE = "0x1af4", "0x1110"
"""ivshmem (QEMU, docs/specs/ivshmem-spec.txt)."""
MEMORY = "resource2"


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def find(token: bytes, devices: str = DEVICES) -> mmap.mmap | None:
    """The memory that begins with the token, mapped; None: it is not there yet."""
    try:
        names = os.listdir(devices)
    except OSError:
        return None
    # Devices that were plugged are on buses of their own, which come last.
    for name in sorted(names, reverse=True):
        folder = f"{devices}/{name}"
        if _read(f"{folder}/device") == DEVICE and _read(f"{folder}/vendor") == VENDOR:
            memory = _map(folder)
            if memory is not None and memory[: len(token)] == token:
                return memory
    return None


def _map(folder: str) -> mmap.mmap | None:
    import mmap  # noqa: PLC0415 - most qubes need none

    try:
        if os.stat(f"{folder}/{MEMORY}").st_size != bulk.SIZE:
            return None
        with open(f"{folder}/enable", "w", encoding="ascii") as file:
            file.write("1")
        fd = os.open(f"{folder}/{MEMORY}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        # Its files come one after the other.
        return None
    try:
        return mmap.mmap(fd, bulk.SIZE)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
