"""Calling a service of another qube with a file as its input, from a program of this one."""

from __future__ import annotations

import os
import sys

from insula_agent.client_call import command, exit_code, start, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 65536
_SIGTERM = 15


class Call:
    """A call under way: its answer is read from ``output``; :meth:`wait` gives its exit code."""

    def __init__(self, pid: int, output: int) -> None:
        self._pid = pid
        self.output = output

    def hang_up(self) -> None:
        """Nothing more of it is wanted; :meth:`wait` is still to be called."""
        os.kill(self._pid, _SIGTERM)

    def wait(self) -> int:
        """Close, wait for the end, as :func:`insula_agent.client_call.exit_code` has it."""
        os.close(self.output)
        return exit_code(self._pid)


def call(target: str, service: str, source: int) -> Call:
    """Start it, ``source`` its input. :raise OSError: it cannot be started."""
    reading, writing = os.pipe()
    try:
        pid = start(command(target, service), source, writing)
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
        write_all(sink, data)
        data = os.read(source, CHUNK)


def receive(output: int, take: Callable[[bytes], None]) -> None:
    """Pass on all the call answers, until its end."""
    while data := os.read(output, CHUNK):
        take(data)
