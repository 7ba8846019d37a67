"""``python3 -I -S …/gui/session.py USER``: the user's session, while the host shows this qube's windows.

Started by the agent when the host says that windows are wanted (:mod:`insula_agent.windows`), as root, for what only
root may open: the frame memory and the port of the windows. For each connection of the host it forks a GUI agent,
which is the user's; the X server and the programs outlive that. Standard input is the gate at which calls wait for the
session: a FIFO whose path :data:`GATE` goes, and whose last writer lets go, when the X server is there.

With ``--prepared`` (in a seed) it is a line by which that comes later, in a fork. Until then the X server runs, an
agent is in it and waits for the host, and whoever made the fork may have a first window rehearsed
(:mod:`insula_agent.gui.prepared`).
"""

from __future__ import annotations

import _socket
import os
import pwd
import select
import sys
import time

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path, nor those of the system's libraries.
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
    sys.path.append("/usr/lib/python3/dist-packages")

from insula_agent import boot, files, sockets
from insula_agent.gui import device, server
from insula_agent.gui.bus import Bus
from insula_agent.gui.device import NoFrames
from insula_agent.gui.server import NoDisplay
from insula_agent.log import log

CHANNEL = "insula.gui"
GATE = "/run/insula/session-gate"
ENVIRONMENT = "/run/insula/session-env"
"""What programs are told of the session, by /etc/profile.d: lines for the shell."""
X_SOCKETS = "/tmp/.X11-unix"  # noqa: S108 - where X servers listen
RETRY_S = 0.5
MAX_FAILURES = 5
"""In a row; an agent that began to talk starts the count anew."""
EXIT_USAGE = 64
EXIT_NO_HOST = 69
READY = b"1"
REHEARSE = b"r"
"""On the line of a session that is prepared."""
PREPARED = "--prepared"


def take_input() -> int:
    """Standard input, moved to where no program that is started here has it."""
    descriptor = os.dup(0)
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    return descriptor


class Gate:
    """Where calls wait for the session."""

    def __init__(self, descriptor: int) -> None:
        """Takes it over."""
        self._descriptor = descriptor

    def open(self) -> None:
        """Let all go on who wait or will wait; idempotent."""
        if self._descriptor >= 0:
            try:
                os.unlink(GATE)
            except FileNotFoundError:
                log("the gate of the session is gone already")
            self.let_go()

    def let_go(self) -> None:
        """Somebody else opens it; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def make_folders(account: pwd.struct_passwd) -> None:
    """What a login would have made: a run-time folder of the user, and the one of X servers."""
    runtime = f"/run/user/{account.pw_uid}"
    os.makedirs("/run/user", mode=0o755, exist_ok=True)
    for path, mode in ((runtime, 0o700), (X_SOCKETS, 0o1777)):
        try:
            os.mkdir(path)
        except FileExistsError:
            continue
        os.chmod(path, mode)
        if path == runtime:
            os.chown(path, account.pw_uid, account.pw_gid)


def wait_for_host(port: int) -> None:
    """Return when a host is connected to the port; looks only when something changes."""
    poll = select.epoll()
    try:
        poll.register(port, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        while any(events & select.EPOLLHUP for _, events in poll.poll()):
            pass
    finally:
        poll.close()


def become(account: pwd.struct_passwd) -> None:
    """Be the user, as after a login."""
    os.setgroups(os.getgrouplist(account.pw_name, account.pw_gid))
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.clear()
    os.environ.update(
        HOME=account.pw_dir,
        USER=account.pw_name,
        PATH="/usr/local/bin:/usr/bin:/bin",
        XDG_RUNTIME_DIR=f"/run/user/{account.pw_uid}",
    )
    os.chdir(account.pw_dir if os.path.isdir(account.pw_dir) else "/")


def show_session(account: pwd.struct_passwd) -> None:
    """Have the shells of calls that come from now on know of the session."""
    runtime = f"/run/user/{account.pw_uid}"
    values = {
        "DISPLAY": server.DISPLAY,
        "XDG_RUNTIME_DIR": runtime,
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus",
    }
    files.write(ENVIRONMENT, "".join([f"export {name}={value}\n" for name, value in values.items()]))


class Agent:
    """The GUI agent of the host's next connection, in a process of its own, which is the user's."""

    def __init__(self, account: pwd.struct_passwd, gate: Gate | None, *, may_replace: bool) -> None:
        self._account = account
        self._line, theirs = sockets.pair()
        self._pid = os.fork()
        if self._pid:
            theirs.close()
            return
        code = EXIT_NO_HOST
        try:
            self._line.close()
            if gate is not None:
                gate.let_go()
            become(account)
            # Nothing that stays may hold the home folder of nobody.
            os.chdir("/")
            from insula_agent.gui import main  # noqa: PLC0415 - in the process that needs it

            code = main.serve(theirs, lambda: theirs.send(READY), may_replace=may_replace)
        except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the parent may run on in the child
            log(f"windows: {type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def hand(self, channel: int, frames: int) -> None:
        """The host is there. Both stay the caller's. :raise OSError: it has ended."""
        sockets.send_with_descriptors(self._line, READY, [channel, frames])

    def is_ready(self) -> bool:
        """Whether programs can be started, once that is known."""
        try:
            return self._line.recv(1) == READY
        except OSError:
            # It ended before it took what it was handed.
            return False

    def wait(self, bus: Bus | None) -> int:
        """Return its exit code when it has ended; start the bus meanwhile, if a program waits for it."""
        self._line.close()
        pidfd = os.pidfd_open(self._pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if bus is not None and bus.fileno() >= 0:
            poll.register(bus.fileno(), select.POLLIN)
        while pidfd not in [fd for fd, _ in poll.poll()]:
            assert bus is not None
            poll.unregister(bus.fileno())
            bus.start(lambda: become(self._account))
        os.close(pidfd)
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)


