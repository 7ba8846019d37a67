"""``insula-gui``: the process that shows one qube's windows.

``python -m insula.gui.process QUBE 0xRRGGBB CHANNEL MEMORY``: the last two are numbers of descriptors, a socket to the
guest's agent and the qube's frame memory. It ends when the guest does.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

from insula.gui.desktop import Command, Tell
from insula.gui.frame_memory import FrameMemory
from insula.gui.session import Session
from insula.gui.settings import Settings

EXIT_OK = 0
EXIT_DEFECT = 70
"""``EX_SOFTWARE``: half a session would be worse than none."""


def _defect(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """An exception in a slot would be printed and forgotten."""
    traceback.print_exception(kind, error, where)
    sys.stderr.flush()
    os._exit(EXIT_DEFECT)


def run(settings: Settings, channel: socket.socket, memory: FrameMemory) -> int:
    """Show the windows until the guest is gone; return the exit code."""
    from insula.gui.backend import qt  # noqa: PLC0415 - the toolkit is loaded where it is used (decision 012)
    from insula.gui.backend.qt_loop import QtLoop  # noqa: PLC0415 - as above

    os.environ.update(qt.environment())
    sys.excepthook = _defect
    app = qt.application(settings.qube)
    backend = qt.QtBackend(app, settings, memory)

    class Owner:
        def commanded(self, command: Command) -> None:
            if isinstance(command, Tell):
                print(f"insula-gui {settings.qube}: {command.text}", file=sys.stderr, flush=True)

        def ended(self, reason: str) -> None:
            print(f"insula-gui {settings.qube}: {reason}", file=sys.stderr, flush=True)
            app.exit(EXIT_OK)

    session = Session(channel, settings, memory.size, backend, Owner(), QtLoop())
    backend.listen(session.happened)
    code = app.exec()
    session.close()
    return int(code)


def main(arguments: Sequence[str]) -> int:
    qube, colour, channel, memory = arguments
    with FrameMemory(int(memory)) as mapped:
        return run(Settings(qube, int(colour, 16)), socket.socket(fileno=int(channel)), mapped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
