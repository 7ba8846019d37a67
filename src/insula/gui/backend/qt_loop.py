"""Qt's event loop, with the few methods of asyncio's that a session uses."""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QObject, QSocketNotifier, Qt, QTimer


class QtHandle:
    """A timer that fires once."""

    def __init__(self, timer: QTimer, callback: Callable[[], object]) -> None:
        self._timer: QTimer | None = timer
        self._callback = callback
        timer.timeout.connect(self._fired)

    def _fired(self) -> None:
        if self._timer is not None:
            self.cancel()
            self._callback()

    def cancel(self) -> None:
        """Idempotent; after it fired too."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.deleteLater()
            self._timer = None


class QtLoop:
    def __init__(self) -> None:
        """A QGuiApplication exists already."""
        self._owner = QObject()
        self._readers: dict[int, QSocketNotifier] = {}
        self._writers: dict[int, QSocketNotifier] = {}

    def time(self) -> float:
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], object], /) -> QtHandle:
        timer = QTimer(self._owner)
        timer.setTimerType(Qt.TimerType.PreciseTimer)
        timer.setSingleShot(True)
        handle = QtHandle(timer, callback)
        # (Rounded up: one that fires early would find nothing to do yet.)
        timer.start(int(delay * 1000 + 0.999))
        return handle

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        self.remove_reader(fd)
        self._readers[fd] = self._watch(fd, QSocketNotifier.Type.Read, callback)

    def remove_reader(self, fd: int, /) -> None:
        self._forget(self._readers.pop(fd, None))

    def add_writer(self, fd: int, callback: Callable[[], object], /) -> None:
        self.remove_writer(fd)
        self._writers[fd] = self._watch(fd, QSocketNotifier.Type.Write, callback)

    def remove_writer(self, fd: int, /) -> None:
        self._forget(self._writers.pop(fd, None))

    def _watch(self, fd: int, kind: QSocketNotifier.Type, callback: Callable[[], object]) -> QSocketNotifier:
        notifier = QSocketNotifier(fd, kind, self._owner)
        # (Without parameters: Qt's are two objects made for each call.)
        notifier.activated.connect(lambda: callback())  # noqa: PLW0108 - and a callback of the caller's may have some
        return notifier

    @staticmethod
    def _forget(notifier: QSocketNotifier | None) -> None:
        if notifier is not None:
            notifier.setEnabled(False)
            notifier.deleteLater()
