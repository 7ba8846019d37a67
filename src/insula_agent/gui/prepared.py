"""A session that begins before anybody wants it: in a seed, so that all its forks find it there.

The X server runs, an agent with all its code is in it, and a first window was shown once, to nobody: what that takes
from the disk is then in the memory that forks share. A fork in which nobody ever asks for windows touches none of it.

Under software emulation a fork that waits to become somebody shows that window again: what code it takes has been
translated then, as by the rehearsal of a start (:mod:`insula_agent.rehearsal`), in whose namespaces it happens, so that
nothing of it is left. The agent and the X server are the true ones.
"""

from __future__ import annotations

import contextlib
import os
import select

from insula_agent import rehearsal, sockets
from insula_agent.gui import main, server
from insula_agent.log import log
from insula_proto.gui_channel import Hello, HostEnd, Screen

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]  # isort: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FRAMES = 16 << 20
"""Bytes that take the place of frame memory."""
LIMIT = 30
"""Seconds for the X server, and for the window; two on an idle machine."""
READ_SIZE = 65536
PROGRAM = ("xterm", "-e", "true")
IN_MEMORY = ("/run", "/dev/shm")  # noqa: S108 - hidden, not used; the X server's socket is in /tmp
SIGKILL = 9


def start_server(become: Callable[[], None]) -> bool:
    """Start the X server; False: it cannot be. The session then begins when it is wanted.

    :param become: makes a process the user's.
    """
    main.load()

    def start() -> None:
        become()
        os.chdir("/")
        server.Server(*server.PREPARED_SIZE, os.environ).wait()

    return _succeeds(start)


def _succeeds(work: Callable[[], None]) -> bool:
    """Do it in a process of its own, within :data:`LIMIT`; return whether nothing went wrong, which is logged."""
    return _ended_well(_fork(work))


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        _signal.alarm(LIMIT)
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the parent may run on in the child
        log(f"preparing windows: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _ended_well(pid: int) -> bool:
    _, status = os.waitpid(pid, 0)
    if status:
        log(f"windows are not prepared ({status})")
    return not status


@contextlib.contextmanager
def played(become: Callable[[], None], frames: int | None) -> Iterator[tuple[int, int]]:
    """A host that greets the agent at the other end of the channel, and a program that shows it a window.

    Yields that end and frame memory, for an agent to get in the block, with which the window is over.

    :param frames: the frame memory, if there is one already.
    """
    ours, theirs = sockets.pair()
    theirs.setblocking(False)
    made = os.memfd_create("frames", os.MFD_CLOEXEC) if frames is None else os.dup(frames)
    try:
        if frames is None:
            os.ftruncate(made, FRAMES)

        def act() -> None:
            become()
            os.chdir("/")
            _be_host(ours.fileno())

        def stage() -> None:
            theirs.close()
            rehearsal.set_up(IN_MEMORY)
            # Process 1 of its namespace: all that it started ends with it.
            actor = _fork(act)
            ours.close()
            if not _ended_well(actor):
                raise OSError("no window was shown")

        pid = _fork(stage)
        ours.close()
        yield theirs.fileno(), made
        theirs.close()
        _ended_well(pid)
    finally:
        theirs.close()
        ours.close()
        os.close(made)


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
        if any(isinstance(message, Hello) for message in end.receive(data)):
            os.write(channel, end.answer(Screen(*server.PREPARED_SIZE)))
            environment = {**os.environ, "DISPLAY": server.DISPLAY, "LANG": "C.UTF-8"}
            pid = os.posix_spawnp(PROGRAM[0], PROGRAM, environment)
            program = os.pidfd_open(pid)
            poll.register(program, select.POLLIN)
