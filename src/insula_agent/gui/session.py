"""``python3 -I -S …/gui/session.py USER``: the user's session, while the host shows this qube's windows.

Started by the agent when the host says that windows are wanted (:mod:`insula_agent.windows`), as root, for what only
root may open: the frame memory and the port of the windows. For each connection of the host it forks a GUI agent,
which is the user's; the X server and the programs outlive that. Standard input is the gate at which calls wait for the
session: a FIFO whose path :data:`GATE` goes, and whose last writer lets go, when the X server is there. With
``--prepared`` (in a seed) it is a socket by which that comes later, in a fork.
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
from insula_agent.gui.server import PREPARED_SIZE, NoDisplay
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


def wait_for_end(pid: int, account: pwd.struct_passwd, bus: Bus | None) -> int:
    """Return a process's exit code when it has ended; start the bus meanwhile, if a program waits for it."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if bus is not None and bus.fileno() >= 0:
        poll.register(bus.fileno(), select.POLLIN)
    while pidfd not in [fd for fd, _ in poll.poll()]:
        assert bus is not None
        poll.unregister(bus.fileno())
        bus.start(lambda: become(account))
    os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def run_agent(
    account: pwd.struct_passwd,
    port: int,
    frames: int,
    gate: Gate,
    bus: Bus | None,
    replaceable: tuple[int, int] | None,
) -> int:
    """Be the agent of one connection in a process of its own; return its exit code."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        code = EXIT_NO_HOST
        try:
            os.close(reading)
            gate.let_go()
            become(account)
            from insula_agent.gui import main  # noqa: PLC0415 - in the process that needs it

            code = main.serve(port, frames, lambda: os.write(writing, READY), replaceable)
        except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the parent may run on in the child
            log(f"windows: {type(error).__name__}: {error}")
        finally:
            os._exit(code)
    os.close(writing)
    # The port is the agent's alone: closed there, it is closed for the host.
    os.close(port)
    if os.read(reading, 1) == READY:
        show_session(account)
        gate.open()
    os.close(reading)
    return wait_for_end(pid, account, bus)


def serve(account: pwd.struct_passwd, gate: Gate, replaceable: tuple[int, int] | None = None) -> None:
    """Have an agent for each connection of the host, until they fail one after the other.

    :param replaceable: size of the X server that runs already, if so.
    """
    make_folders(account)
    bus = None
    try:
        bus = Bus(f"/run/user/{account.pw_uid}/bus", account.pw_uid, account.pw_gid)
    except OSError as error:
        # Somebody else serves one, or nobody does: most programs live without.
        log(f"no bus of the session: {error}")
    frames = device.open_memory()
    failures = 0
    while failures < MAX_FAILURES:
        port = os.open(boot.find_device(CHANNEL), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        wait_for_host(port)
        begun = time.monotonic()
        code = run_agent(account, port, frames, gate, bus, replaceable)
        replaceable = None
        failures = 1 if time.monotonic() - begun > RETRY_S * MAX_FAILURES else failures + 1
        log(f"windows: the agent ended ({code})")
        time.sleep(RETRY_S)


def prepare(account: pwd.struct_passwd, line: _socket.socket) -> Gate | None:
    """In a seed: have all there but who wants it, say so, and wait for the gate; None: there will be no session."""
    from insula_agent.gui import prepared  # noqa: PLC0415 - in a seed only

    make_folders(account)
    prepared.prepare(lambda: become(account))
    line.sendall(READY)
    _, descriptors = sockets.receive_with_descriptors(line, 1, 1)
    line.close()
    return Gate(descriptors[0]) if descriptors else None


def main(arguments: list[str]) -> int:
    is_prepared = arguments[1:] == [PREPARED]
    if len(arguments) != 1 + is_prepared:
        log(f"usage: session.py USER [{PREPARED}], standard input is the gate, or the line by which it will come")
        return EXIT_USAGE
    descriptor = take_input()
    gate: Gate | None = None
    try:
        account = pwd.getpwnam(arguments[0])
        if is_prepared:
            gate = prepare(account, _socket.socket(fileno=descriptor))
            if gate is None:
                # Somebody else is to have one.
                server.stop()
                return 0
            serve(account, gate, PREPARED_SIZE)
        else:
            gate = Gate(descriptor)
            serve(account, gate)
    except (KeyError, NoDisplay, NoFrames, OSError) as error:
        log(f"windows: {error}")
    finally:
        # There will be no session: who waits is to fail by itself, not by a limit.
        if gate is not None:
            gate.open()
    return EXIT_NO_HOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
