"""Admission control: a start that the host's memory cannot bear is refused with figures, not killed half-way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from insula.model.errors import QubesMemoryError

HOST_RESERVE_MIB = 512
"""Never given to qubes: the host's own programs need room to act when memory is short."""


def available_mib(meminfo: str) -> int:
    """``MemAvailable`` of the text of ``/proc/meminfo``, in MiB."""
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) // 1024
    raise ValueError("no MemAvailable in /proc/meminfo")


def read_available_mib() -> int:
    return available_mib(Path("/proc/meminfo").read_text())


class MemoryLedger:
    """Memory promised to qubes that are just starting, which the kernel's figure does not show yet."""

    def __init__(self, available: Callable[[], int] = read_available_mib, reserve_mib: int = HOST_RESERVE_MIB) -> None:
        self._available = available
        self._reserve = reserve_mib
        self._promised = 0

    def available_mib(self) -> int:
        """What the kernel says it could give."""
        return self._available()

    @contextmanager
    def promise(self, name: str, mib: int) -> Iterator[None]:
        """Hold ``mib`` for the time of a start. :raise QubesMemoryError: there is not enough."""
        self.require(name, mib)
        self._promised += mib
        try:
            yield
        finally:
            self._promised -= mib

    def require(self, name: str, mib: int) -> None:
        """:raise QubesMemoryError: there are no ``mib`` to be promised now."""
        available = self._available()
        free = available - self._reserve - self._promised
        if mib > free:
            raise QubesMemoryError(
                f"Not enough memory to start {name}: it needs {mib} MiB, {max(free, 0)} MiB can be given"
                f" ({available} MiB available, {self._reserve} MiB kept for the host,"
                f" {self._promised} MiB promised to qubes that are starting)"
            )
