"""Sound of qubes: services of the host by which they play (``insula.PlaySound``) and record (``insula.RecordSound``).

The policy has allowed the call before it comes here, and the log of calls has it. What a qube plays is heard on the
desktop where windows were shown last, else on the daemon's own, as a stream with the name of the qube: how loud it is
the user says in the mixer, where it is kept for that name. What the microphone of that desktop hears a qube gets only
while it is attached to it (:mod:`insula.admin.microphone`), and the user is told when it begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from insula.admin.call import Context
from insula.admin.microphone import TakenAway
from insula.daemon.desktop_note import noted_desktop
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import view
from insula.rpc.host_services import HostCall, HostReply, HostService, HostServices
from insula.rpc.pacing import RateLimit
from insula.sound.server import NoSoundServer
from insula_proto import sound

MAX_STREAMS = 4
"""Of one qube: its sound server has one; a stream that ends may overlap the next, and root may have a server too."""
EXIT_UNAVAILABLE = 69
"""As in sysexits.h: not now."""
EXIT_REFUSED = 77
NOTICES_BURST = 2
NOTICES_PER_SECOND = 0.1
"""How often the user is told that a qube listens."""

log = logging.getLogger("insula.daemon")


class Carry(Protocol):
    """:func:`insula.sound.launcher.carry`, with its parent."""

    async def __call__(
        self, qube: str, qid: int, connection: socket.socket, environment: Mapping[str, str], *, records: bool = False
    ) -> None:
        """:raise OSError:"""


class Sound:
    def __init__(
        self,
        context: Context,
        carry: Carry,
        environments: Callable[[], list[Mapping[str, str]]],
        tell: Callable[[str | None, str], None],
    ) -> None:
        """
        :param environments: of desktops on which a sound server may be, best first.
        :param tell: the user, about a qube.
        """
        self._context = context
        self._carry = carry
        self._environments = environments
        self._tell = tell
        self._limits: dict[str, RateLimit] = {}
        self._streams: Counter[str] = Counter()
        self._is_missing = False
        """Whether the log says that there is no sound server."""

    def services(self) -> HostServices:
        return {
            sound.PLAY_SERVICE: HostService(self.play, is_stream=True),
            sound.RECORD_SERVICE: HostService(self.record, is_stream=True),
        }

    async def play(self, call: HostCall) -> HostReply:
        return await self._serve(call, records=False)

    async def record(self, call: HostCall) -> HostReply:
        return await self._serve(call, records=True)

    async def _serve(self, call: HostCall, *, records: bool) -> HostReply:
        system = self._context.store.system
        caller = system.qubes.get(QubeName(call.caller))
        if caller is None or call.connection is None:
            return _refused("The qube has gone")
        if view(system, caller).vm("audiovm") != ADMIN_NAME:
            return _refused("The sound of this qube is not played here (audiovm)")
        if self._streams[call.caller] >= MAX_STREAMS:
            return _refused("The qube has enough streams")
        with self._counted(call.caller):
            try:
                carrying = self._carry_anywhere(call.caller, caller.qid, call.connection, records=records)
                if records:
                    await self._context.microphone.record(self._context.engine, caller.name, carrying)
                else:
                    await carrying
            except TakenAway:
                return _refused("The microphone is not attached to this qube")
            except NoSoundServer as error:
                if not self._is_missing:
                    self._is_missing = True
                    log.warning("%s: nothing is heard of qubes: %s", call.caller, error)
                return HostReply(code=EXIT_UNAVAILABLE, last_words=f"Nothing is heard: {error}\n")
            except OSError as error:
                log.info("%s: sound: %s", call.caller, error)
                return HostReply(code=EXIT_UNAVAILABLE, last_words="The sound server ended it\n")
        return HostReply()

    async def _carry_anywhere(self, name: str, qid: int, connection: socket.socket, *, records: bool) -> None:
        """:raise OSError:"""
        missing = NoSoundServer("there is no desktop")
        if records and self._limits.setdefault(name, RateLimit(NOTICES_BURST, NOTICES_PER_SECOND)).take(
            asyncio.get_running_loop().time()
        ):
            self._tell(name, "listens to the microphone")
        for environment in self._environments():
            try:
                await self._carry(name, qid, connection, environment, records=records)
            except NoSoundServer as error:
                missing = error
            else:
                self._is_missing = False
                return
        raise missing

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        self._streams[name] += 1
        try:
            yield
        finally:
            self._streams[name] -= 1
            if not self._streams[name]:
                del self._streams[name]


def _refused(why: str) -> HostReply:
    return HostReply(code=EXIT_REFUSED, last_words=f"{why}\n")


def desktops(note: Path) -> list[Mapping[str, str]]:
    """The environment of the desktop where windows were shown last, and our own."""
    noted = noted_desktop(note)
    return [*([noted] if noted is not None else []), os.environ]
