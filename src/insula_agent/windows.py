"""Starting the user's session when the host says that this qube's windows are wanted (``/qubes-gui-enabled``).

A qube without windows has neither an X server nor a process that waits for one; a fork has those of its seed
(:mod:`insula_agent.gui.prepared`). Calls that need the session wait at a gate (:mod:`insula_agent.gui.session`), which
is there as soon as the host has said so.
"""

from __future__ import annotations

import os

from insula_agent import process, programs, sockets
from insula_agent.log import log
from insula_agent.loop import READ, Loop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GATE = "/run/insula/session-gate"
PROGRAM = "gui/session.py"
PYTHON = "/usr/bin/python3"
PREPARED = "--prepared"
REHEARSE = b"r"
PREPARE_LIMIT = 60.0
"""Seconds until a seed, or a fork that rehearses, goes without."""
RETRY_S = 2.0
MAX_RETRIES = 5
"""It ends only after failing several times itself."""


class Session:
    """At most one at a time."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._user = ""
        self._is_wanted = False
        self._pidfd = -1
        self._pid = 0
        self._retries = 0
        self._line: sockets.Socket | None = None
        """To one that is prepared."""
        self._on_prepared: Callable[[], None] | None = None
        self._timer: Timer | None = None

    def prepare(self, user: str, on_prepared: Callable[[], None]) -> None:
        """In a seed: have it ready for whoever wants it; then, or when that fails, call ``on_prepared``."""
        self._user = user
        self._on_prepared = on_prepared
        ours, theirs = sockets.pair()
        self._run(theirs.fileno(), PREPARED)
        theirs.close()
        if self._pidfd < 0:
            ours.close()
            self._prepared()
            return
        self._line = ours
        self._loop.watch(ours.fileno(), READ, lambda events: self._told(ours))
        self._timer = self._loop.after(PREPARE_LIMIT, self._prepared)

    def _told(self, line: sockets.Socket) -> None:
        try:
            # One byte; read, because closing over it would be a reset for the other end.
            line.recv(1, sockets.MSG_DONTWAIT)
        except OSError as error:
            log(f"the session that is prepared: {error}")
        self._prepared()

    def _prepared(self) -> None:
        if self._line is not None:
            self._loop.forget(self._line.fileno())
        if self._timer is not None:
            self._timer.cancel()
        on_prepared, self._on_prepared = self._on_prepared, None
        if on_prepared is not None:
            on_prepared()

    def rehearse(self, on_rehearsed: Callable[[], None]) -> None:
        """In a fork that is nobody's yet: have one that is prepared show a window to nobody; then, or if there is none
        or it cannot, call ``on_rehearsed``."""
        line = self._line
        if line is None or self._pidfd < 0:
            on_rehearsed()
            return
        self._on_prepared = on_rehearsed
        try:
            line.send(REHEARSE)
        except OSError as error:
            log(f"the session that is prepared: {error}")
            self._prepared()
            return
        self._loop.watch(line.fileno(), READ, lambda events: self._told(line))
        self._timer = self._loop.after(PREPARE_LIMIT, self._prepared)

    def begin(self, user: str) -> None:
        """Start it, if it does not run."""
        if self._is_wanted and self._pidfd >= 0:
            return
        self._is_wanted = True
        self._retries = 0
        line, self._line = self._line, None
        if line is None:
            self._user = user
            if self._pidfd < 0:
                self._start()
        elif user == self._user:
            self._hand_gate(line)
        else:
            # It hears that there will be none and ends; then there is one for this user.
            self._user = user
            line.close()

    def _hand_gate(self, line: sockets.Socket) -> None:
        try:
            gate = _make_gate()
            try:
                sockets.send_with_descriptors(line, b"1", [gate])
            finally:
                os.close(gate)
        except OSError as error:
            # It has ended, or does now; then another one is started.
            log(f"the session that was prepared: {error}")
        finally:
            line.close()

    def _start(self) -> None:
        try:
            gate = _make_gate()
        except OSError as error:
            log(f"no session: {error}")
            return
        self._run(gate)
        os.close(gate)

    def _run(self, stdin: int, *options: str) -> None:
        folder = os.path.dirname(os.path.abspath(__file__))
        arguments: list[bytes | str] = ["python3", "-I", "-S", os.path.join(folder, PROGRAM), self._user, *options]
        plan = process.Plan(PYTHON, arguments, dict(programs.ENVIRONMENT), "/")
        try:
            # Where it logs is where we do.
            self._pid = process.start(plan, stdin, 2, 2)
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
        if not self._is_wanted:
            self._prepared()
            if self._line is not None:
                self._line.close()
                self._line = None
        elif self._retries < MAX_RETRIES:
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
