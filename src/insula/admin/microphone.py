"""Who has the microphone: at most one qube, because the user said so, until the user says otherwise or the qube ends.

It is kept in memory alone: with another daemon, or another start of the qube, nobody has it. A recording under way is
registered here and ends at once when the microphone is taken away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass

from insula.lifecycle.engine import Engine
from insula.model.errors import DeviceAlreadyAttached, DeviceNotAssigned, QubesVMNotRunningError
from insula.model.names import QubeName


class TakenAway(Exception):
    """The qube has the microphone no more."""


@dataclass(frozen=True)
class _Holder:
    name: QubeName
    start_time: float
    """Of the machine it was given to."""


class Microphone:
    def __init__(self) -> None:
        self._holder: _Holder | None = None
        self._recordings: set[asyncio.Task[None]] = set()

    def holder(self, engine: Engine) -> QubeName | None:
        """The qube that has it; None: nobody."""
        holder = self._holder
        if holder is not None and engine.start_time(holder.name) != holder.start_time:
            self._take_away()
        return None if self._holder is None else self._holder.name

    def attach(self, engine: Engine, name: QubeName) -> None:
        """:raise QubesVMNotRunningError: :raise DeviceAlreadyAttached: to this qube or another one."""
        start_time = engine.start_time(name)
        if start_time is None:
            raise QubesVMNotRunningError(f"{name} does not run: it gets no microphone")
        holder = self.holder(engine)
        if holder is not None:
            raise DeviceAlreadyAttached(f"The microphone is attached to {holder}")
        self._holder = _Holder(name, start_time)

    def detach(self, engine: Engine, name: QubeName) -> None:
        """What it records ends now. :raise DeviceNotAssigned: it does not have it."""
        if self.holder(engine) != name:
            raise DeviceNotAssigned(f"The microphone is not attached to {name}")
        self._take_away()

    def _take_away(self) -> None:
        self._holder = None
        for recording in self._recordings:
            recording.cancel()

    async def record(self, engine: Engine, name: QubeName, recording: Coroutine[None, None, None]) -> None:
        """Await ``recording`` for as long as the qube has the microphone.

        :raise TakenAway: it has not, or no more. What ``recording`` raises is raised here.
        """
        if self.holder(engine) != name:
            recording.close()
            raise TakenAway
        task = asyncio.create_task(recording, name=f"microphone for {name}")
        self._recordings.add(task)
        try:
            await asyncio.wait((task,))
        finally:
            self._recordings.discard(task)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            raise TakenAway
        task.result()
