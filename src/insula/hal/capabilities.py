"""What a driver can do. Callers ask for a capability; they never ask which hypervisor it is."""

from __future__ import annotations

from enum import StrEnum


class Capability(StrEnum):
    PAUSE = "pause"
    BALLOON = "balloon"
    """Memory of a running machine can be taken and given back."""
    RESIZE_DISK = "resize-disk"
    """A disk can grow while the machine runs."""
    HOTPLUG = "hotplug"
    """Disks and NICs can be plugged while the machine runs."""
    ADOPT = "adopt"
    """Machines outlive the daemon and are found again by the next one."""
    HARDWARE_VIRTUALIZATION = "hardware-virtualization"
    """Guests run on the CPU itself, not in software emulation."""
    FORK = "fork"
    """A running machine can be frozen and forked."""
    PCI_PASSTHROUGH = "pci-passthrough"
