"""``insula-ssh-agent``: an ssh-agent whose keys are in another qube. Each connection to it is one call.

It runs a command with ``SSH_AUTH_SOCK`` set; or goes to the background and says what to set, as ssh-agent does; or
serves the socket systemd gave it (insula-ssh-agent@KEYSET.socket). It reads nothing of what is said.
"""

from __future__ import annotations

import os
import select
import socket
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import client_call, consent, files
from insula_agent.split_ssh import keyset

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]  # isort: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE = "qubes.SshAgent"
DOMAIN_VARIABLE = "INSULA_SSH_DOMAIN"
DOMAIN_FILE = "/rw/config/split-ssh-domain"
MAX_CALLS = 16
"""Calls at once; a further connection waits."""
MAX_WAITING = 64
_SIGPIPE, _SIGTERM = 13, 15
FIRST_PASSED_FD = 3
"""sd_listen_fds(3)."""

USAGE = """usage: insula-ssh-agent [-t QUBE] [-a SOCKET] [KEYSET] [-- COMMAND…]

An ssh-agent whose keys are in another qube, the set KEYSET of them ("default" if not named).

  -t, --target QUBE   the qube with the keys (default: INSULA_SSH_DOMAIN, /rw/config/split-ssh-domain, @default)
  -a SOCKET           where to listen (default: in the user's private folder)
  -- COMMAND…         run this with SSH_AUTH_SOCK set, end with it; without one: go to the background, print what to set
"""


class Options:
    __slots__ = ("command", "keyset", "path", "target")

    def __init__(self) -> None:
        self.target = ""
        self.path = ""
        self.keyset = ""
        self.command: list[str] = []


def parse_options(arguments: list[str]) -> Options | None:
    """Return the options; None if they are not understood."""
    options = Options()
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if option in ("-t", "--target") and rest:
            options.target = rest.pop(0)
        elif option == "-a" and rest:
            options.path = rest.pop(0)
        elif option == "--":
            options.command = rest
            return options if rest else None
        elif option.startswith("-") or options.keyset:
            return None
        else:
            options.keyset = option
    return options


def domain(environment: Mapping[str, str], configured: str) -> str:
    """The qube that has the keys, where no option says it."""
    return environment.get(DOMAIN_VARIABLE) or configured.strip() or "@default"


class Relay:
    """Accepts connections, and hands each to a call."""

    def __init__(self, listener: socket.socket, argv: list[str]) -> None:
        self._listener = listener
        self._argv = argv
        self._calls: dict[int, int] = {}
        """pidfd → pid of each call under way."""

    def run(self, until: int | None = None) -> None:
        """Serve until that pidfd's process ends; None: for ever."""
        while True:
            watched = select.poll()
            for fd in [*self._calls, *([until] if until is not None else [])]:
                watched.register(fd, select.POLLIN)
            if len(self._calls) < MAX_CALLS:
                watched.register(self._listener, select.POLLIN)
            for fd, _ in watched.poll():
                if fd == until:
                    return
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    os.waitpid(self._calls.pop(fd), 0)
                    os.close(fd)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            fd = connection.fileno()
            actions = [(os.POSIX_SPAWN_DUP2, fd, 0), (os.POSIX_SPAWN_DUP2, fd, 1)]
            try:
                pid = os.posix_spawnp(self._argv[0], self._argv, os.environ, file_actions=actions, setsigdef=[_SIGPIPE])
            except OSError as error:
                # This connection is closed; the next one may find it.
                sys.stderr.write(f"{self._argv[0]}: {error}\n")
                return
        self._calls[os.pidfd_open(pid)] = pid


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o077)
    try:
        listener.bind(path)
    finally:
        os.umask(old_mask)
    listener.listen(MAX_WAITING)
    return listener


def _passed() -> socket.socket | None:
    """The socket systemd gave us, if it did."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=FIRST_PASSED_FD)


def _run_command(command: list[str], relay: Relay) -> int:
    pid = os.posix_spawnp(command[0], command, os.environ, setsigdef=[_SIGPIPE])
    ended = os.pidfd_open(pid)
    relay.run(ended)
    os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _detach() -> None:
    """Let go of the terminal and of who waits for our output."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)
    os.chdir("/")


def _terminate(number: int, frame: object) -> None:
    """End as after the last call: the socket's name goes away."""
    del frame
    raise SystemExit(128 + number)


def run(options: Options) -> int:
    """:raise OSError: :raise ValueError: no such qube or set of keys can be."""
    name = keyset.check_name(options.keyset)
    target = options.target or domain(os.environ, files.read(DOMAIN_FILE))
    argv = client_call.command(target, f"{SERVICE}+{name}")
    passed = _passed()
    if passed is not None:
        Relay(passed, argv).run()
    path = options.path or f"{consent.private_folder(os.environ)}/ssh-agent-{name}.{os.getpid()}"
    relay = Relay(_listen(path), argv)
    _signal.signal(_SIGTERM, _terminate)
    try:
        os.environ["SSH_AUTH_SOCK"] = path
        if options.command:
            return _run_command(options.command, relay)
        pid = os.fork()
        if pid:
            sys.stdout.write(f"SSH_AUTH_SOCK={path}; export SSH_AUTH_SOCK;\n")
            sys.stdout.write(f"SSH_AGENT_PID={pid}; export SSH_AGENT_PID;\n")
            # The background's from now on.
            path = ""
            return 0
        _detach()
        relay.run()
        return 0
    finally:
        if path:
            os.unlink(path)


def main(arguments: list[str]) -> int:
    options = parse_options(arguments)
    if options is None:
        sys.stderr.write(USAGE)
        return 2
    try:
        return run(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"insula-ssh-agent: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
