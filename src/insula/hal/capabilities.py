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
    """Disks can be plugged while the machine runs."""
    LINKS = "links"
    """Machines have network interfaces, joined to each other and apart again while they run."""
    ADOPT = "adopt"
    """Machines outlive the daemon and are found again by the next one."""
    HARDWARE_VIRTUALIZATION = "hardware-virtualization"
    """Guests run on the CPU itself, not in software emulation."""
    FORK = "fork"
    """A running machine can be frozen and forked."""
    BULK_MEMORY = "bulk-memory"
    """A running machine can be given memory that it shares with its session."""
    FRAMES = "frames"
    """A running machine can be given frame memory, so it can have windows."""
    DISPLAY = "display"
    """A machine can have a screen, a keyboard and a pointer of its own, for systems without our agent."""
    PCI_PASSTHROUGH = "pci-passthrough"
    """An IOMMU keeps a device that a machine is given to that machine's memory."""


EMULATED_KERNEL_OPTIONS = "mitigations=off tsc=reliable no_timer_check norandmaps"
"""Kernel options for guests where :attr:`Capability.HARDWARE_VIRTUALIZATION` is missing: an emulated CPU does not
speculate, so there is nothing to mitigate, and its timers need not be checked against each other. Programs at equal
addresses have their code translated once and not each time (docs/decisions/016). On a real CPU mitigations and
randomized addresses stay: they guard one program of a qube from another."""
