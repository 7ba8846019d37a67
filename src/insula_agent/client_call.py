"""A call to another qube, made by a command of this one through ``qrexec-client-vm``, as everybody does.

The published way is to have it start a program with the channel as its input and output. Here the command itself is at
the other end: that saves an interpreter's start, and the command knows how the call ended. :class:`ClientCall` has a
pipe each way; :mod:`insula_agent.remote` is for calls whose input is a file.
"""

from __future__ import annotations

import os

from insula_agent.conveyor import enlarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENT = "qrexec-client-vm"
CLIENT_VARIABLE = "QREXEC_CLIENT_PATH"
"""Names another program to use in its place (published, agent-services §10)."""
PIPE_SIZE = 1 << 20
"""Bytes; a user may have as much. The fewer changes between the two programs the better."""
EXIT_REFUSED = 126
EXIT_INTERRUPTED = 130
"""The person pressed Ctrl-C: said by no traceback."""
_SIGPIPE = 13
"""Python ignores it; other programs need not."""


def command(target: str, service: str, options: Sequence[str] = ()) -> list[str]:
    """The program and its arguments. Who may be called is for policy to say."""
    return [os.environ.get(CLIENT_VARIABLE) or CLIENT, *options, "--", target, service]


def start(argv: list[str], stdin: int, stdout: int) -> int:
    """Its process id. :raise OSError: it cannot be started."""
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setsigdef=[_SIGPIPE])


def exit_code(pid: int) -> int:
    """Wait for its end: the service's exit code, or what the client made of it. 128 + N: killed by signal N."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


class ClientCall:
    """The call, from its start. ``stdin`` and ``stdout`` are the service's, seen from here; the caller closes them.

    :raise OSError: there is no client.
    """

    def __init__(self, target: str, service: str, options: Sequence[str] = ()) -> None:
        inner_in, self.stdin = os.pipe2(os.O_CLOEXEC)
        self.stdout, inner_out = os.pipe2(os.O_CLOEXEC)
        try:
            enlarge(self.stdin, PIPE_SIZE)
            enlarge(self.stdout, PIPE_SIZE)
            self._pid = start(command(target, service, options), inner_in, inner_out)
        except OSError:
            self.close_stdin()
            self.close_stdout()
            raise
        finally:
            os.close(inner_in)
            os.close(inner_out)

    def close_stdin(self) -> None:
        """The service gets no more."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close_stdout(self) -> None:
        """Nothing more is taken from the service."""
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1

    def wait(self) -> int:
        """End both ways and wait: the service's exit code, or what the client made of it."""
        self.close_stdin()
        self.close_stdout()
        return exit_code(self._pid)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """:raise OSError:"""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
