"""``qvm-run-vm``: run a command in another qube, its input and output ours (``qubes.VMShell``).

The command goes first, as one line that the shell of the service becomes; what follows is the command's input. After
that this program *is* ``qrexec-client-vm``, which joins both ends.
"""

from __future__ import annotations

import os
import sys

from insula_agent.client_call import CLIENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DISPOSABLE = "@dispvm"

USAGE = """usage: qvm-run-vm [OPTIONS] QUBE COMMAND [ARGUMENT...]
       qvm-run-vm [OPTIONS] --dispvm COMMAND [ARGUMENT...]

Runs a command in another qube. Its words are joined by blanks and read by a shell there.

  --dispvm   in a new disposable, which ends with the command
  --no-gui   do not wait for the disposable's desktop
  --help     show this
"""


class Request:
    """What was asked for."""

    __slots__ = ("service", "target", "text")

    def __init__(self, target: str, service: str, text: str) -> None:
        self.target = target
        self.service = service
        self.text = text


def parse(arguments: Sequence[str]) -> Request | None:
    """None: not understood, or help was asked for."""
    rest = list(arguments)
    is_disposable, has_gui = False, True
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--":
            break
        if option in ("--dispvm", "-d"):
            is_disposable = True
        elif option in ("--no-gui", "-t"):
            has_gui = False
        else:
            return None
    target = DISPOSABLE if is_disposable else (rest.pop(0).replace("$", "@", 1) if rest else "")
    if not target or not rest or "\0" in "".join(rest):
        return None
    # In a qube that is there already the agent knows whether somebody is at its desktop.
    waits = has_gui and (target == DISPOSABLE or target.startswith(DISPOSABLE + ":"))
    return Request(target, "qubes.VMShell" + ("+WaitForSession" if waits else ""), " ".join(rest))


def first_line(text: str) -> bytes:
    """What the service's shell reads and becomes; quoted, so that it is one word to it whatever it is."""
    quoted = "'" + text.replace("'", "'\\''") + "'"
    return os.fsencode(f'exec "${{BASH:-/bin/sh}}" -c {quoted} || exit 127\n')


def main(arguments: Sequence[str]) -> int:
    request = parse(arguments)
    if request is None:
        sys.stderr.write(USAGE)
        return 0 if "--help" in arguments or "-h" in arguments else 1
    prefix = os.fsdecode(first_line(request.text))
    try:
        os.execvp(CLIENT, [CLIENT, f"--prefix-data={prefix}", "--", request.target, request.service])  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"qvm-run-vm: {CLIENT}: {error.strerror}\n")
        return 1
