"""``insula-gui``: the process that shows one qube's windows.

It is forked from a preloaded parent that has imported Qt. In two steps (``insula.preload``): :func:`prepare` connects
to the desktop while the display server's socket, fonts and plug-ins can be seen, and uses once what is loaded late;
then the process loses all of the host but what is open, and :func:`main` waits to be handed a qube, perhaps for long:
the channel to its agent and its frame memory come with the daemon's first message. Only then a guest is listened to.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

from PySide6.QtCore import QTimer
from PySide6.QtGui import QGuiApplication

from insula.gui import clip_file, control
from insula.gui.backend import qt, qt_frame
from insula.gui.backend.qt_loop import QtLoop
from insula.gui.control import (
    Configure,
    CopyFailed,
    CopyOffered,
    CopyStarted,
    Deliver,
    Ending,
    Expect,
    Focused,
    FromGui,
    Greeted,
    PasteAsked,
    Told,
    printable,
)
from insula.gui.desktop import AskPaste, Command, Event, FailCopy, OfferCopy, StartCopy, Tell
from insula.gui.emulated import EmulatedEnd
from insula.gui.frame_memory import FrameMemory
from insula.gui.session import End, Session
from insula.gui.settings import Settings
from insula.preload import title
from insula_proto.errors import RemoteProtocolError

EXIT_OK = 0
EXIT_DAEMON_PROTOCOL = 65
EXIT_DEFECT = 70
"""As in sysexits.h."""
WITH_CONFIGURE = 2
"""Descriptors that come with the first message: channel and frame memory."""
MAX_UNTOLD = 64
"""Messages the daemon has not taken yet; above it, it is told nothing more of what can be left out."""


class _Prepared:
    """What :func:`prepare` leaves for :func:`main`."""

    app: QGuiApplication | None = None


def prepare(variables: Mapping[str, str]) -> None:
    """Connect to the desktop that the variables name; where that fails Qt ends the process."""
    os.environ.update(variables)
    os.environ.update(qt.environment())
    _Prepared.app = qt.application()
    qt_frame.rehearse()
    # What the loop starts when it first runs (a thread for D-Bus) must be there before no thread can be made any more.
    QTimer.singleShot(0, _Prepared.app.quit)
    _Prepared.app.exec()


def _defect(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """An exception in a slot would be printed and forgotten; half a session would be worse than none."""
    traceback.print_exception(kind, error, where)
    sys.stderr.flush()
    os._exit(EXIT_DEFECT)


class Process:
    """Joins the session of a guest and the daemon."""

    def __init__(self, app: QGuiApplication, daemon: socket.socket, settings: Settings) -> None:
        daemon.setblocking(False)
        self._app = app
        self._daemon = daemon
        self._settings = settings
        self._loop = QtLoop()
        self._untold: deque[tuple[FromGui, int | None]] = deque()
        self._had_focus = False
        self._session: Session | None = None
        self._code = EXIT_OK

    def run(self, channel: socket.socket, memory: FrameMemory, end: End | None) -> int:
        """Show the windows until the guest or the daemon is gone; return the exit code."""
        backend = qt.QtBackend(self._app, self._settings, memory)
        self._session = Session(channel, self._settings, memory.size, backend, self, self._loop, end)
        backend.listen(self._happened)
        self._loop.add_reader(self._daemon.fileno(), self._daemon_readable)
        self._app.exec()
        self._session.close()
        self._tell_all()
        return self._code

    def _finish(self, code: int) -> None:
        self._code = code
        # Not quit(): that asks every window to close, and the guest's programs would.
        self._app.exit(code)

    def _happened(self, event: Event) -> None:
        assert self._session is not None
        self._session.happened(event)
        if self._session.has_focus and not self._had_focus:
            self._tell(Focused())
        self._had_focus = self._session.has_focus

    # --- the daemon ----------------------------------------------------------------------------------------------

    def _daemon_readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._daemon, control.MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        try:
            if not data:
                self._finish(EXIT_OK)
                return
            message = control.decode_to_gui(data)
            if isinstance(message, Expect) and self._session is not None:
                self._session.expect()
                return
            if not isinstance(message, Deliver) or not descriptors or self._session is None:
                raise RemoteProtocolError(f"{type(message).__name__} now")  # noqa: TRY301 - handled as the decoder's
            untrusted_data = clip_file.read(descriptors[0], clip_file.limit(is_image=message.is_image))
            self._session.deliver(message.number, untrusted_data, is_image=message.is_image)
        except (RemoteProtocolError, ValueError) as error:
            print(f"insula-gui: {error}", file=sys.stderr, flush=True)
            self._finish(EXIT_DAEMON_PROTOCOL)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _tell(self, message: FromGui, descriptor: int | None = None) -> None:
        """Takes over the descriptor."""
        if len(self._untold) < MAX_UNTOLD:
            self._untold.append((message, descriptor))
            self._tell_all()
        elif descriptor is not None:
            os.close(descriptor)

    def _tell_all(self) -> None:
        try:
            while self._untold:
                message, descriptor = self._untold[0]
                descriptors = [] if descriptor is None else [descriptor]
                socket.send_fds(self._daemon, [control.encode(message)], descriptors)
                self._untold.popleft()
                if descriptor is not None:
                    os.close(descriptor)
        except BlockingIOError:
            self._loop.add_writer(self._daemon.fileno(), self._tell_all)
        except OSError:
            self._finish(EXIT_OK)
        else:
            self._loop.remove_writer(self._daemon.fileno())

    # --- the session's owner -------------------------------------------------------------------------------------

    def commanded(self, command: Command) -> None:
        """A command that is not about a window."""
        if isinstance(command, StartCopy):
            self._tell(CopyStarted(command.number, command.stamp))
        elif isinstance(command, OfferCopy):
            self._tell(CopyOffered(command.number, command.is_image), clip_file.make(command.data))
        elif isinstance(command, FailCopy):
            self._tell(CopyFailed(command.number, printable(command.reason)))
        elif isinstance(command, AskPaste):
            self._tell(PasteAsked(command.number, command.stamp))
        elif isinstance(command, Tell):
            self._tell(Told(printable(command.text)))

    def greeted(self) -> None:
        """The guest's agent has said its first words."""
        self._tell(Greeted())

    def ended(self, reason: str) -> None:
        """The guest is gone, or broke the protocol."""
        self._tell(Ending(printable(reason)))
        self._finish(EXIT_OK)


