"""The bus of the user's session (D-Bus): started when the first program connects, for most programs need none.

Its socket is where programs look for it. It is handed to the bus as systemd would.
"""

from __future__ import annotations

import os

from insula_agent import sockets
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = "/usr/bin/dbus-daemon"
ARGUMENTS = (PROGRAM, "--session", "--address=systemd:", "--nofork", "--nopidfile", "--syslog-only")
BACKLOG = 64
FIRST_DESCRIPTOR = 3
"""Where the first handed over descriptor is (sd_listen_fds(3))."""


class Bus:
    def __init__(self, path: str, uid: int, gid: int) -> None:
        """:raise OSError: nobody can listen there."""
        self._listener = sockets.listen(path, 0o600, BACKLOG)
        os.chown(path, uid, gid)

    def fileno(self) -> int:
        """Readable when a program waits for the bus; negative once it was started."""
        return self._listener.fileno()

    def start(self, become: Callable[[], None]) -> None:
        """Let it serve the socket from now on; ``become`` makes the new process the user's."""
        pid = os.fork()
        if not pid:
            try:
                become()
                os.dup2(self._listener.fileno(), FIRST_DESCRIPTOR)
                os.set_inheritable(FIRST_DESCRIPTOR, True)
                os.setsid()
                os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
                os.execve(PROGRAM, ARGUMENTS, os.environ)  # noqa: S606 - no shell
            except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the parent may run on in the child
                log(f"no bus: {error}")
            finally:
                os._exit(1)
        self._listener.close()