class Session:
    def __init__(self, account: pwd.struct_passwd) -> None:
        self._account = account
        self._bus: Bus | None = None
        self._agent: Agent | None = None
        self._may_replace = False
        self._frames: int | None = None

    def prepare(self, line: _socket.socket) -> Gate | None:
        """In a seed: have all there but who wants it, say so, and wait for the gate; None: there will be no session."""
        from insula_agent.gui import prepared  # noqa: PLC0415 - in a seed only

        make_folders(self._account)
        self._may_replace = True
        if prepared.start_server(lambda: become(self._account)):
            self._next_agent(None)
            self._rehearse()
        line.sendall(READY)
        while True:
            data, descriptors = sockets.receive_with_descriptors(line, 1, 1)
            if data != REHEARSE:
                break
            self._rehearse()
            line.sendall(READY)
        line.close()
        return Gate(descriptors[0]) if descriptors else None

    def _rehearse(self) -> None:
        """Show a window to nobody. What fails is logged: it is only slower later."""
        from insula_agent.gui import prepared  # noqa: PLC0415 - as above

        if self._agent is None:
            return
        # A fork that waits to be somebody has it already.
        self._frames = device.open_if_there()
        with prepared.played(lambda: become(self._account), self._frames) as (channel, frames):
            self._agent.hand(channel, frames)
        log(f"windows: rehearsed ({self._agent.wait(None)})")
        self._next_agent(None)

    def _next_agent(self, gate: Gate | None) -> Agent:
        self._agent = Agent(self._account, gate, may_replace=self._may_replace)
        return self._agent

    def serve(self, gate: Gate) -> None:
        """Have an agent for each connection of the host, until they fail one after the other."""
        frames = device.open_memory() if self._frames is None else self._frames
        failures = 0
        while failures < MAX_FAILURES:
            agent = self._agent or self._next_agent(gate)
            port = os.open(boot.find_device(CHANNEL), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            wait_for_host(port)
            begun = time.monotonic()
            try:
                agent.hand(port, frames)
            except OSError as error:
                log(f"windows: the agent has gone: {error}")
            # The port is the agent's alone: closed there, it is closed for the host.
            os.close(port)
            self._serve_bus()
            if agent.is_ready():
                show_session(self._account)
                gate.open()
            code = agent.wait(self._bus)
            self._agent = None
            self._may_replace = False
            failures = 1 if time.monotonic() - begun > RETRY_S * MAX_FAILURES else failures + 1
            log(f"windows: the agent ended ({code})")
            time.sleep(RETRY_S)

    def _serve_bus(self) -> None:
        """Be where programs look for the session's bus; idempotent."""
        if self._bus is not None:
            return
        make_folders(self._account)
        try:
            self._bus = Bus(f"/run/user/{self._account.pw_uid}/bus", self._account.pw_uid, self._account.pw_gid)
        except OSError as error:
            # Somebody else serves one, or nobody does: most programs live without.
            log(f"no bus of the session: {error}")


def main(arguments: list[str]) -> int:
    is_prepared = arguments[1:] == [PREPARED]
    if len(arguments) != 1 + is_prepared:
        log(f"usage: session.py USER [{PREPARED}], standard input is the gate, or the line by which it will come")
        return EXIT_USAGE
    descriptor = take_input()
    gate: Gate | None = None
    try:
        session = Session(pwd.getpwnam(arguments[0]))
        gate = session.prepare(_socket.socket(fileno=descriptor)) if is_prepared else Gate(descriptor)
        if gate is None:
            # Somebody else is to have one.
            server.stop()
            return 0
        session.serve(gate)
    except (KeyError, NoDisplay, NoFrames, OSError) as error:
        log(f"windows: {error}")
    finally:
        # There will be no session: who waits is to fail by itself, not by a limit.
        if gate is not None:
            gate.open()
    return EXIT_NO_HOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
