"""Which accelerator runs the guests: KVM only where it truly works, else software emulation (TCG).

A ``/dev/kvm`` that opens is no proof: on nested hosts without ``vmx`` or ``svm`` among the CPU's flags, stock kernels
crawl or die in it. So both are asked for: a node that may be used, and the flag. The decision is a pure function of
facts that :mod:`insula.hal.hostinfo` gathers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

TCG_CACHE_MIB = 128
"""Translation cache of one guest, at most; what of it was filled counts as that qube's memory (QEMU's own default is
1 GiB). When it is full it is emptied and filled anew. A start that was rehearsed needs 45 to 55 MiB, a system that has
booted to its end, or a rehearsed window, somewhat more than 64 (docs/decisions/029)."""

HARDWARE_FLAGS = frozenset({"vmx", "svm"})
"""Intel's and AMD's virtualization flag in ``/proc/cpuinfo``."""


class AcceleratorName(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


EMULATED_CPU = "Westmere-v1,rdrand=on"
"""All that Debian needs, AES, and random numbers of the host: without them Linux has none for its first seconds, and a
fork of such a machine does not renew its own when it learns that it is one. With ``max`` a boot takes twice the CPU
time (9.2 s against 4.8 s, QEMU 7.2): Linux meets an AMD CPU it does not know and wide vector registers to save, all of
it emulated."""


@dataclass(frozen=True)
class KvmNode:
    """What was found about ``/dev/kvm``."""

    usable: bool
    """It opened for reading and writing as the user who runs the VMM, and speaks the stable API."""
    problem: str = ""
    """Why not, for people."""


@dataclass(frozen=True)
class Accelerator:
    name: AcceleratorName
    reason: str
    """Why this one, for people."""

    @property
    def is_hardware(self) -> bool:
        return self.name is AcceleratorName.KVM

    def arguments(self) -> Iterator[str]:
        """QEMU's options for it, the CPU model included."""
        if self.is_hardware:
            yield from ("-accel", "kvm", "-cpu", "host")
        else:
            yield from ("-accel", f"tcg,thread=multi,tb-size={TCG_CACHE_MIB}", "-cpu", EMULATED_CPU)


def choose(node: KvmNode, cpu_flags: Collection[str]) -> Accelerator:
    """Decide; ``cpu_flags`` are those of ``/proc/cpuinfo``."""
    if not node.usable:
        return Accelerator(AcceleratorName.TCG, node.problem)
    if HARDWARE_FLAGS.isdisjoint(cpu_flags):
        return Accelerator(
            AcceleratorName.TCG, "/dev/kvm exists, but the CPU has neither vmx nor svm: guests would crawl or die in it"
        )
    return Accelerator(AcceleratorName.KVM, "/dev/kvm works and the CPU has hardware virtualization")
