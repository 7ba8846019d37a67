"""The program that asks the user, started when something is to be asked and nobody is there to ask it.

``insula prompt`` may have been started by hand or with the desktop; then nothing is started here. Else it is started on
the desktop where windows of qubes were shown last, else on that of the user's session, where there is one: a daemon
that began before the desktop did finds it later, since a session with systemd tells its user manager. The program ends
with the daemon. If it crashes, the next question has it started again; where it cannot be, the question is denied, and
says why and what to do.

It runs as who runs the daemon, never as root on the screen of somebody else: what shows windows there can be steered
by every program of that person.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from insula.daemon.desktop_note import noted_desktop
from insula.daemon.paths import Paths
from insula.rpc.ask import CannotAsk
from insula.rpc.pacing import RateLimit
from insula.rpc.sockets import address

SETTING = "INSULA_PROMPT"
"""``off`` in the daemon's environment: it starts none."""
START_TIMEOUT_S = 60.0
"""Until it listens; two seconds are usual, most of them Qt's. One that ends is noticed at once."""
POLL_S = 0.05
END_TIMEOUT_S = 5.0
MANAGER_TIMEOUT_S = 2.0
"""For the user's systemd to say what it knows."""
MAX_ENVIRONMENT = 256 * 1024
STARTS_BURST = 3
STARTS_PER_SECOND = 1 / 20
"""However many questions come, a program that does not come up is not tried more often."""
MAX_REASON = 300
"""Characters of what the program says when it ends."""
BY_HAND = "insula prompt asks on a desktop, insula prompt --terminal on a terminal"

_DISPLAYS = ("WAYLAND_DISPLAY", "DISPLAY")
_OF_SESSION = (*_DISPLAYS, "XAUTHORITY", "XDG_SESSION_TYPE", "XDG_CURRENT_DESKTOP", "DBUS_SESSION_BUS_ADDRESS")
"""What a session tells its programs about its desktop."""
_OTHER_USER = ("SUDO_UID", "PKEXEC_UID")

log = logging.getLogger("insula.daemon")


def command() -> list[str]:
    """``insula prompt`` of this installation of Insula."""
    program = Path(sys.executable).with_name("insula-prompt")
    return [str(program)] if program.exists() else [sys.executable, "-m", "insula.cli.main", "prompt"]


def session_environment(
    own: Mapping[str, str], manager: Mapping[str, str], euid: int, shown: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment that the program is to have, with a display in it. Pure.

    :param own: the daemon's. :param manager: of the user's systemd; it knows of desktops that began later.
    :param shown: of the desktop where windows of qubes were shown last.
    :raise CannotAsk: it is not to be started.
    """
    if own.get(SETTING) == "off":
        raise CannotAsk(f"{SETTING} is off")
    if euid == 0 and any(own.get(name, "0") != "0" for name in _OTHER_USER):
        raise CannotAsk("insulad runs as root and the desktop is another user's: run insula as that user")
    if shown and any(shown.get(name) for name in _DISPLAYS):
        return {**{name: value for name, value in own.items() if name not in _DISPLAYS}, **shown}
    told = manager if any(manager.get(name) for name in _DISPLAYS) else {}
    found = {name: value for name in _OF_SESSION if (value := told.get(name) or own.get(name))}
    if not any(found.get(name) for name in _DISPLAYS):
        raise CannotAsk(f"there is no display; {BY_HAND}")
    return {**own, **found}


def parse_environment(untrusted_text: str) -> dict[str, str]:
    """Variables that ``systemctl show-environment`` prints and that are of use here.

    A value with odd characters is printed quoted (``$'…'``); no display has one, so such a line is passed over.
    """
    found = {}
    for line in untrusted_text[:MAX_ENVIRONMENT].splitlines():
        name, equals, value = line.partition("=")
        if equals and name in _OF_SESSION and not value.startswith("$'"):
            found[name] = value
    return found


class PromptProgram:
    """Implements :class:`insula.rpc.ask.Desk`."""

    def __init__(self, paths: Paths, environ: Mapping[str, str] | None = None) -> None:
        self._paths = paths
        self._environ = dict(os.environ if environ is None else environ)
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._starts = RateLimit(STARTS_BURST, STARTS_PER_SECOND)
        self._last_reason = ""

    async def close(self) -> None:
        """End the program if it was started here."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def open(self) -> None:
        """Return when somebody listens. One at a time, the others wait for that. :raise CannotAsk:"""
        async with self._turn:
            if self._is_answered():
                return
            if self._process is not None and self._process.returncode is None:
                # It runs and does not listen: it cannot be of use any more.
                await self.close()
            try:
                await self._start()
            except CannotAsk as error:
                if str(error) != self._last_reason:
                    log.warning("nobody can be asked: %s", error)
                self._last_reason = str(error)
                raise
            self._last_reason = ""

    async def _start(self) -> None:
        shown = await asyncio.to_thread(noted_desktop, self._paths.desktop_note)
        environment = session_environment(self._environ, await self._manager_environment(), os.geteuid(), shown)
        if not self._starts.take(asyncio.get_running_loop().time()):
            raise CannotAsk(self._last_reason or "the program that asks ends again and again")
        log_file = self._paths.logs / "prompt.log"
        try:
            with log_file.open("wb") as out:
                self._process = await asyncio.create_subprocess_exec(
                    # It must not outlive the daemon, however that ends.
                    *("setpriv", "--pdeathsig", "TERM", "--", *command()),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd="/",
                    env={
                        **environment,
                        "INSULA_DATA_DIR": str(self._paths.data),
                        "INSULA_RUNTIME_DIR": str(self._paths.runtime),
                    },
                )
        except OSError as error:
            raise CannotAsk(f"the program that asks cannot be started: {error}") from error
        log.info("insula prompt started, pid %d; it says: %s", self._process.pid, log_file)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self._is_answered():
                    if self._process.returncode is not None:
                        raise CannotAsk(f"{_last_words(log_file) or 'the program that asks ended'}; {BY_HAND}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            await self.close()
            raise CannotAsk(f"the program that asks was not ready after {START_TIMEOUT_S:g} s") from None

    def _is_answered(self) -> bool:
        """Whether somebody takes connections, be it later: one who has more than it took yet is there, too."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            with address(self._paths.policy_agent_socket) as where:
                return probe.connect_ex(where) in (0, errno.EAGAIN)

    async def _manager_environment(self) -> dict[str, str]:
        """What the user's systemd would give a program; nothing where there is none."""
        runtime = self._environ.get("XDG_RUNTIME_DIR")
        if not runtime or not (Path(runtime) / "systemd" / "private").exists():
            return {}
        try:
            asking = await asyncio.create_subprocess_exec(
                *("systemctl", "--user", "show-environment"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environ,
            )
        except OSError:
            return {}
        try:
            async with asyncio.timeout(MANAGER_TIMEOUT_S):
                out, _ = await asking.communicate()
        except TimeoutError:
            asking.kill()
            await asking.wait()
            return {}
        return parse_environment(out.decode(errors="replace"))


def _last_words(path: Path) -> str:
    """Why the program ended: its message, without the hint below it."""
    lines = path.read_text(errors="replace").splitlines()
    told = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return "".join(letter for letter in (told or lines or [""])[-1] if letter.isprintable())[:MAX_REASON]
