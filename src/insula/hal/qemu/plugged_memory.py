"""Frame memory of a machine: plugged when it is first asked for, found again in the VMM by a later daemon.

Not there from the start: a seed with such memory mapped could not be forked (the place of a shared BAR is not that of
the seed's), and a machine without windows has no use for it. The guest sees a PCI device appear on a port that was kept
for it; its agent maps the memory through sysfs, so no driver of the guest takes part.

After a restart of the daemon nobody holds the memory but the VMM. It is found there by the name of its file and copied
(pidfd_getfd(2)); the VMM has it from us, and nothing in it is believed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack

from insula.hal import frames
from insula.hal.errors import DriverError
from insula.hal.qemu.command import PluggedMemory, memory_device, memory_file
from insula.hal.qemu.monitor import Monitor
from insula.hal.qemu.process import VmmProcess


class MachineMemory:
    """Of one machine that runs. All methods raise MachineGone once it has ended."""

    def __init__(self, kind: PluggedMemory, monitor: Monitor, process: Callable[[], VmmProcess]) -> None:
        self._kind = kind
        self._monitor = monitor
        self._process = process
        self._plugging = asyncio.Lock()
        self._memory: int | None = None

    async def is_plugged(self) -> bool:
        return self._kind.device in await self._monitor.plugged_devices()

    async def open(self) -> int:
        """See :meth:`insula.hal.driver.Machine.open_frames`."""
        async with self._plugging:
            if self._memory is None:
                self._memory = self._find() if await self.is_plugged() else await self._plug()
            return os.dup(self._memory)

    async def _plug(self) -> int:
        with ExitStack() as undo:
            memory = frames.make(self._kind.size, self._kind.file)
            undo.callback(os.close, memory)
            handed = await self._monitor.add_descriptor(memory)
            try:
                # (By /proc and not /dev/fdset: this kind of file is opened by a plain open(2).)
                await self._monitor.execute("object-add", memory_file(self._kind, handed.number))
            finally:
                await self._monitor.execute("remove-fd", {"fdset-id": handed.fdset, "fd": handed.number})
            try:
                await self._monitor.execute("device_add", memory_device(self._kind))
            except DriverError:
                await self._monitor.execute("object-del", {"id": self._kind.memory})
                raise
            undo.pop_all()
        return memory

    def _find(self) -> int:
        try:
            memory = self._process().memory_file(self._kind.file)
        except OSError as error:
            raise DriverError("the frame memory of the VMM cannot be reached", str(error)) from error
        if memory is None:
            raise DriverError("the VMM has frame memory that cannot be found")
        with ExitStack() as undo:
            undo.callback(os.close, memory)
            if fcntl.fcntl(memory, fcntl.F_GET_SEALS) & frames.SEALS != frames.SEALS:
                raise DriverError("the frame memory of the VMM is not sealed")
            undo.pop_all()
        return memory

    def close(self) -> None:
        """Let go; idempotent."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None
