"""Power states under their published names (admin-api §2)."""

from __future__ import annotations

from enum import StrEnum


class PowerState(StrEnum):
    HALTED = "Halted"
    TRANSIENT = "Transient"
    """Being started; not usable yet."""
    RUNNING = "Running"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    HALTING = "Halting"
    """Asked to shut down."""
    DYING = "Dying"
    CRASHED = "Crashed"
    NA = "NA"

    @property
    def is_on(self) -> bool:
        """Whether a machine exists, whatever it is doing."""
        return self not in (PowerState.HALTED, PowerState.NA, PowerState.CRASHED)
