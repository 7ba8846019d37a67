"""A session that begins before anybody wants it: in a seed, so that all its forks find it there.

The X server runs, the agent's code is loaded, and a first window was shown once, to nobody: what that takes from the
disk is then in the memory that forks share. A fork in which nobody ever asks for windows touches none of it.
"""

from __future__ import annotations

import os
import select

from insula_agent import sockets
from insula_agent.gui import main, server
from insula_agent.log import log
from insula_proto.gui_channel import Hello, HostEnd, Screen

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]  # isort: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FRAMES = 16 << 20
"""Bytes that take the place of frame memory."""
LIMIT = 30
"""Seconds for the first window; two on an idle machine."""
READ_SIZE = 65536
PROGRAM = ("xterm", "-e", "true")


def prepare(become: Callable[[], None]) -> None:
    """Start the X server and show a window. What fails is logged: the session then begins when it is wanted.

    :param become: makes a process the user's.
    """
    main.load()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            become()
            # Nothing that stays may hold the home folder of nobody.
            os.chdir("/")
            _signal.alarm(LIMIT)
            _show_window()
            code = 0
        except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the parent may run on in the child
            log(f"preparing windows: {type(error).__name__}: {error}")
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        log(f"windows are not prepared ({status})")


def _show_window() -> None:
    server.Server(*server.PREPARED_SIZE, os.environ).wait()
    ours, theirs = sockets.pair()
    frames = os.memfd_create("frames", os.MFD_CLOEXEC)
    os.ftruncate(frames, FRAMES)
    agent = os.fork()
    if not agent:
        try:
            ours.close()
            theirs.setblocking(False)
            main.serve(theirs.detach(), frames, lambda: None)
        finally:
            os._exit(0)
    theirs.close()
    _be_host(ours.fileno())
    ours.close()
    os.waitpid(agent, 0)


def _be_host(channel: int) -> None:
    """Greet the agent, start the program, and hear out what is said of it until it ends."""
    end = HostEnd(uses_frames=True)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    program = -1
    while program not in [fd for fd, _ in poll.poll()]:
        data = os.read(channel, READ_SIZE)
        if not data:
            raise OSError("the agent ended")
        if program < 0 and any(isinstance(message, Hello) for message in end.receive(data)):
            os.write(channel, end.answer(Screen(*server.PREPARED_SIZE)))
            pid = os.posix_spawnp(PROGRAM[0], PROGRAM, {**os.environ, "DISPLAY": server.DISPLAY})
            program = os.pidfd_open(pid)
            poll.register(program, select.POLLIN)
