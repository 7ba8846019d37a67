"""Errors of the hypervisor layer.

HalError
├── DriverError       the hypervisor refused or failed; the machine is gone or as before, the docstring says
│   └── SeedUnusable  a frozen machine cannot be forked: damaged, or of another version
├── MachineGone       the machine ended before or during the call
└── Unsupported       the driver lacks a capability
"""

from __future__ import annotations

from insula.hal.capabilities import Capability


class HalError(Exception):
    """Base class."""


class DriverError(HalError):
    """The hypervisor refused. ``detail`` holds its own words (for the log, not for guests)."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class SeedUnusable(DriverError):
    """A frozen machine cannot be forked; starting without it may work."""


class MachineGone(HalError):
    """The machine has ended; there is nothing to talk to."""


class Unsupported(HalError):
    def __init__(self, capability: Capability, driver: str) -> None:
        super().__init__(f"hypervisor driver {driver!r} cannot do {capability.value!r}")
        self.capability = capability
