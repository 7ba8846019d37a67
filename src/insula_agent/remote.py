"""Calling a service of another qube from a program of this one: through ``qrexec-client-vm``, as everybody does."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLIENT = "qrexec-client-vm"
CLIENT_VARIABLE = "QREXEC_CLIENT_PATH"
"""Names another program to use in its place (published, agent-services §10)."""
EXIT_REFUSED = 126
CHUNK = 65536


_SIGTERM = 15
_SIGPIPE = 13
"""Python ignores it; other programs need not."""


class Call:
    """A call under way: its answer is read from ``output``; :meth:`wait` gives its exit code."""

    def __init__(self, pid: int, output: int) -> None:
        self._pid = pid
        self.output = output

    def hang_up(self) -> None:
        """Nothing more of it is wanted; :meth:`wait` is still to be called."""
        os.kill(self._pid, _SIGTERM)

    def wait(self) -> int:
        """Close, wait for the end. 128 + N: killed by signal N."""
        os.close(self.output)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return code if code >= 0 else 128 - code


def command(target: str, service: str) -> list[str]:
    """The program and its arguments. Who may be called is for policy to say."""
    return [os.environ.get(CLIENT_VARIABLE) or CLIENT, "--", target, service]


def call(target: str, service: str, source: int) -> Call:
    """Start it, ``source`` its input. :raise OSError: it cannot be started."""
    argv = command(target, service)
    reading, writing = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, writing, 1)]
        pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setsigdef=[_SIGPIPE])
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return Call(pid, reading)


def feed(prefix: bytes, source: int) -> int:
    """A descriptor that gives ``prefix``, then all that ``source`` has; a process of its own fills it.

    It ends with its reader. Its own exit status is of no interest: who reads sees what is missing.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.close(reading)
            _copy(prefix, source, writing)
        except OSError as error:
            sys.stderr.write(f"cannot pass on what is to be sent: {error}\n")
        finally:
            os._exit(0)
    os.close(writing)
    return reading


def _copy(data: bytes, source: int, sink: int) -> None:
    while data:
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
        data = os.read(source, CHUNK)


def receive(output: int, take: Callable[[bytes], None]) -> None:
    """Pass on all the call answers, until its end."""
    while data := os.read(output, CHUNK):
        take(data)
