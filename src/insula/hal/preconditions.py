"""What every driver asks before it does something that cannot be taken back."""

from __future__ import annotations

from pathlib import Path

from insula.hal.driver import Disk, MachineSpec, MachineState
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


def check_become(own: MachineSpec, state: MachineState, spec: MachineSpec) -> None:
    """Whether a machine can become another one now. :raise DriverError: nothing was done."""
    if own.seed is None or own.seed != spec.seed:
        raise DriverError(f"machine {own.name!r} is no fork of the seed of {spec.name!r}")
    if own.host_number is None:
        raise DriverError(f"machine {own.name!r} is somebody already")
    if state is not MachineState.PAUSED:
        raise DriverError(f"machine {own.name!r} is {state.value}, not paused")


def goes_on(own: Disk, disk: Disk) -> bool:
    """Whether a disk continues what the machine has in its place, rather than replacing it."""
    below = own.source.layers[1:]
    return bool(below) and disk.source.layers[1:] == below