def _wait_for_daemon(app: QGuiApplication, daemon: socket.socket) -> None:
    """Return when it has said something, or has gone; what the desktop says meanwhile is heard."""
    loop = QtLoop()
    loop.add_reader(daemon.fileno(), app.exit)
    app.exec()
    loop.remove_reader(daemon.fileno())


def main(descriptors: Sequence[int]) -> int:
    """Program of the preloaded parent; its descriptor is a socket to the daemon, where the others come from."""
    sys.excepthook = _defect
    app = _Prepared.app
    daemon = socket.socket(fileno=descriptors[0])
    if app is None:
        return EXIT_DAEMON_PROTOCOL
    _wait_for_daemon(app, daemon)
    data, numbers, _, _ = socket.recv_fds(daemon, control.MAX_MESSAGE, WITH_CONFIGURE)
    if not data:
        return EXIT_OK
    configure = control.decode_to_gui(data)
    if not isinstance(configure, Configure) or len(numbers) != WITH_CONFIGURE:
        return EXIT_DAEMON_PROTOCOL
    channel_number, memory_number = numbers
    title.show(f"insula-gui {configure.qube}")
    settings = configure.settings()
    qt.name(app, settings.qube)
    # (Both end with the process: Qt's windows may still hold views of the memory.)
    memory = FrameMemory(memory_number)
    end = EmulatedEnd(memory_number, memory.size) if configure.is_emulated else None
    return Process(app, daemon, settings).run(socket.socket(fileno=channel_number), memory, end)
