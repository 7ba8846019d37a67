"""Calls that wait for the user's session (``wait-for-session``; reference: qrexec, §5, "Configuration").

``qubes.WaitForSession`` is run once for all that wait; when it has ended, whatever its status, they go on.
"""

from __future__ import annotations

import os

from insula_agent import process
from insula_agent.children import Child
from insula_agent.log import log
from insula_agent.loop import Loop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GATE = "/run/insula/session-gate"
ENVIRONMENT = "/run/insula/session-env"
"""See :mod:`insula_agent.gui.session`."""
LIMIT = 120.0
"""Seconds until those who wait go on without a session: as long as a caller waits for its call."""


def is_session_up() -> bool:
    """Whether there is one that programs can be started in: then nobody need be asked, which takes a login shell."""
    return os.path.exists(ENVIRONMENT) and not os.path.exists(GATE)


class SessionWait:
    """At most as many wait as there are ports for calls."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._child: Child | None = None
        self._timer: Timer | None = None
        self._waiting: list[Callable[[], None]] = []

    @property
    def is_running(self) -> bool:
        return self._child is not None

    def add(self, go_on: Callable[[], None]) -> None:
        """Call ``go_on`` when the wait that runs has ended."""
        self._waiting.append(go_on)

    def start(self, plan: process.Plan, user: bytes) -> None:
        """Begin to wait for that user's session."""
        plan.has_pipe = True
        try:
            child = Child(self._loop, plan, self._ended, is_detached=False)
        except OSError as error:
            log(f"cannot wait for a session: {error}")
            self._go_on()
            return
        self._child = child
        try:
            os.write(child.stdin, user + b"\n")
        except OSError as error:
            log(f"who waits for a session does not listen: {error}")
        for fd in (child.stdin, child.stdout, child.stderr):
            os.close(fd)
        self._timer = self._loop.after(LIMIT, self._give_up)

    def cancel(self) -> None:
        """End the wait; those who wait never go on."""
        self._waiting.clear()
        if self._child is not None:
            self._child.signal(process.SIGKILL)
            self._ended()

    def _give_up(self) -> None:
        log("no session came in time")
        assert self._child is not None
        self._child.signal(process.SIGKILL)
        self._ended()

    def _ended(self) -> None:
        assert self._child is not None
        if self._timer is not None:
            self._timer.cancel()
        child, self._child = self._child, None
        child.reap()
        self._go_on()

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on()
