"""Running an application until it and everything it started has ended.

Many programs go on in the background while what was started returns; a disposable would end under them. So this process
becomes the parent of whatever loses its own (``PR_SET_CHILD_SUBREAPER``), and waits for all.
"""

from __future__ import annotations

import os

from insula_agent import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PR_SET_CHILD_SUBREAPER = 36
"""<linux/prctl.h>"""
EXIT_NOT_STARTED = 127


def run(command: Sequence[str]) -> int:
    """The exit code of the program that was started; its output goes to our stderr, for stdout is the channel."""
    import ctypes  # noqa: PLC0415 - loaded by the first call anyway

    syscalls.call("prctl", _PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp(
            command[0], list(command), os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
        )  # fmt: skip
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode("utf-8", "replace"))
        return EXIT_NOT_STARTED
    finally:
        os.close(null)
    code = 0
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
