"""Starting the user's session when the host says that this qube's windows are wanted (``/qubes-gui-enabled``).

A qube without windows has neither an X server nor a process that waits for one. Calls that need the session wait at a
gate (:mod:`insula_agent.gui.session`), which is there as soon as the host has said so.
"""

from __future__ import annotations

import os

from insula_agent import process, programs
from insula_agent.log import log
from insula_agent.loop import READ, Loop

GATE = "/run/insula/session-gate"
PROGRAM = "gui/session.py"
PYTHON = "/usr/bin/python3"
RETRY_S = 2.0
MAX_RETRIES = 5
"""It ends only after failing several times itself."""


class Session:
    """At most one at a time."""

    def __init__(self, loop: Loop, user: str) -> None:
        self._loop = loop
        self._user = user
        self._pidfd = -1
        self._pid = 0
        self._retries = 0

    def begin(self) -> None:
        """Start it, if it does not run."""
        if self._pidfd < 0:
            self._retries = 0
            self._start()

    def _start(self) -> None:
        folder = os.path.dirname(os.path.abspath(__file__))
        arguments: list[bytes | str] = ["python3", "-I", "-S", os.path.join(folder, PROGRAM), self._user]
        plan = process.Plan(PYTHON, arguments, dict(programs.ENVIRONMENT), "/")
        try:
            gate = _make_gate()
            try:
                # Where it logs is where we do.
                self._pid = process.start(plan, gate, 2, 2)
            finally:
                os.close(gate)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            log(f"no session: {error}")
            return
        self._loop.watch(self._pidfd, READ, self._ended)

    def _ended(self, events: int) -> None:
        del events
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        _, status = os.waitpid(self._pid, 0)
        log(f"the session ended ({process.exit_code(status)})")
        if self._retries < MAX_RETRIES:
            self._retries += 1
            self._loop.after(RETRY_S, self._restart)

    def _restart(self) -> None:
        if self._pidfd < 0:
            self._start()


def _make_gate() -> int:
    """The FIFO; as long as somebody has it open for writing, who reads it waits. :raise OSError:"""
    os.makedirs(os.path.dirname(GATE), mode=0o755, exist_ok=True)
    if not os.path.exists(GATE):
        os.mkfifo(GATE, 0o644)
    return os.open(GATE, os.O_RDWR | os.O_CLOEXEC)
