"""Where a PCI device of this host is: ``0000:03:00.0``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ADDRESS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-1][0-9a-f])\.([0-7])")
"""Domain, bus, device (five bits) and function (three bits), as the kernel writes them in sysfs."""


@dataclass(frozen=True, order=True)
class PciAddress:
    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """:raise ValueError: not of the form ``0000:03:00.0``, in lower case."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no PCI address of the form 0000:03:00.0")
        return cls(*(int(part, 16) for part in match.groups()))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"
