"""A running qube: what must be held while it runs, and how it is written down so that the next daemon finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from insula.hal.driver import Machine, MachineSpec
from insula.model.block import BlockSource, VolumeSpec


def _path_to_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a machine record holds no {type(value).__name__}")


def _path_from_text(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"a machine record holds no {kind.__name__}")


class MachineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the store keeps of a running machine (``Store.put_machine``)."""

    driver: str
    spec: MachineSpec
    """As it was started: properties may have changed since."""
    volumes: tuple[VolumeSpec, ...]
    machine: dict[str, str | int]
    """The driver's own words (:meth:`insula.hal.driver.Machine.record`)."""
    started_at: float
    """Unix time."""
    ready: bool
    """Whether the agent had answered: a start that was interrupted before is undone, not continued."""
    link: tuple[str, int] | None = None
    """Net qube it is linked to, and the number of the link there."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        value: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_path_to_text)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MachineRecord:
        """:raise ValueError: not a record of this version (fields are missing, unknown or of another type)."""
        return msgspec.convert(value, cls, dec_hook=_path_from_text)


@dataclass(frozen=True)
class RunningQube:
    """Held from the moment the agent answered until the machine is gone."""

    machine: Machine
    volumes: tuple[VolumeSpec, ...]
    started_at: float
    link: tuple[str, int] | None = None
    """As :attr:`MachineRecord.link`, when it was found by this daemon; what holds now is kept by ``links``."""

    @property
    def name(self) -> str:
        return self.machine.spec.name

    def source_of(self, volume: str) -> BlockSource | None:
        for disk in self.machine.spec.disks:
            if disk.name == volume:
                return disk.source
        return None

    def record(self, driver: str, *, ready: bool, link: tuple[str, int] | None = None) -> MachineRecord:
        return MachineRecord(
            driver=driver,
            spec=without_keys(self.machine.spec),
            volumes=self.volumes,
            machine=dict(self.machine.record()),
            started_at=self.started_at,
            ready=ready,
            link=link,
        )


def without_keys(spec: MachineSpec) -> MachineSpec:
    """The spec as it may be written down: keys of encrypted disks exist only in memory."""
    disks = tuple(replace(disk, source=disk.source.without_key()) for disk in spec.disks)
    return replace(spec, disks=disks)
