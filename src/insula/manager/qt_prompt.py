"""The back end of windows: Qt in the main thread, the socket in a thread of its own.

Qt's event loop and asyncio's do not share a thread. Between them go events, as queued signals, and answers, as calls
into the other loop; nothing else is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Mapping

from PySide6.QtCore import QObject, QSocketNotifier, Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import QApplication

from insula.admin.client import AccessRefused, AdminClient, DaemonUnavailable
from insula.daemon.paths import Paths
from insula.manager.agent_server import AgentServer, ServerEvent
from insula.manager.colours import Colours
from insula.manager.desk import Desk
from insula.manager.host_mark import HostMark
from insula.manager.notices import ShownNotice
from insula.manager.notifications import NotificationCommand
from insula.manager.prompt import Asked, ScreenLocked, View
from insula.manager.qt_dialog import PromptDialog
from insula.manager.qt_lock import LockWatch
from insula.manager.qt_notices import NoticeStack
from insula.model.errors import InsulaError
from insula.policy.agent import Notification

LABELS_TIMEOUT_S = 5.0
"""For the colours of labels; until they come, a label that a user made is grey."""
_START_TIMEOUT_S = 60.0
"""For a thread to open a socket; what fails is told at once."""


class _Bridge(QObject):
    """Carries what the server's thread has to say into Qt's."""

    happened = Signal(object)
    labels_came = Signal(object)
    ended = Signal(object)


class _ServerThread(threading.Thread):
    def __init__(self, paths: Paths, bridge: _Bridge) -> None:
        super().__init__(name="policy agent")
        self._paths = paths
        self._bridge = bridge
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: AgentServer | None = None
        self._stopping: asyncio.Event | None = None
        self._is_up = threading.Event()
        self.error: Exception | None = None

    def begin(self) -> None:
        """Return when the socket is there. :raise AlreadyServed, OSError:"""
        self.start()
        if not self._is_up.wait(_START_TIMEOUT_S):
            raise TimeoutError(f"no socket was there after {_START_TIMEOUT_S:g} s")
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it ended by itself just now
                self._loop.call_soon_threadsafe(self._stopping.set)
        self.join()

    def answer(self, number: int, target: str | None) -> None:
        assert self._loop is not None
        assert self._server is not None
        self._loop.call_soon_threadsafe(self._server.answer, number, target)

    def ask_labels(self) -> None:
        """Their colours come as a signal, if the daemon knows them."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._ask_labels(), self._loop)

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # the boundary of the thread: the main thread has to know, or would wait for ever
            self.error = error
            self._bridge.ended.emit(error)
        finally:
            self._is_up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        async with AgentServer(self._paths.policy_agent_socket, self._heard) as self._server:
            self._is_up.set()
            await self._stopping.wait()

    def _heard(self, event: ServerEvent) -> None:
        self._bridge.happened.emit(event)

    async def _ask_labels(self) -> None:
        with contextlib.suppress(InsulaError, DaemonUnavailable, AccessRefused, TimeoutError, OSError):
            async with asyncio.timeout(LABELS_TIMEOUT_S):
                self._bridge.labels_came.emit(await AdminClient(self._paths.admin_socket).list_labels())


class QtSurface(QObject):
    """What :class:`Desk` shows things on. An object of Qt, so that signals of another thread reach it in its own."""

    def __init__(self, mark: HostMark, server: _ServerThread) -> None:
        super().__init__()
        self._colours = Colours()
        self._server = server
        self._desk = Desk(self, server.answer)
        self._dialog = PromptDialog(mark, self._colours, self._desk.feed)
        self._notices = NoticeStack(mark, self._colours)

    # for the desk

    def show(self, view: View) -> None:
        self._dialog.render_view(view)
        if not self._dialog.isVisible():
            self._dialog.present()

    def hide(self) -> None:
        self._dialog.forget()

    def tell(self, notice: ShownNotice) -> None:
        self._notices.add(notice)

    def notify(self, command: NotificationCommand) -> None:
        self._notices.obey(command)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        # Rounded up: an answer must not count a moment too early.
        QTimer.singleShot(int(seconds * 1000) + 1, function)

    # from the server's thread, and from the desktop

    @Slot(object)
    def happened(self, event: ServerEvent) -> None:
        if isinstance(event, Asked) and self._colours.unknown_labels(event.question):
            self._server.ask_labels()
        if isinstance(event, Notification) and not self._colours.knows(event.icon):
            self._server.ask_labels()
        self._desk.feed(event)

    @Slot(object)
    def labels_came(self, untrusted_labels: Mapping[str, str]) -> None:
        self._colours.learn(untrusted_labels)
        self._dialog.recolour()
        self._notices.recolour()

    @Slot(object)
    def ended(self, _error: Exception) -> None:
        QApplication.exit(0)

    def screen_locked(self, is_locked: bool) -> None:
        self._desk.feed(ScreenLocked(is_locked))


def serve(paths: Paths, mark: HostMark) -> None:
    """Ask in windows until the program is told to end.

    :raise AlreadyServed:
    :raise OSError: the socket cannot be made.
    """
    application = QApplication(["insula-prompt"])
    application.setDesktopFileName("insula-prompt")
    application.setQuitOnLastWindowClosed(False)
    bridge = _Bridge()
    server = _ServerThread(paths, bridge)
    surface = QtSurface(mark, server)
    for signal_, slot in (
        (bridge.happened, surface.happened),
        (bridge.labels_came, surface.labels_came),
        (bridge.ended, surface.ended),
    ):
        signal_.connect(slot, Qt.ConnectionType.QueuedConnection)
    watch = LockWatch(surface.screen_locked)
    with _signals_end(application):
        server.begin()
        try:
            watch.begin()
            application.exec()
        finally:
            server.end()
    if server.error is not None:
        raise server.error


class _signals_end:  # noqa: N801 - used like a function
    """SIGTERM and SIGINT end the event loop. Python sees a signal only between its own instructions, and Qt's loop has
    none; a byte in a socket wakes it, also when the loop begins only after the signal."""

    def __init__(self, application: QApplication) -> None:
        self._application = application
        self._is_ended = False

    def __enter__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self._earlier_descriptor = signal.set_wakeup_fd(self._writing.fileno())
        self._earlier = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        self._notifier = QSocketNotifier(self._reading.fileno(), QSocketNotifier.Type.Read)
        self._notifier.activated.connect(self._woken)

    def __exit__(self, *_: object) -> None:
        self._notifier.setEnabled(False)
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier_descriptor)
        self._reading.close()
        self._writing.close()

    def _end(self, *_: object) -> None:
        self._is_ended = True
        # Not quit(), which asks every window first whether it wants to close.
        self._application.exit(0)

    def _woken(self, *_: object) -> None:
        self._reading.recv(64)
        if self._is_ended:
            self._application.exit(0)
