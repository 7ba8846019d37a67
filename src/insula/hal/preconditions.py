"""What every driver asks before it does something that cannot be taken back."""

from __future__ import annotations

from pathlib import Path

from insula.hal.driver import MachineSpec, MachineState
from insula.hal.errors import DriverError


def check_freeze(spec: MachineSpec, state: MachineState, folder: Path) -> None:
    """Whether a machine can be frozen into a folder now. :raise DriverError: nothing was done."""
    if not spec.freezable:
        raise DriverError(f"machine {spec.name!r} was not started to be frozen")
    if state is not MachineState.PAUSED:
        raise DriverError(f"machine {spec.name!r} is {state.value}, not paused")
    try:
        is_empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise DriverError(f"cannot use folder {folder}", str(error)) from error
    if not is_empty:
        raise DriverError(f"folder {folder} is not empty")
