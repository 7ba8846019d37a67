"""Programs that are run to their end, where the system has no call for what they do; and becoming another one."""

from __future__ import annotations

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

_IGNORED_BY_PYTHON = (13, 25)
"""SIGPIPE, SIGXFSZ: another program is to meet them as usual."""
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class ProgramFailed(Exception):
    """It ended with an exit status that is not accepted."""


def run(argv: Sequence[str], accept: int = 0, stdin: str | None = None) -> int:
    """Run a program; its exit status.

    :param stdin: what it reads; None: our own.
    :raise ProgramFailed: the status is above ``accept``.
    :raise OSError: not started.
    """
    if stdin is None:
        pid = os.posix_spawnp(argv[0], list(argv), ENVIRONMENT, setsigmask=())
    else:
        # A file and not a pipe: nobody has to write while it runs.
        fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            os.write(fd, stdin.encode("utf-8"))
            os.lseek(fd, 0, os.SEEK_SET)
            actions = [(os.POSIX_SPAWN_DUP2, fd, 0)]
            pid = os.posix_spawnp(argv[0], list(argv), ENVIRONMENT, file_actions=actions, setsigmask=())
        finally:
            os.close(fd)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if not 0 <= code <= accept:
        raise ProgramFailed(f"{argv[0]} failed (exit status {code})")
    return code


def become(argv: Sequence[str]) -> NoReturn:
    """Replace this process by a program found in PATH; a vector, no shell. :raise OSError: it cannot be executed."""
    for number in _IGNORED_BY_PYTHON:
        _signal.signal(number, _signal.SIG_DFL)
    os.execvp(argv[0], list(argv))  # noqa: S606 - no shell
