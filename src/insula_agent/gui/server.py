"""The X server of this qube: Xvfb, started for the first window, and what outlives the agent.

Xvfb and not Xorg with the dummy driver (docs/decisions/021). It keeps a picture of its whole screen, so it is made as
large as the host's and not larger.

It is not ours to end: whoever starts the agent again finds the programs where they were.
"""

from __future__ import annotations

import os
import time

from insula_agent import sockets
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DISPLAY = ":0"
SOCKET = "/tmp/.X11-unix/X0"  # noqa: S108 - where X clients look
LOCK = "/tmp/.X0-lock"  # noqa: S108 - where X servers write their pid
PROGRAM = "/usr/bin/Xvfb"
STOP_S = 10.0
STOP_POLL_S = 0.01
SIGTERM = 15
MIN_SIZE, MAX_SIZE = 640, 16384
"""Pixels of a side: what programs are made for; what a message about a window may say."""
PREPARED_SIZE = (1920, 1080)
"""Of a server in a seed. A host with a larger screen has it started anew."""
_INHERITED = ("HOME", "LANG", "PATH", "USER", "XDG_RUNTIME_DIR")


class NoDisplay(Exception):
    """There is no X server, or it cannot do what is needed."""


def arguments(width: int, height: int, ready: int) -> list[str]:
    """How it is started; it writes the number of its display to ``ready`` when it can be used."""
    width, height = (min(max(size, MIN_SIZE), MAX_SIZE) for size in (width, height))
    return [
        *(PROGRAM, DISPLAY, "-displayfd", str(ready), "-screen", "0", f"{width}x{height}x24"),
        # Nothing but this qube's own programs; it stays when the last of them has ended.
        *("-nolisten", "tcp", "-noreset"),
        # 3-D by the processor would load 140 MB of compiler, which templates are without.
        *("-extension", "GLX"),
    ]


def is_running() -> bool:
    """Whether somebody serves the display."""
    connection = sockets.unix_socket()
    try:
        connection.connect(SOCKET)
    except OSError:
        return False
    finally:
        connection.close()
    return True


def stop() -> None:
    """End the one that runs, and return when it has; none is fine. :raise NoDisplay: it does not end."""
    try:
        with open(LOCK, encoding="ascii") as lock:
            pid = int(lock.read())
        os.kill(pid, SIGTERM)
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + STOP_S
    while is_running() or os.path.exists(LOCK):
        if time.monotonic() > deadline:
            raise NoDisplay("the X server does not end")
        time.sleep(STOP_POLL_S)


class Server:
    """One that was started here, or was there."""

    def __init__(self, width: int, height: int, environment: Mapping[str, str]) -> None:
        """Start it if none runs, in a session of its own; returns at once. :raise NoDisplay: it cannot be started."""
        self._ready = -1
        if is_running():
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_inheritable(writing, True)
            kept = {name: environment[name] for name in _INHERITED if name in environment}
            os.posix_spawn(PROGRAM, arguments(width, height, writing), kept, setsid=True, setsigmask=())
        except OSError as error:
            os.close(reading)
            raise NoDisplay(f"{PROGRAM}: {error}") from error
        finally:
            os.close(writing)
        self._ready = reading
        log(f"an X server of {width}x{height} is started")

    def wait(self) -> None:
        """Return when it can be used. :raise NoDisplay: it has ended."""
        if self._ready >= 0:
            try:
                # It writes number and newline apart, and does not survive that the second finds nobody.
                said = b""
                while not said.endswith(b"\n"):
                    part = os.read(self._ready, 16)
                    if not part:
                        raise NoDisplay("the X server ended at once")
                    said += part
            finally:
                os.close(self._ready)
                self._ready = -1
