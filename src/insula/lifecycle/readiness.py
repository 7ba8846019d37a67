"""Making a qube that has just started ready to be somebody's at once: a disposable that is held ready.

::

    started ─► first command ─► booted to its end ─► first commands again ─► rests ─► paused, goes on, rests, paused

Its agent lets the rest of the system boot when a first command has ended. What has not been done by the time it is
paused is done when somebody waits for an answer. Under software emulation that goes for all code that has not been
translated yet, or has been pushed out of a translation cache by the boot: hence the second round, and the pause that is
rehearsed, with a clock that is set after it and all that wakes up in the guest because of that.

The commands are those that a user's first ones are made of, as the user that would run them. They say nothing that is
read, and leave nothing.
"""

from __future__ import annotations

from insula.hal.errors import HalError
from insula.lifecycle import nobody
from insula.lifecycle.host import Session, log
from insula.lifecycle.supervisor import Supervisor
from insula.model.errors import QubesVMNotStartedError
from insula_proto import vmexec

Command = tuple[bytes, ...]
FIRST: tuple[Command, ...] = ((b"true",),)
BOOTED = "qubes.WaitForRunningSystem"
"""Published service, which ends when the system has booted."""
COMMANDS: tuple[Command, ...] = (
    (b"true",),
    (b"echo",),
    (b"sh", b"-c", b":"),
    (b"bash", b"-l", b"-c", b":"),
    (b"python3", b"-c", b"pass"),
)
ROUNDS = 2
"""The second time is what is to become quick; and the first may empty a full translation cache in its midst."""


async def make_ready(supervisor: Supervisor) -> None:
    """Returns with the qube paused. What cannot be rehearsed is only slower later.

    :raise QubesException: it has ended, or cannot be paused.
    """
    running, session = supervisor.running, supervisor.session
    if running is None or session is None:
        raise QubesVMNotStartedError(f"{supervisor.name} is not running")
    try:
        await _run(session, FIRST)
        await session.tell_service(BOOTED, b"")
        for _ in range(ROUNDS):
            await _run(session, COMMANDS)
    except (OSError, TimeoutError) as e:
        log.warning("%s: not all of a first second could be rehearsed: %s", supervisor.name, e or "no answer")
    try:
        await nobody.wait_until_at_rest(running.machine)
        await supervisor.pause()
        await supervisor.unpause()
        await nobody.wait_until_at_rest(running.machine)
    except HalError as e:
        log.warning("%s: it may not rest: %s", supervisor.name, e)
    await supervisor.pause()


async def _run(session: Session, commands: tuple[Command, ...]) -> None:
    for command in commands:
        await session.tell_service(f"qubes.VMExec+{vmexec.encode(command).decode('ascii')}", b"", user="")
