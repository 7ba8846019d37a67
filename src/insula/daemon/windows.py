"""Which qubes' windows are on which desktop: the processes that show them, started, replaced and ended.

A qube has windows from the first time somebody asks for them: then it gets frame memory and is told so
(``/qubes-gui-enabled``), and its agent starts an X server. Nothing of this is there before. The process that shows them
may end at any time (it reads what a guest wrote): it is replaced, the qube's agent tells it of all windows anew, and no
program in the qube notices (MC-47).

The desktop is that of whoever asked last, known by a few variables of its environment. It is written down in the
run-time folder, so that the windows come back with a new daemon.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from insula.admin.call import SystemStore
from insula.daemon.desktop_note import noted_desktop
from insula.gui.control import Configure
from insula.gui.features import configure
from insula.gui.spawn import NoDesktop, view
from insula.hal import frames
from insula.hal.driver import GUI_CHANNEL, Machine
from insula.hal.errors import HalError
from insula.lifecycle.host import Session
from insula.model.desktop import Desktop, desktop_of
from insula.model.errors import QubesException, QubesNoDesktopError
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import view as properties_of

log = logging.getLogger("insula.daemon")

ENABLED_KEY = "/qubes-gui-enabled"
DESKTOP_KEY = "/insula-desktop"
"""There: a qube without windows may ask for some (``insula.ShowWindows``)."""
SHOWN_NOTE = "windows"
"""File in the run-time folder of a qube that was told to have windows: frame memory alone says nothing, for a machine
that waits to be somebody has some."""
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
FEATURE = "gui"
OFF = ("", "0")
"""Values of the feature with which a qube has no windows."""

FOLLOWED_LAYOUT = "us++"
"""What the property ``keyboard_layout`` is if nobody set it: the qube has the layout of the desktop."""

RESTARTS = 5
"""How often in a row a process is replaced; one that lived :data:`STABLE_S` starts the count anew."""
STABLE_S = 60.0
RESTART_DELAY_S = 0.3
"""Long enough for the qube to notice that nobody is there."""
GREET_S = 5.0
"""Seconds for the agent of a qube that had windows before to speak with a new process, as many times that as it was
tried. One that was late to notice that nobody was there (it stood still, or had no CPU) goes on in the middle of a
conversation that somebody else has begun; then its port is closed again, for longer."""


class Gui(Protocol):
    """A process that shows windows (:class:`insula.gui.launcher.RunningGui`)."""

    @property
    def is_running(self) -> bool: ...

    def expect(self) -> None: ...

    async def wait_greeted(self) -> None: ...

    async def wait_closed(self) -> str: ...

    async def close(self) -> None: ...


class Launch(Protocol):
    """Starts one (:class:`insula.gui.launcher.GuiLauncher`)."""

    async def __call__(
        self,
        configure: Configure,
        channel: socket.socket,
        memory: int,
        environment: Mapping[str, str] | None = None,
    ) -> Gui:
        """:raise OSError: no desktop, or it could not be started."""


class _Shown:
    """A qube whose windows are wanted."""

    def __init__(self, machine: Machine, desktop: Desktop) -> None:
        self.machine = machine
        self.desktop = desktop
        self.lock = asyncio.Lock()
        """Held while its process is started or ended."""
        self.gui: Gui | None = None
        self.keeping: asyncio.Task[None] | None = None
        self.takes_over = False
        """Whether its agent has spoken with another process before."""


class Windows:
    """Implements :class:`insula.lifecycle.host.Windows`."""

    def __init__(
        self,
        store: SystemStore,
        launch: Launch,
        note: Path,
        tell: Callable[[str | None, str], None],
        own: Mapping[str, str],
    ) -> None:
        """
        :param note: where the desktop is written down.
        :param tell: the user, about a qube.
        :param own: the daemon's environment: a desktop before anybody has named one.
        """
        self._store = store
        self._launch = launch
        self._note = note
        self._tell = tell
        self._shown: dict[QubeName, _Shown] = {}
        self._enabled: set[QubeName] = set()
        """Qubes that were told to have windows."""
        self.are_used = False
        """Whether somebody has wanted to see some, of any qube."""
        self._desktop = noted_desktop(note) or desktop_of(own)

    async def close(self) -> None:
        """The daemon ends, and with it the processes; the qubes keep their windows for the next one."""
        for name in tuple(self._shown):
            await self._stop(name)

    # --- what is asked -------------------------------------------------------------------------------------------

    async def show(self, name: QubeName, machine: Machine, session: Session, desktop: Desktop | None = None) -> None:
        """Have the windows of a running qube shown; returns when its process runs.

        :param desktop: where; None: where the last ones were asked for.
        :raise QubesException: there is no desktop, or the qube has no windows.
        """
        self.are_used = True
        is_users, desktop = desktop is not None, self._desktop if desktop is None else desktop
        self._check(name, desktop)
        while not await self._show(name, machine, session, desktop, is_users=is_users):
            # Who was before us has failed, or its machine stands still: what was waited for is not known any more.
            pass

    async def _show(
        self, name: QubeName, machine: Machine, session: Session, desktop: Desktop, *, is_users: bool
    ) -> bool:
        """As :meth:`show`, by what is known of the qube now; False: it was forgotten before it was our turn."""
        shown = self._shown.setdefault(name, _Shown(machine, desktop))
        async with shown.lock:
            if self._shown.get(name) is not shown:
                return False
            if shown.gui is not None and shown.gui.is_running and shown.desktop == desktop:
                if is_users:
                    shown.gui.expect()
                return True
            await self._end_process(shown)
            shown.desktop = desktop
            try:
                await self._begin(name, shown, session)
            except (OSError, HalError) as error:
                self._shown.pop(name, None)
                raise QubesException(f"The windows of {name} cannot be shown: {error}") from error
            if shown.gui is not None and is_users:
                shown.gui.expect()
        self._remember(desktop)
        return True

    def _check(self, name: QubeName, desktop: Desktop) -> None:
        system = self._store.system
        if properties_of(system, system.get(name)).feature_from_template(FEATURE) in OFF:
            raise QubesException(f"{name} has no windows: its feature gui is off")
        try:
            view(desktop)
        except NoDesktop as error:
            raise QubesNoDesktopError(f"There is nowhere to show windows: {error}") from error

    async def _begin(self, name: QubeName, shown: _Shown, session: Session) -> None:
        memory = await self._open_memory(shown.machine)
        try:
            shown.takes_over = name in self._enabled and not shown.machine.spec.has_display
            self._enabled.add(name)
            if not shown.machine.spec.has_display:
                (shown.machine.spec.runtime_dir / SHOWN_NOTE).touch()
                # Told first: it has more to do than we.
                await session.set_key(ENABLED_KEY, b"1")
            await self._start_process(name, shown, memory)
        finally:
            os.close(memory)
        shown.keeping = asyncio.create_task(self._keep(name, shown), name=f"windows of {name}")

    @staticmethod
    async def _open_memory(machine: Machine) -> int:
        """What its pictures are in; a machine with a screen of its own writes to none, the process copies them."""
        return frames.make() if machine.spec.has_display else await machine.open_frames()

    async def _start_process(self, name: QubeName, shown: _Shown, memory: int) -> None:
        system = self._store.system
        here = properties_of(system, system.get(name))
        colour = system.label(here.text("label")).color
        of_host = system.get(ADMIN_NAME).features.get
        settings, problems = configure(name, colour, here.feature_from_template, of_host)
        for problem in problems:
            log.warning("%s: windows: %s", name, problem)
        layout = here.text("keyboard_layout")
        if layout != FOLLOWED_LAYOUT:
            settings = msgspec.structs.replace(settings, keyboard=layout)
        machine = shown.machine
        has_display = machine.spec.has_display
        settings = msgspec.structs.replace(settings, is_emulated=has_display)
        channel = await (machine.open_display() if has_display else machine.open_channel(GUI_CHANNEL))
        with channel:
            shown.gui = await self._launch(settings, channel, memory, shown.desktop)

    # --- while it runs -------------------------------------------------------------------------------------------

    async def _keep(self, name: QubeName, shown: _Shown) -> None:
        """Replace the process when it ends; give up when it keeps ending."""
        loop = asyncio.get_running_loop()
        failures = 0
        while shown.gui is not None:
            since = loop.time()
            if shown.takes_over:
                await self._until_greeted(name, shown.gui, GREET_S * (failures + 1))
            why = await shown.gui.wait_closed()
            shown.takes_over = not shown.machine.spec.has_display
            failures = 1 if loop.time() - since > STABLE_S else failures + 1
            if failures > RESTARTS:
                log.error("%s: its windows' process keeps ending (%s)", name, why)
                self._tell(name, "its windows are gone: what shows them keeps ending")
                return
            await asyncio.sleep(RESTART_DELAY_S * failures)
            log.warning("%s: its windows' process ended (%s), starting another", name, why)
            try:
                async with shown.lock:
                    memory = await self._open_memory(shown.machine)
                    try:
                        await self._start_process(name, shown, memory)
                    finally:
                        os.close(memory)
            except (OSError, HalError) as error:
                # The desktop has gone, or the machine has. Whoever asks again says where.
                log.warning("%s: its windows are not shown any more: %s", name, error)
                return

    async def _until_greeted(self, name: QubeName, gui: Gui, limit_s: float) -> None:
        """Return when the agent speaks with this process, or that has ended; it is ended if it takes too long."""
        greeting, closing = asyncio.create_task(gui.wait_greeted()), asyncio.create_task(gui.wait_closed())
        try:
            await asyncio.wait((greeting, closing), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not greeting.done() and not closing.done():
                log.warning("%s: its agent of windows says nothing for %g s", name, limit_s)
                await gui.close()
        finally:
            greeting.cancel()
            closing.cancel()
            await asyncio.gather(greeting, closing, return_exceptions=True)

    async def changed(self, name: QubeName) -> None:
        """Its label is another one: windows are shown anew."""
        shown = self._shown.get(name)
        if shown is not None and shown.gui is not None:
            # What keeps it starts another, with what holds then.
            await shown.gui.close()

    async def _end_process(self, shown: _Shown) -> None:
        if shown.keeping is not None:
            shown.keeping.cancel()
            await asyncio.gather(shown.keeping, return_exceptions=True)
            shown.keeping = None
        if shown.gui is not None:
            await shown.gui.close()
            shown.gui = None

    # --- its machine's life --------------------------------------------------------------------------------------

    def keys_of(self, name: QubeName) -> dict[str, str]:
        """What the qube is told when its session begins anew."""
        keys = {ENABLED_KEY: "1"} if name in self._enabled else {}
        if any(self._desktop.get(variable) for variable in DISPLAYS):
            keys[DESKTOP_KEY] = "1"
        return keys

    async def adopt(self, name: QubeName, machine: Machine) -> None:
        """An earlier daemon started its machine, and may have shown its windows."""
        is_noted = (machine.spec.runtime_dir / SHOWN_NOTE).exists()
        if is_noted and not machine.spec.has_display and await machine.has_frames():
            self._enabled.add(name)

    async def show_again(self, name: QubeName, machine: Machine, session: Session) -> None:
        """If it had windows, have them shown; the desktop may be gone, then they wait until somebody asks."""
        if name in self._enabled:
            try:
                await self.show(name, machine, session)
            except QubesException as error:
                log.warning("%s", error)

    async def hide(self, name: QubeName) -> None:
        """It stands still, or is about to: what cannot answer is not shown."""
        await self._stop(name)

    async def end(self, name: QubeName) -> None:
        """Its machine is gone."""
        self._enabled.discard(name)
        await self._stop(name)

    async def _stop(self, name: QubeName) -> None:
        shown = self._shown.pop(name, None)
        if shown is not None:
            async with shown.lock:
                await self._end_process(shown)

    # --- the desktop ---------------------------------------------------------------------------------------------

    def _remember(self, desktop: Desktop) -> None:
        if desktop != self._desktop or not self._note.exists():
            self._desktop = desktop
            new = self._note.with_suffix(".new")
            new.write_text(json.dumps(dict(desktop)), encoding="utf-8")
            new.replace(self._note)
